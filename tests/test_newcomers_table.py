"""The table "Where does it go?" of docs/contributing.md: every row has an example in one file, and
the example works, from outside of the package, through the config."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_outsiders import tracked_state

from steering.cli import main
from steering.config import load_config
from steering.dro import DIVERGENCES, KL, CressieRead, worst_case
from steering.dro.online.row_table import Layout
from steering.dro.online.specs import ESTIMATORS
from steering.errors import ConfigError
from steering.items import Units
from steering.methods import registered, registry
from steering.methods.selection import SELECTORS
from steering.registry import chosen
from steering.schedules import SCHEDULES, Constant
from steering.studies import find_study
from steering.training.observers import OBSERVERS
from steering.training.recipes import OPTIMIZERS
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
    for parts in (SCHEDULES, DIVERGENCES, ESTIMATORS, SELECTORS, OPTIMIZERS, OBSERVERS):
        monkeypatch.setattr(parts, "_parts", dict(parts.parts()))
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


REFERENCE = ["reference.cache=null", "reference.train={train.samples: 64, train.batch_size: 32}"]


def steered(tmp_path, *words: str) -> dict:
    """The record of a run with a reference, which is trained first."""
    short = [*SHORT[:-1], *REFERENCE, f"output={tmp_path}"]
    assert main(["train", DIGITS, *short, *words]) == 0
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("record.json")]
    return next(record for record in records if "reference" in record["parents"])


def a_divergence(tmp_path):
    name = f"{PARTS}/divergence.py:squared_hellinger"
    steered(tmp_path, "method=drrho", f"method.divergence={name}")
    phi, losses = DIVERGENCES.find(name)(), torch.linspace(0, 2, 9, dtype=torch.float64)
    # The squared Hellinger distance is the Cressie-Read divergence of order 1/2.
    found, expected = (worst_case(losses, one, radius=0.2) for one in (phi, CressieRead(0.5)))
    torch.testing.assert_close(found.weights, expected.weights)


def an_estimator(tmp_path):
    name = f"{PARTS}/estimator.py:mean_so_far"
    steered(tmp_path, "method=drrho", f"method.estimator={name}")
    means = torch.tensor([1.0, 3.0, 8.0])
    built = ESTIMATORS.find(name)().build(KL(), 1, Layout())
    found = [built.track(torch.tensor(0), mean.log()).exp() for mean in means]
    torch.testing.assert_close(torch.stack(found), torch.tensor([1.0, 2.0, 4.0]))


def a_selector(tmp_path):
    name = f"{PARTS}/selector.py:worst"
    record = steered(tmp_path, "method=drrho", f"method.select={{name: '{name}', share: 0.5}}")
    assert record["cost"]["drawn"] == 2 * record["cost"]["trained"] == 128
    selector = SELECTORS.find(name)(share=0.5).selector()
    assert selector.choose(Units(torch.tensor([1.0, 4.0, 2.0, 3.0])), 2).tolist() == [1, 3]


def an_optimizer(tmp_path):
    name = f"{PARTS}/optimizer.py:rmsprop"
    trained(tmp_path, "method=erm", f"optimizer={{name: '{name}', lr: 0.001, alpha: 0.8}}")
    (state,) = (torch.load(path, weights_only=True) for path in tmp_path.rglob("step-*.pt"))
    assert state["optimizer"]["param_groups"][0]["alpha"] == 0.8


def an_observer(tmp_path):
    observer = f"[{{name: '{PARTS}/observer.py:weight_norm', every: 1}}]"
    record = trained(tmp_path, "method=erm", f"train.observers={observer}")
    lines = (next(tmp_path.rglob("metrics.jsonl"))).read_text().splitlines()
    norms = [json.loads(line).get("train/weight_norm", 0.0) for line in lines]
    assert record["summary"]["largest_weight_norm"] == pytest.approx(max(norms))


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
    "divergence": a_divergence,
    "estimator": an_estimator,
    "selector": a_selector,
    "optimiser": an_optimizer,
    "observer": an_observer,
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
