"""`steering init`: what it writes runs as it is, and nothing is overwritten."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from steering.cli import main
from steering.commands.init import KINDS, written
from steering.config import load_config


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["clip", "classification", "language"])
def test_a_config_is_commented_and_loads(kind, capsys):
    assert main(["init", kind]) == 0
    first = f"name your pairs in {kind}.yaml, then: " if kind == "clip" else ""
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {kind}.yaml",
        f"next: {first}steering train {kind}.yaml smoke=true",
    ]
    text = Path(f"{kind}.yaml").read_text(encoding="utf-8")
    assert f"steering train {kind}.yaml smoke=true" in text
    assert text.count("# <-") >= 4
    assert f"checkpoint: {kind}.yaml" not in text  # a file of weights, not of settings
    sections = yaml.safe_load(text)
    for name, method in sections["compare"]["methods"].items():
        word = yaml.safe_dump(method, default_flow_style=True, width=1000).strip()
        assert load_config(f"{kind}.yaml", [f"method={word}"]).method.name == method["name"], name


@pytest.mark.parametrize("kind", ["classification", "language"])
def test_a_config_without_data_of_the_user_runs(kind, tmp_path):
    assert main(["init", kind, "mine"]) == 0
    words = ["smoke=true", "device=cpu", "train.eval_every=0", f"output={tmp_path / 'runs'}"]
    assert main(["train", "mine.yaml", *words]) == 0
    assert [*(tmp_path / "runs").rglob("record.json")]


def test_a_task_of_ones_own_passes_its_test(tmp_path):
    assert main(["init", "own", "my_waves"]) == 0
    assert {path.name for path in Path().iterdir()} == {
        "my_waves.py",
        "my_waves.yaml",
        "test_my_waves.py",
    }
    assert "class MyWaves(Task)" in Path("my_waves.py").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("test_my_waves", tmp_path / "test_my_waves.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    assert len(tests) == 4
    for test in tests.values():
        test(*[tmp_path] * test.__code__.co_argcount)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_overwritten(kind, capsys):
    mine = [*written(kind, None)][-1]
    mine.write_text("mine", encoding="utf-8")
    assert main(["init", kind]) == 1
    assert f"{mine} is there already; give another NAME" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == [mine.name]
    assert mine.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["My Task", "1st", "class", "../x", "a-b", "steering", "json", ""])
def test_a_name_that_python_does_not_take(name, capsys):
    assert main(["init", "own", name]) == (2 if name else 0)
    assert name == "" or f"{name!r} cannot name a task" in capsys.readouterr().err


def test_the_file_of_a_config_may_stand_in_a_folder():
    assert [*written("clip", "a/b.yml")] == [Path("a/b.yml")]
    assert [*written("clip", "a/v1.2")] == [Path("a/v1.2.yaml")]
