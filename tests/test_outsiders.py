"""Adding a task needs no line in steering/, adding a method none in tasks/: the audio example, and
one of each from files."""

import json
import subprocess
import textwrap
from pathlib import Path

import pytest
import toys

from steering.cli import main
from steering.config import load_config
from steering.methods import registered, registry

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT.parent / "shared/data/audio/fsdd/recordings.tar"
AUDIO = ROOT / "examples/audio_digits.py"


@pytest.fixture(autouse=True)
def _at_home(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(registry, "_REGISTRY", registered())


def test_the_audio_task_is_short_and_the_package_knows_nothing_of_it():
    assert len(AUDIO.read_text().splitlines()) <= 150
    for path in [*(ROOT / "steering").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        assert "audio" not in path.read_text().lower(), path


def test_the_audio_task_compares(tmp_path):
    assert main(["compare", "configs/audio/digits.yaml", "smoke=true", f"output={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "audio-smoke/compare.json").read_text())
    assert [row["method"] for row in rows] == [
        "reference",
        *load_config("configs/audio/digits.yaml").compare.methods,
    ]
    assert all(0 <= row["metrics"]["test/accuracy"] <= 1 for row in rows)


@pytest.mark.shared_data
def test_the_audio_task_hears_real_digits(tmp_path):
    if not RECORDINGS.is_file():
        pytest.skip(f"needs {RECORDINGS.relative_to(ROOT.parent)} beside the checkout")
    words = [f"task.path={RECORDINGS}", "task.label_noise=0", f"output={tmp_path}", "method=erm"]
    assert main(["train", "configs/audio/digits.yaml", *words]) == 0
    result = json.loads(
        (toys.folder_of(tmp_path / "audio", "erm-seed0") / "record.json").read_text()
    )
    assert result["metrics"]["test/accuracy"] > 0.5  # chance is 0.1


def test_a_path_without_recordings(tmp_path, capsys):
    assert main(["train", "configs/audio/digits.yaml", f"task.path={tmp_path}"]) == 1
    assert f"task.path: no .wav files in {tmp_path}" in capsys.readouterr().err


METHOD = """
    from dataclasses import dataclass

    from steering.methods import Method, Needs, Step, register


    @dataclass
    class Options:
        power: float = 2.0


    @register("power", Options, units=("example",), needs=Needs(reference=True))
    class Power(Method):
        \"\"\"Weights by a power of the excess loss.\"\"\"

        def __init__(self, options):
            super().__init__()
            self.power = options.power

        def forward(self, items):
            weights = items.excess().detach().clamp_min(0) ** self.power
            return Step((weights * items.target).sum() / weights.sum().clamp_min(1e-9))
"""


def tracked_state() -> str:
    """What git sees of the two packages."""
    return subprocess.run(
        ["git", "status", "--porcelain", "--", "steering", "tasks"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout


def test_a_method_and_a_task_from_files_meet(tmp_path):
    before = tracked_state()
    (tmp_path / "power.py").write_text(textwrap.dedent(METHOD))
    method = f"{{name: '{tmp_path}/power.py:power', power: 1.5}}"
    words = ["smoke=true", f"output={tmp_path}/runs", f"method={method}"]
    assert main(["train", "configs/audio/digits.yaml", *words]) == 0  # an outside task
    assert main(["train", "configs/classification/digits.yaml", *words]) == 0  # and one of ours
    for name in ("audio-smoke", "digits-smoke"):
        assert (toys.folder_of(tmp_path / "runs" / name, "power-seed0") / "record.json").is_file()
    assert tracked_state() == before
