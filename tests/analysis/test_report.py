"""Tables and curves of results, against numbers computed by hand."""

import io
import math
import re

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steering.analysis import page, report
from steering.analysis.events import Curve, write_curves
from steering.analysis.report import study_curves
from steering.runs.record import Metric


def _row(method, seed, r1, r5=0.5, samples=1000, seconds=10.0):
    metrics = {"seen/image_to_text_R@1": r1, "seen/image_to_text_R@5": r5, "new/R@1": r1 / 2}
    return {
        "method": method,
        "seed": seed,
        "metrics": metrics,
        "samples": samples,
        "seconds": seconds,
    }


ROWS = [
    {
        "method": "reference",
        "seed": None,
        "metrics": {"seen/image_to_text_R@1": 0.2},
        "samples": None,
        "seconds": None,
    },
    _row("plain", 0, 0.10, seconds=10.0),
    _row("plain", 1, 0.20, seconds=30.0),
    _row("plain", 2, 0.30, seconds=20.0),
    _row("a | b", 0, 0.25),
]


@pytest.fixture
def printed(monkeypatch):
    """Print results at a width and return the lines."""

    def show(rows, width=80, title="title"):
        console = Console(file=io.StringIO(), width=width, highlight=False)
        monkeypatch.setattr(page, "CONSOLE", console)
        report.print_results(rows, title)
        return console.file.getvalue().splitlines()

    return show


def test_mean_and_error_by_hand():
    mean, error = report.mean_and_error([1.0, 2.0, 6.0])
    assert (mean, error) == (
        pytest.approx(3.0),
        pytest.approx(math.sqrt(7.0 / 3)),
    )  # s² = (4 + 1 + 9)/2
    mean, error = report.mean_and_error([4.0])
    assert mean == 4.0
    assert math.isnan(error)


def test_tables_by_hand():
    tables = report.tables(ROWS)
    assert [*tables] == ["seen", "new", "cost of one run"]
    header, lines = tables["seen"]
    assert header == ["method", "image to text R@1", "image to text R@5"]
    assert lines == [
        ["reference", "20.0", "–"],
        ["plain", "20.0 ± 5.8", "50.0 ± 0.0"],  # s = 10, 10/√3 = 5.77
        ["a | b", "25.0", "50.0"],
    ]
    assert tables["cost of one run"][1] == [
        ["reference", "1", "–", "–"],
        ["plain", "3", "1,000", "20"],
        ["a | b", "1", "1,000", "10"],
    ]


def test_metrics_without_a_group_have_a_table_too():
    rows = [{"method": "m", "seed": 0, "metrics": {"accuracy": 0.5}, "samples": 1, "seconds": 1.0}]
    assert report.tables(rows)["evaluation"] == (["method", "accuracy"], [["m", "50.0"]])


def test_a_page_is_whole_or_written_again(tmp_path):
    file = page.StudyFile("study", {}, "title", [])
    found = page.Report("name", "title", "intro", rows=[{"a": 1}], files={".csv": lambda: "text"})
    page.write_study(tmp_path, file, found)
    parts = [path for path in tmp_path.iterdir() if path.is_file()]
    names = {"study-name.json", "name.md", "name.html", "name.json", "name.csv"}
    assert {path.name for path in parts} == names
    for one in parts:
        one.unlink()
        page.write_study(tmp_path, file, found)
        assert one.is_file(), one.name


def test_markdown_is_a_table_whatever_the_labels_are():
    text = report.markdown_report(ROWS, "study")
    assert text.startswith(
        "# study\n\nPercent; ± is one standard error over the runs' seeds.\n\n## seen\n\n"
    )
    assert (
        "| method | image to text R@1 | image to text R@5 |\n| --- | --- | --- |\n| reference | 20.0 | – |\n"
        in text
    )
    assert "| plain | 20.0 ± 5.8 | 50.0 ± 0.0 |" in text
    assert r"| a \| b | 25.0 | 50.0 |" in text


def _wide_rows(labels):
    names = [
        f"held-out_images/{way}_R@{k}"
        for way in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    ]
    return [
        {
            "method": label,
            "seed": s,
            "metrics": dict.fromkeys(names, 0.3 + 0.1 * s),
            "samples": 9,
            "seconds": 9.0,
        }
        for label in labels
        for s in (0, 1)
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_cut_at_any_width(printed, width):
    labels = ["reference", "global contrastive loss", "drrho α = 0.5 [small]"]
    lines = printed(_wide_rows(labels), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    tables = sum(line.startswith("┏") for line in lines)
    for label in labels:
        assert (
            sum(label in line for line in lines) == tables
        )  # each table names every method, on one line
    assert sum(line.count("35.0 ± 5.0") for line in lines) == 6 * len(labels)
    assert tables == {60: 4, 80: 3, 100: 3, 200: 2}[width]


def test_six_recalls_of_short_labels_fit_into_80_columns_in_two_tables(printed):
    lines = printed(_wide_rows(["reference", "openclip", "fastclip", "drrho"]))
    assert sum(line.startswith("┏") for line in lines) == 3
    assert "images" in "".join(lines)


def test_markup_in_labels_and_titles_is_text(printed):
    lines = printed([_row("[bold]x[/bold]", 0, 0.1)], title="runs/[red]a")
    assert "runs/[red]a" in lines[0]
    assert any("[bold]x[/bold]" in line for line in lines)


def test_what_is_bold_is_what_is_said_to_win(monkeypatch):
    console = Console(
        file=io.StringIO(), width=80, highlight=False, force_terminal=True, color_system="standard"
    )
    monkeypatch.setattr(page, "CONSOLE", console)
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = [_row("one", 0, 0.098), _row("two", 0, 0.25)]
    for winners in ({}, {"seen/image_to_text_R@1": "two", "new/R@1": "one"}):
        page.print_tables("title", report.page_tables(rows, None, winners))
        bold = re.findall(r"\x1b\[1m *([\d.,]+) *\x1b\[0m", console.file.getvalue())
        assert bold == (["25.0", "4.9"] if winners else [])


def test_curves_by_hand():
    name = "eval/seen/image_to_text_R@1"
    curves = {
        "plain": [
            [{"step": 5, "train/loss": 1.0}, {"step": 10, name: 0.1}, {"step": 20, name: 0.2}],
            [{"step": 10, name: 0.3}, {"step": 20, name: 0.6}],
        ]
    }
    figure = report.curves_figure(curves, ROWS[:3], batch_size=16)
    axes = figure.axes[0]
    curve, dashed = axes.lines
    assert [*curve.get_xdata()] == [160, 320]
    assert [*curve.get_ydata()] == pytest.approx([20, 40])
    assert [*dashed.get_ydata()] == [20, 20]
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (
        pytest.approx(10),
        pytest.approx(60),
    )  # 20 ± 10 and 40 ± 20
    assert axes.get_title() == "seen"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain", "reference"]


def test_curves_of_nothing_are_an_empty_figure():
    report.curves_figure({"plain": [[]]}, [_row("plain", 0, 0.1)], 16)
    report.curves_figure({}, [], 16)


def test_smaller_is_better_where_the_task_says_so(monkeypatch):
    rows = [
        {
            "method": m,
            "seed": 0,
            "metrics": {"test/accuracy": a, "test/ECE": e, "perplexity/en": p},
            "samples": 1,
            "seconds": 1,
        }
        for m, a, e, p in (("x", 0.5, 0.02, 9.5), ("y", 0.6, 0.1, 10.25))
    ]
    styles = {
        "ECE": Metric(higher_is_better=False),
        "perplexity": Metric(percent=False, higher_is_better=False),
    }
    found = report.tables(rows, styles)
    assert found["test"] == (
        ["method", "accuracy", "ECE ↓"],
        [["x", "50.0", "2.0"], ["y", "60.0", "10.0"]],
    )
    assert found["perplexity"] == (["method", "en ↓"], [["x", "9.500"], ["y", "10.250"]])
    console = Console(file=io.StringIO(), width=80, force_terminal=True, highlight=False)
    monkeypatch.setattr(page, "CONSOLE", console)
    won = {"test/accuracy": "y", "test/ECE": "x", "perplexity/en": "x"}
    page.print_tables("title", report.page_tables(rows, styles, won))
    bold = re.findall(r"\x1b\[1m *([\d.,]+) *\x1b\[0m", console.file.getvalue())
    assert bold == ["2.0", "60.0", "9.500"]
    assert (
        report.markdown_report(rows, "t", styles)
        .split("\n\n")[1]
        .startswith("Percent, but for en;")
    )


def test_what_is_drawn_and_scored_is_shown_where_something_is_chosen():
    plain = {
        "method": "erm",
        "seed": 0,
        "metrics": {},
        "samples": 10,
        "drawn": 10,
        "scored": 0,
        "seconds": 1,
    }
    choosy = {**plain, "method": "rho_loss", "drawn": 100, "scored": 100}
    assert report.tables([plain])["cost of one run"][0] == ["method", "runs", "samples", "seconds"]
    header, lines = report.tables([plain, choosy])["cost of one run"]
    assert header == ["method", "runs", "trained on", "drawn", "scored", "seconds"]
    assert lines[1] == ["rho_loss", "1", "10", "100", "100", "1"]


def test_lines_of_a_study_are_means_with_bands_and_a_level(tmp_path):
    seeds = [[{"step": 5, "eval/m": value}, {"step": 6, "train/loss": 9.0}] for value in (1.0, 3.0)]
    rows = [{"method": "reference", "seed": None, "metrics": {"m": 0.5}}]
    found = study_curves({"plain": seeds, "alone": seeds[:1]}, rows)
    assert found["plain"]["m"] == Curve([5], [2.0], [1.0])  # s/√n = √2/√2
    write_curves(tmp_path, "compare", found["plain"])
    write_curves(tmp_path, "compare", found["plain"])  # replaces what it has written
    write_curves(tmp_path / "reference", "compare", found["reference"])
    events = EventAccumulator(str(tmp_path)).Reload()
    told = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert told == {"study/m": [(5, 2.0)], "study/m/low": [(5, 1.0)], "study/m/high": [(5, 3.0)]}
    level = EventAccumulator(str(tmp_path / "reference")).Reload().Scalars("study/m")
    assert [(one.step, one.value) for one in level] == [(0, 0.5), (5, 0.5)]
    assert found["alone"]["m"].error == [0.0]
