"""A missing optional package is one line that names its extra; what needs none does not load it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steering import extras
from steering.extras import MissingExtraError, explained, extra_of, package_folder, require

ROOT = Path(__file__).parents[1]
OPTIONAL = {
    *("torchvision", "torchaudio", "open_clip", "transformers", "sklearn", "PIL", "timm"),
    *("webdataset", "datasets", "pyarrow", "accelerate", "lightning", "cvxpy"),
}
# Hides packages, runs a command, then says which of the packages named are loaded.
SCRIPT = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

HIDDEN, WATCHED = map(set, json.loads(sys.argv[1]))
sys.meta_path.insert(0, Hidden())
from steering.cli import main
code = main(sys.argv[2:])
print(json.dumps(sorted(WATCHED & sys.modules.keys())))
sys.exit(code)
"""


def steering(tmp_path, *words, hidden=(), watched=()):
    """A finished process: `steering WORDS` where some packages are not installed."""
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    given = json.dumps([sorted(hidden), sorted(watched)])
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, given, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("config", "hidden", "extra"),
    [
        ("classification/digits", OPTIONAL, "vision"),
        ("classification/digits", {"sklearn"}, "vision"),
        ("clip/glyphs", OPTIONAL, "clip"),
        ("clip/glyphs", {"open_clip"}, "clip"),
        ("language/stdlib", OPTIONAL, "language"),
        ("audio/digits", OPTIONAL, "audio"),
    ],
)
def test_a_run_names_the_extra_that_it_needs(tmp_path, config, hidden, extra):
    done = steering(tmp_path, "compare", config, "smoke=true", hidden=hidden)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"steering: error: {config}: ")
    assert f'needs the extra "{extra}": pip install "model-steering[{extra}]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_methods_are_listed_for_the_tasks_that_are_there(tmp_path):
    done = steering(tmp_path, "methods", hidden=OPTIONAL)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.split()[:2] == ["method", "language"]
    missing = [line for line in lines if line.startswith("not shown: ")]
    assert len(missing) == 2
    assert all('pip install "model-steering[' in line for line in missing)


def test_training_a_classifier_loads_nothing_of_the_other_tasks(tmp_path):
    """An own small net on the digits: not even torchvision, SciPy or Matplotlib until the figures
    at the end."""
    watched = {*OPTIONAL, "scipy", "pandas", "tensorflow"} - {"PIL"}
    words = ["train", "classification/digits", "smoke=true", "reference=null", "method=erm"]
    done = steering(tmp_path, *words, watched=watched)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    "words", [["configs"], ["completion", "bash"], ["runs", "--help"], ["train", "--help"]]
)
def test_light_commands_load_no_torch(tmp_path, words):
    heavy = {"torch", "scipy", "matplotlib", "tensorboard", "pandas", *OPTIONAL}
    done = steering(tmp_path, *words, watched=heavy)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_extra_of_a_module():
    assert extra_of("PIL.Image") == "vision"
    assert extra_of("PIL.Image", prefer="clip") == "clip"
    assert extra_of("sklearn.datasets", prefer="clip") == "vision"  # clip does not bring it
    assert extra_of("open_clip") == "clip"
    assert extra_of("torch") is None  # of the core
    assert extra_of("no_such_package") is None


def test_what_is_there_is_returned():
    assert require("vision", "json", "this") is json
    assert package_folder("vision", "steering", "this") == ROOT / "steering"


def test_what_is_not_there_is_told(monkeypatch):
    for name in ("timm", "timm.models"):  # as if an earlier test had not imported them
        monkeypatch.setitem(sys.modules, name, None)
    match = r'target\.name: timm:x needs the extra "vision": pip install "model-steering\[vision\]"'
    with pytest.raises(MissingExtraError, match=match):
        require("vision", "timm.models", "target.name: timm:x")
    with pytest.raises(ImportError, match="nowhere is not installed"):
        package_folder("vision", "nowhere", "this")
    # A package that no extra brings, where an extra is named for it.
    with pytest.raises(MissingExtraError, match=r'this needs the extra "data".*\(nowhere is not'):
        require("data", "nowhere.parquet", "this")


def test_other_failures_pass_as_they_are(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wants_more.py").write_text("import nowhere")
    with pytest.raises(ModuleNotFoundError, match="nowhere") as found, explained("this"):
        import wants_more  # noqa: F401
    assert not isinstance(found.value, MissingExtraError)
    with pytest.raises(ModuleNotFoundError, match="nowhere") as found:
        require("vision", "wants_more", "this")
    assert not isinstance(found.value, MissingExtraError)
    with pytest.raises(ZeroDivisionError), explained("this"):
        _ = 1 / 0


def test_metadata_says_the_same_as_pyproject(monkeypatch, tmp_path):
    """In an installation there is no pyproject.toml."""
    here = extras.extras(), extras.core()
    lines = ["torch<2.12,>=2.11", 'Pillow>=10.3; extra == "vision"', "x[y]>=1 ; extra == 'clip'"]
    lines += ['model-steering[clip]; extra == "all"', 'ruff; extra == "dev"']
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "steering/extras.py"))
    monkeypatch.setattr(extras, "requires", lambda _: lines)
    extras._packages.cache_clear()
    try:
        assert extras.extras() == {"vision": {"pillow": ">=10.3"}, "clip": {"x": ">=1"}}
        assert extras.core() == {"torch": "<2.12,>=2.11"}
    finally:
        extras._packages.cache_clear()
    assert {*here[0]} == {"vision", "clip", "language", "audio", "data", "hf", "lightning"}
    assert "torch" in here[1]
