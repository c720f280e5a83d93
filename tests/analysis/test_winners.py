"""What a table may show in bold, and the line below a page that says how it was made."""

import json
import subprocess
from pathlib import Path

import pytest
import toys

from steering.analysis.made import page_title, signed
from steering.analysis.page import Report, StudyFile, Table
from steering.analysis.winners import winners
from steering.cli import main
from steering.runs.record import Metric, RunRecord

A = "set/accuracy"


def records(**values: list[float]) -> dict[str, dict[int, RunRecord]]:
    return {
        label: {
            seed: RunRecord(f"{label}{seed}", "train", label, metrics={A: value})
            for seed, value in enumerate(numbers)
        }
        for label, numbers in values.items()
    }


def found(runs, reference: float | None = None, lower: bool = False) -> dict[str, str]:
    rows = [{"method": label, "metrics": one[0].metrics} for label, one in runs.items()]
    if reference is not None:
        rows.append({"method": "reference", "metrics": {A: reference}})
    return winners(runs, rows, {A: Metric(higher_is_better=not lower)})


@pytest.mark.parametrize(
    ("values", "more", "expected"),
    [
        # Paired differences of 0.10, 0.11 and 0.12: far from zero.
        ({"plain": [0.5, 0.6, 0.7], "new": [0.6, 0.71, 0.82]}, {}, {A: "new"}),
        # A mean difference of 0.1 whose interval is [-0.15, 0.35].
        ({"plain": [0.5, 0.6, 0.7], "new": [0.5, 0.7, 0.9]}, {}, {}),
        # Better than one, but not surely than the other.
        ({"plain": [0.5, 0.5], "old": [0.59, 0.61], "new": [0.6, 0.61]}, {}, {}),
        # The reference is a single model, and better.
        ({"plain": [0.5, 0.6], "new": [0.6, 0.7]}, {"reference": 0.9}, {}),
        ({"plain": [0.5, 0.6], "new": [0.6, 0.7001]}, {"reference": 0.01}, {A: "new"}),
        # Less is better.
        ({"plain": [0.5, 0.6], "new": [0.6, 0.7001]}, {"lower": True}, {A: "plain"}),
        # One seed decides nothing, and neither does a method alone.
        ({"plain": [0.1], "new": [0.9]}, {}, {}),
        ({"plain": [0.1, 0.2]}, {}, {}),
    ],
)
def test_only_what_an_interval_sets_apart_from_all_others_wins(values, more, expected):
    assert found(records(**values), **more) == expected


RUN = RunRecord(
    "k",
    "train",
    "one",
    environment={"steering": "0.1", "commit": "abc+", "system": "S", "device": "cpu: P"},
    created="2026-01-02T03:04:05+00:00",
)
PAGE = Report("x", "t", "Numbers.", [Table("a", ["m", "v"], [["one", "1"]], bold={(0, 1)})])


def test_a_page_says_how_it_was_made_and_a_smoke_run_that_it_says_nothing():
    file = StudyFile("compare", {}, "t", [], command="steering compare x.yaml")
    later = RunRecord("l", "train", "two", environment=RUN.environment, created="2026-01-05T00")
    page = signed(PAGE, file, [RUN, later])
    assert page.markdown().endswith(
        "\n\nMade by `steering compare x.yaml`. 2 runs of 2026-01-02 to 2026-01-05. steering 0.1, commit abc+. S, cpu: P.\n"
    )
    assert page.tables[0].bold == {(0, 1)}
    trial = signed(PAGE, StudyFile("compare", {}, "t", [], smoke=True), [RUN])
    assert trial.intro == (
        "A smoke run: far too short to learn anything, so no number here is a result. Numbers."
    )
    assert list(trial.tables[0].bold) == []
    assert page_title("digits", True) == "digits, smoke run"
    assert signed(PAGE, StudyFile("compare", {}, "t", []), []).made == ""


def test_the_command_line_leaves_its_words_and_the_commit_on_the_page(tmp_path: Path, capsys):
    path = toys.write_config(tmp_path)
    path.write_text(f"{path.read_text()}smoke_overrides: {{train.samples: 32}}\n")
    assert main(["compare", str(path), "smoke=true", "compare.seeds=[0]"]) == 0
    folder = tmp_path / "runs/study-smoke"
    text = (folder / "compare.md").read_text()
    assert text.splitlines()[0].partition(":")[0].endswith(", smoke run")
    assert "A smoke run: far too short" in text
    last = text.splitlines()[-1]
    assert f"Made by `steering compare {path} smoke=true 'compare.seeds=[0]'`." in last
    shown = "".join(capsys.readouterr().out.split())  # the terminal breaks lines
    assert "".join(last.split()) in shown
    there = json.loads(next(folder.glob("*/record.json")).read_text())["environment"]["commit"]
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        # An ancestor, not HEAD: the tree may get a commit while the suite runs.
        words = ["git", "-C", str(root), "merge-base", "--is-ancestor", there.rstrip("+"), "HEAD"]
        assert subprocess.run(words, check=False).returncode == 0
        assert f"commit {there}" in last
    before = text
    assert main(["report", str(folder)]) == 0
    assert (folder / "compare.md").read_text() == before
