"""The table "Where does it go?" of docs/contributing.md: every row has an example in one file, and
the example works, from outside of the package, through the config."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_outsiders import tracked_state

from steering.cli import main
from steering.config import load_config
from steering.errors import ConfigError
from steering.methods import registered, registry
from steering.registry import chosen
from steering.schedules import SCHEDULES, Constant
from steering.studies import find_study
from steering.typed import differences, typed

ROOT = Path(__file__).parents[1]
PARTS = "examples/parts"
DIGITS = "configs/classification/digits.yaml"
SHORT = ["train.samples=64", "train.batch_size=32", "train.eval_every=0", "reference=null"]


@pytest.fixture(autouse=True)
def _at_home(monkeypatch):
    """In the checkout, as the examples are named from there; what they register is gone
    afterwards."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(registry, "_REGISTRY", registered())
    monkeypatch.setattr(SCHEDULES, "_parts", dict(SCHEDULES.parts()))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(ROOT / PARTS)):
            del sys.modules[name]


def rows() -> dict[str, tuple[str, str]]:
    """Change -> number of files, and the example's path."""
    page = (ROOT / "docs/contributing.md").read_text(encoding="utf-8")
    table = page.partition("## Where does it go?")[2].partition("\n## ")[0]
    found = re.findall(
        r"^\| ([a-z ,]+) \|[^|]+\|[^|]+\| (\d+) \| \[[^\]]+\]\(\.\./([\w./]+)\) \|$", table, re.M
    )
    assert len(found) == table.count("\n| ") - 1  # all but the header
    return {change: (files, path) for change, files, path in found}


def trained(tmp_path, *words: str) -> dict:
    """The record of one run on the digits."""
    assert main(["train", DIGITS, *SHORT, f"output={tmp_path}", *words]) == 0
    (record,) = tmp_path.rglob("record.json")
    return json.loads(record.read_text())


def a_method(tmp_path):
    trained(tmp_path, f"method={PARTS}/method.py:trimmed", "method.share=0.8")
    lines = (next(tmp_path.rglob("metrics.jsonl"))).read_text().splitlines()
    assert any("train/largest" in line for line in lines)


def a_config_key(tmp_path):
    words = [f"method={PARTS}/method.py:trimmed"]
    assert load_config(DIGITS, [*words, "method.share=0.5"]).method.options.share == 0.5
    with pytest.raises(ConfigError, match=r"method\.share: expected float, got 'much'"):
        load_config(DIGITS, [*words, "method.share=much"])
    with pytest.raises(ConfigError, match=r"unknown key 'method\.shar'; did you mean 'method\.sha"):
        load_config(DIGITS, [*words, "method.shar=0.5"])
    assert main(["train", DIGITS, *words, "method.share=2", f"output={tmp_path}"]) == 2


def a_task(tmp_path):
    path = tmp_path / "waves.yaml"
    path.write_text(
        f"name: waves\noutput: {tmp_path}\ndevice: cpu\n"
        f'task: {{name: "{PARTS}/task.py:Waves", points: 64}}\ntarget: mlp\nmethod: erm\n'
        "optimizer: {lr: 0.02}\ntrain: {samples: 6400, batch_size: 64}\n"
    )
    assert main(["train", str(path)]) == 0
    record = json.loads(next(tmp_path.rglob("record.json")).read_text())
    assert record["metrics"]["test/error"] < 0.1  # the sine's own variance is about ½
    assert record["meaning"]["test/error"]["higher_is_better"] is False


def a_metric(tmp_path):
    found = trained(tmp_path, f"task.name={PARTS}/metric.py:Sure", "method=erm")
    assert 0 < found["metrics"]["test/sure"] < 1
    assert found["meaning"]["test/sure"]["of"] == ["test/sure"]


def a_schedule(tmp_path):  # noqa: ARG001
    @dataclass(frozen=True)
    class Section:
        rate: object = chosen(SCHEDULES, Constant(1.0))

    def fail(path, message):
        raise ConfigError(f"{path}: {message}")

    section = {"name": f"{PARTS}/schedule.py:halving", "start": 8.0}
    made = typed(Section, {"rate": section}, "", fail)
    assert [made.rate(done) for done in (0, 0.24, 0.25, 0.6, 0.99, 1)] == [8, 8, 4, 2, 1, 1]
    assert differences(made) == {"rate": section}  # so it counts in a run's key


def a_study(tmp_path):  # noqa: ARG001
    """tests/studies/test_studies.py runs it."""
    entry = find_study("tests/studies/lr_study.py:lr")
    assert entry.summary == "The best of some learning rates, and how much its seeds differ."
    assert entry.options().seeds == 3


CHECKS = {
    "method": a_method,
    "task": a_task,
    "metric of training": a_method,
    "metric of evaluations": a_metric,
    "config key": a_config_key,
    "schedule": a_schedule,
    "study": a_study,
}


def test_every_row_has_a_check():
    assert rows().keys() == CHECKS.keys()


@pytest.mark.parametrize("change", CHECKS)
def test_the_example_is_one_file_and_works(tmp_path, change):
    before = tracked_state()
    files, example = rows()[change]
    assert files == "1"
    assert len((ROOT / example).read_text().splitlines()) <= 80
    CHECKS[change](tmp_path)
    assert tracked_state() == before
