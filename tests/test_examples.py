"""Every file in examples/ is run; what it claims is checked."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


SMALL = {  # arguments of those that would take longer than a test may
    "excess_risk_bound.py": ["--quick", "--repetitions", "20"],
    "reference_distance.py": ["--quick", "--seeds", "3"],
    "dro_convergence.py": ["--quick", "--seeds", "1"],
    "hf_sft.py": ["--steps", "2"],
    "hf_trainer.py": ["--steps", "3"],
    "lightning_digits.py": ["--epochs", "1", "--seeds", "2"],
}
NEEDS = {
    "hf_sft.py": "accelerate",
    "hf_trainer.py": "accelerate",
    "lightning_digits.py": "lightning",
}
TASKS = {"audio_digits.py"}  # not scripts: tests/test_outsiders.py


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
@pytest.mark.filterwarnings(
    "ignore:.*:UserWarning", "ignore:.*:FutureWarning", "ignore::ResourceWarning"
)
def test_example_runs(path, capsys, tmp_path, monkeypatch):
    if path.name in TASKS:
        return
    if path.name in NEEDS:
        pytest.importorskip(NEEDS[path.name])
    drawn = ["--out", str(tmp_path / "figure.png")] if "--quick" in SMALL.get(path.name, []) else []
    monkeypatch.setattr("sys.argv", [str(path), *SMALL.get(path.name, []), *drawn])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert not drawn or (tmp_path / "figure.png").stat().st_size > 10_000


def test_own_loop_steering_beats_both_the_reference_and_plain_training():
    # Over five seeds the smallest lead was 0.016 over plain training and 0.013 over the reference;
    # see docs/log.md.
    scores = runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"](seed=0)
    assert scores["steered"] > max(scores["plain"], scores["reference"])


def test_the_excess_risk_rises_with_the_distance_of_the_reference():
    script = runpy.run_path(str(EXAMPLES / "reference_distance.py"))
    near, far = (
        script["excess_risks"](distance, 100, 8, "drrho").mean() for distance in (0.03, 0.5)
    )
    erm, cured = (script["excess_risks"](1.3, 100, 8, how).mean() for how in ("erm", "auto"))
    assert near < far / 4
    assert near < erm / 4  # a good reference saves samples
    assert far > 0.8 * erm  # a bad one does not
    assert cured < 1.2 * erm  # and α* keeps it from doing harm
