"""The studies scaling, audit, calibration and gallery, small: what they ask, resume, draw again,
and say."""

import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys

from steering.analysis.intervals import Interval
from steering.analysis.signals import CONFIDENT, Signals
from steering.cli import main
from steering.commands.studies import study
from steering.config import load_config
from steering.errors import ConfigError, SteeringError
from steering.runs.store import Store
from steering.studies.audit import read_calibration
from steering.studies.audit_page import SHOWN, gains_figure, signals_figure
from steering.studies.calibration import Calibration, CalibrationOptions
from steering.studies.scaling_page import _times

HERE = Path(__file__).parent
UNITS = ["task.kind=units", "train.threads=1", "train.samples=160", "method=erm"]
SCALING = [
    *UNITS,
    "studies.scaling.methods={plain: {name: erm}, steered: {name: drrho}}",
    "studies.scaling.samples=[32, 64, 160]",
    "studies.scaling.shares={'0.5': {task.n: 32}, '1': {task.n: 64}}",
    "studies.scaling.seeds=[0, 1]",
    "studies.scaling.metric=seen/likelihood",
]


def config_of(tmp_path, *words):
    return load_config(toys.write_config(tmp_path), words)


def again(folder, name):
    """The page drawn from the records alone, and that no run was done again."""
    before = {path: path.read_bytes() for path in folder.glob("*/record.json")}
    made = [folder / f"{name}.md", folder / f"{name}.json"]
    texts = [path.read_text() for path in made]
    for path in made:
        path.unlink()
    assert main(["report", str(folder)]) == 0
    assert [path.read_text() for path in made] == texts
    assert {path: path.read_bytes() for path in folder.glob("*/record.json")} == before
    return texts[0]


def test_scaling(tmp_path):
    config = config_of(tmp_path, *SCALING)
    study("scaling", config)
    folder = tmp_path / "runs/study"
    before = {path.parent.name for path in folder.glob("*/record.json")}
    # The reference, 64 samples of plain training, is one of the runs, on each share of the data.
    assert len(before) == 2 * 3 * 2 * 2
    study("scaling", config)
    assert {path.parent.name for path in folder.glob("*/record.json")} == before
    rows = json.loads((folder / "scaling.json").read_text())
    laws = {row["method"]: row for row in rows if row["kind"] == "law"}
    for method, law in laws.items():
        runs = [r for r in rows if r["kind"] == "run" and r["method"] == method and r["share"] == 1]
        costs = sorted({run["cost"] for run in runs})
        assert (len(costs), len(runs)) == (3, 6)
        logs = [np.mean([math.log(r["error"]) for r in runs if r["cost"] == c]) for c in costs]
        slope, height = np.polyfit(np.log(costs), logs, 1)
        assert law["beta"][0] == pytest.approx(-slope)
        assert math.log(law["a"]) == pytest.approx(height)
        assert law["beta"][1] < law["beta"][0] < law["beta"][2]
        assert law["over"] == "seeds and examples"
    text = again(folder, "scaling")
    assert all(part in text for part in ("## laws", "P(β above plain's)", "## ahead", "suffices"))
    assert (folder / "scaling.png").is_file()
    assert (folder / "scaling-data.png").is_file()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("studies.scaling.cost=watts", "cost: expected one of flops, .*, got 'watts'"),
        ("studies.scaling.shares={half: {}}", r"expected a number in \(0, 1\], got 'half'"),
        ("studies.scaling.methods={}", "methods: empty"),
        (
            "studies.scaling.sizes={a: {}, b: {}}",
            "plain-a-32-0.5-seed0 and plain-b-32-.* the same run",
        ),
        ("studies.scaling.ahead=1", "ahead: expected above 1, got 1"),
        ("studies.scaling.sizes={x: {target.widht: 1}}", "unknown key 'target.widht'"),
    ],
)
def test_what_scaling_cannot_do_is_told(tmp_path, word, says):
    with pytest.raises(ConfigError, match=says):
        study("scaling", config_of(tmp_path, *SCALING, word))


def test_ratios_of_laws_that_hardly_fall_can_be_read():
    assert _times(Interval(6.781, 0.0, 9.8e15)) == "6.78 [< 0.01, > 1,000]"
    assert _times(Interval(2.0)) == "2.00"
    assert _times(Interval(math.inf, 3.0, math.inf)) == "> 1,000 [3.00, > 1,000]"


def test_scaling_of_an_unknown_metric_names_the_known(tmp_path):
    words = [*SCALING[:-1], "studies.scaling.samples=[32]", "studies.scaling.seeds=[0]"]
    with pytest.raises(SteeringError, match="no 'test/accuracy'; the runs have seen/likelihood"):
        study("scaling", config_of(tmp_path, *words))


REFERENCES = (
    "references={long: {name: linear, cache: auto, train: {train.samples: 320}}, "
    "short: {name: linear, cache: auto, train: {train.samples: 48}}}"
)


def test_audit_without_and_with_a_calibration(tmp_path):
    words = [*UNITS, "reference=null", REFERENCES, "studies.audit.part=first"]
    study("audit", config_of(tmp_path, *words))
    folder = tmp_path / "runs/study"
    rows = {row["reference"]: row for row in json.loads((folder / "audit.json").read_text())}
    assert [*rows] == ["long", "short"]
    stored = {}
    for record in Store(folder).all():
        if record.kind == "outputs" and record.axes["part"] == "train":
            array = np.load(folder / record.summary["outputs"] / "loss.npy").astype(float)
            stored[record.axes.get("reference", "probe")] = array
    for label, row in rows.items():
        target, guide = stored["probe"], stored[label]
        ratio = np.var(target - guide) / np.var(target)
        assert row["signals"]["log_variance_ratio"] == pytest.approx(math.log(ratio))
        assert row["signals"]["reference_wrong"] == (guide > CONFIDENT).mean()
        assert math.isfinite(row["signals"]["advantage"])
    long, short = (rows[label]["signals"] for label in ("long", "short"))
    assert long["advantage"] > short["advantage"]
    assert "expected" not in rows["long"]
    text = again(folder, "audit")
    assert "| long |" in text
    picture = (folder / "audit.png").read_bytes()

    file = made_calibration(tmp_path)
    study("audit", config_of(tmp_path, *words, f"studies.audit.calibration={file}"))
    rows = {row["reference"]: row for row in json.loads((folder / "audit.json").read_text())}
    for row in rows.values():
        one = row["expected"]["steered"]
        assert one["plane"] == [1.0, 1.0]
        assert sum(one["chances"].values()) == pytest.approx(1.0)
        likely = [word for word, chance in one["chances"].items() if chance >= 2 / 3]
        assert one["verdict"] == (likely[0] if likely else "open")
        assert isinstance(one["outside"], list)
    assert re.search(
        r"\| (long|short) \| steered \| 1, 1 \| [+-]\d", (folder / "audit.md").read_text()
    )
    assert (folder / "audit.png").read_bytes() != picture


def test_the_audits_figures_show_every_reference():
    values = {"explained": 0.4, "late_auc": 0.7, "agreement": 0.2}
    rest = {"n": 9, "variance_ratio": 1.0, "strength": 1.0, "bound": 0.1}
    wrong = {"reference_wrong": 0.1, "target_wrong": 0.1}
    one = Signals(**values, **rest, **wrong)
    panels = signals_figure({"a": one, "b": replace(one, late_auc=0.3)}).axes
    assert [axes.get_title() for axes in panels] == ["explained", SHOWN["late_auc"], "agreement"]
    ends = [[bar.get_x() + bar.get_width() for bar in axes.patches] for axes in panels]
    assert ends == [pytest.approx(found) for found in ([0.4, 0.4], [0.3, 0.7], [0.2, 0.2])]
    known = {name: replace(one, advantage=value) for name, value in (("a", 1.0), ("b", -1.0))}
    assert signals_figure(known).axes[0].get_title() == SHOWN["advantage"]

    gains = {"a": {"drrho": 0.03, "filter": -0.02}, "b": {"drrho": 0.01, "filter": 0.0}}
    expected = {
        label: {
            method: {"gain": gain, "spread": 0.01, "verdict": "open"}
            for method, gain in row.items()
        }
        for label, row in gains.items()
    }
    (axes,) = gains_figure(expected, True, 0.005).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["a, filter: open", "b, filter: open", "b, drrho: open", "a, drrho: open"]
    (line, _, (bars,)) = axes.containers[0]
    assert [*line.get_xdata()] == pytest.approx([-2, 0, 1, 3])
    assert [np.ptp(segment[:, 0]) for segment in bars.get_segments()] == pytest.approx([2] * 4)


def test_the_calibration_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no such file
    found = read_calibration("configs/classification/calibration_digits.json")
    assert {label: one.plane for label, one in found.items()} == {
        "drrho": (1.0, 1.0),
        "filter": (0.0, 1.0),
    }
    for one in found.values():
        ridge = one.ridge
        middle = dict(zip(ridge.names, ridge.center, strict=True))
        assert ridge.predict(middle) == pytest.approx(ridge.intercept)
        # What it is about: a reference that knows held-out data better is worth more.
        better = middle | {"advantage": middle["advantage"] + 0.5}
        assert ridge.predict(better) > ridge.intercept


CALIBRATION = [
    *UNITS,
    "reference=null",
    "studies.calibration.axes={data: {few: {task.n: 32}, many: {task.n: 64}}}",
    REFERENCES.replace("references=", "studies.calibration.references="),
    "studies.calibration.methods={steered: {name: drrho}}",
    "studies.calibration.plane={steered: [1.0, 1.0]}",
    "studies.calibration.seeds=[0, 1]",
    "studies.calibration.metric=seen/likelihood",
    "studies.calibration.part=first",
]


def made_calibration(tmp_path):
    folder = tmp_path / "calibration"
    if not folder.is_dir():
        folder.mkdir()
        study("calibration", config_of(folder, *CALIBRATION))
    return folder / "runs/study/calibration.json"


def test_calibration(tmp_path):
    file = made_calibration(tmp_path)
    folder, rows = file.parent, json.loads(file.read_text())
    combinations = [row for row in rows if row["kind"] == "combination"]
    assert [(row["cell"], row["reference"]) for row in combinations] == [
        ("data=few", "long"),
        ("data=few", "short"),
        ("data=many", "long"),
        ("data=many", "short"),
    ]
    records = {record.label: record for record in Store(folder).all()}
    for row in combinations:  # the gain is the difference of what the runs scored
        cell, label = row["cell"], row["reference"]
        gains = [
            records[f"{cell}-{label}-steered-seed{seed}"].metrics["seen/likelihood"]
            - records[f"{cell}-unguided-seed{seed}"].metrics["seen/likelihood"]
            for seed in (0, 1)
        ]
        assert row["gains"]["steered"]["value"] == pytest.approx(np.mean(gains))
    (fitted,) = [row for row in rows if row["kind"] == "calibration"]
    assert fitted["ridge"]["cases"] == 4
    text = again(folder, "calibration")
    assert "foreseen in 4 combinations" in text
    assert (folder / "calibration.png").is_file()


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("audit", "studies.audit.share=0", r"share: expected in \(0, 1\], got 0"),
        ("audit", "references={}", "reference: the study needs one"),
        ("audit", "studies.audit.calibration=none.json", "none.json is no result of a calibration"),
        (
            "audit",
            "studies.audit.part=nowhere",
            "the task has no part 'nowhere'; it has train, first",
        ),
        (
            "audit",
            "references={a: {name: linear}, b: {name: linear}}",
            "a-on-train and .*b-on-train are",
        ),
        ("calibration", "studies.calibration.axes={}", "axes: empty; name at least one"),
        (
            "calibration",
            "studies.calibration.axes={a: {b: {}}}",
            "axes: one data set; name at least",
        ),
        ("calibration", "studies.calibration.axes={a: {b: 3}}", "axes.a.b: expected changes such"),
        (
            "calibration",
            "studies.calibration.axes={data: {few: {}, many: {task.n: 64}}}",
            "studies.calibration: data=few-probe-on-train and data=many-probe-on-train are the same",
        ),
        ("calibration", "studies.calibration.plane={x: [0]}", "plane.x: no such label in methods"),
        ("gallery", "studies.gallery.shown=0", "shown: expected at least 1, got 0"),
        ("gallery", "studies.gallery.tau=-1", "tau: expected above 0, got -1"),
        ("gallery", "studies.gallery.precision_at=[]", "precision_at: expected numbers >= 1"),
        ("gallery", "studies.gallery.kappa=0", "every weight is the same"),
        ("gallery", "reference={name: linear}", "Toy shows no examples: it has no exhibits"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, name, word, says):
    words = [REFERENCES, *CALIBRATION, word]
    with pytest.raises(SteeringError, match=says):
        study(name, config_of(tmp_path, *words))


def test_a_run_that_is_the_probe_of_other_data_keeps_its_place(tmp_path):
    words = [
        "studies.calibration.axes={n: {few: {train.samples: 80}, many: {train.samples: 160}}}",
        "studies.calibration.references={own: {name: linear, train: {optimizer.lr: 0.01}}}",
        "studies.calibration.share=0.5",
    ]
    config = config_of(tmp_path, *CALIBRATION, *words)
    asks = Calibration(CalibrationOptions(**config.studies["calibration"])).wanted(config, [])
    places = {ask.key: ask.axes for ask in asks}  # as the driver keeps them: the last one's
    roles = [axes["role"] for axes in places.values()]
    assert roles.count("unguided") == 2 * 2  # two cells, two seeds
    assert roles.count("probe") == 1


def test_gallery_of_digits_with_wrong_labels(tmp_path):
    words = ["smoke=true", f"output={tmp_path}", "studies.gallery={tau: 4.0, kappa: 2.0, shown: 6}"]
    config = load_config(HERE.parents[1] / "configs/classification/gallery.yaml", words)
    study("gallery", config)
    folder = tmp_path / "gallery-digits-smoke"
    cards = json.loads((folder / "gallery.json").read_text())
    lines = [*csv.DictReader((folder / "gallery.csv").read_text().splitlines())]
    assert len(cards) == 12
    own = np.array([float(line["target_loss"]) for line in lines])
    guide = np.array([float(line["reference_loss"]) for line in lines])
    log_p = own / 4 - 2 * guide
    weight = np.exp(log_p) / np.exp(log_p).mean()
    for card in cards:
        assert card["weight"] == pytest.approx(weight[card["number"]], rel=1e-3)
    assert [card["number"] for card in cards[:6]] == np.argsort(-weight)[:6].tolist()
    assert [card["number"] for card in cards[6:]] == np.argsort(weight)[:6].tolist()
    assert lines[cards[6]["number"]]["rank"] == "1"
    wrong = np.array([line["known_wrong"] == "1" for line in lines])
    assert 0.3 < wrong.mean() < 0.5
    for card in cards:  # the text says so where the label is not the source's
        assert card["wrong"] == wrong[card["number"]] == ("(source: " in card["text"])
    page = (folder / "gallery.html").read_text()
    assert page.count("data:image/png;base64,") == 12 + 1  # cards, and the histogram
    assert "<script" not in page
    assert "http" not in page
    text = again(folder, "gallery")
    first = wrong[np.argsort(weight, kind="stable")[:10]].mean()
    assert f"| low weight | {100 * first:.1f} |" in text
    assert "confident learning (reference)" in text


def test_gallery_of_pairs(tmp_path):
    """Losses are made of features; texts are escaped; half of the pairs are known to be wrong."""
    words = [f"task={{name: '{HERE}/gallery_task.py:Seen', n: 40}}", "train.samples=64"]
    words += ["studies.gallery={shown: 4, precision_at: [5, 500], csv: false}", "train.threads=1"]
    study("gallery", config_of(tmp_path, *words))
    folder = tmp_path / "runs/study"
    cards = json.loads((folder / "gallery.json").read_text())
    assert [card["wrong"] for card in cards] == [card["number"] % 2 == 1 for card in cards]
    guides = [card["reference_loss"] for card in cards]
    assert guides[:4] == sorted(guides[:4])  # the filter turns up what the reference finds easy
    assert max(guides[:4]) < min(guides[4:])
    page = (folder / "gallery.html").read_text()
    assert page.count("<img") == 8 + 1
    assert f"&lt;b&gt;caption &amp; {cards[0]['number']}&lt;/b&gt;" in page
    assert "<b>" not in page
    assert not (folder / "gallery.csv").exists()
    text = again(folder, "gallery")
    assert "50.0 % of all are wrong" in text
    assert "confident learning" not in text  # captions are no classes
    assert "at 500" not in text


def test_pages_are_drawn_without_torch(tmp_path):
    study("audit", config_of(tmp_path, *UNITS, "reference=null", REFERENCES))
    code = (
        "import sys; from steering.cli import main; assert main(['report', sys.argv[1]]) == 0;"
        "import steering.studies as s; s.known_studies();"
        "bad = {'torch', 'omegaconf', 'steering_tasks'} & set(sys.modules); assert not bad, bad"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs/study")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
