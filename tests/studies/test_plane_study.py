"""The study of the steering plane, small: its cells' weights, its rounds, and what it reports."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from steering.analysis.halves import Half
from steering.analysis.halving import Round
from steering.analysis.plane import Cell, cell_of, group
from steering.analysis.trials import TUNING, Trials
from steering.cli import main
from steering.commands.studies import study
from steering.config import load_config, with_method
from steering.errors import ConfigError
from steering.items import Pairs, Units
from steering.methods import build_method
from steering.runs.record import Metric, RunRecord, Scores, write_scores
from steering.runs.store import Store
from steering.studies.plane import Plane, PlaneOptions
from steering.studies.plane_figure import figure

UNITS = ["task.kind=units", "train.threads=1", "train.samples=160", "method=erm"]
SMALL = [
    "studies.plane.sharpness=[0, 1]",
    "studies.plane.trust=[0, 1]",
    "studies.plane.shares=[0.5, 1]",
    "studies.plane.seeds=[1, 2]",
    "studies.plane.report_seeds=2",
    "studies.plane.metric=seen/likelihood",
]


def config_of(tmp_path, *words):
    return load_config(toys.write_config(tmp_path), words)


def method_of(tmp_path, cell, unit, **options):
    section = Plane(PlaneOptions(**options)).section(cell)
    config = with_method(config_of(tmp_path), section, "here")
    return build_method(config.method.name, config.method.options, 32, unit=unit)


@pytest.mark.parametrize("x", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("y", [0.0, 0.5, 2.0])
def test_a_cell_of_examples_has_the_weights_of_the_plane(tmp_path, x, y):
    """p ∝ exp(x·ℓ − y·ℓ_ref), by hand; the gradient of the loss is Σ p ∇ℓ."""
    target, guide = torch.randn(2, 7, dtype=torch.float64, generator=torch.manual_seed(3)).abs()
    target.requires_grad_()
    step = method_of(tmp_path, Cell(x, y), "example")(Units(target, guide))
    (found,) = torch.autograd.grad(step.loss, target)
    wanted = (x * target.detach() - y * guide).softmax(0)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("x", [5.0, 14.0])
@pytest.mark.parametrize("y", [0.0, 5.0, 14.0])
def test_a_cell_of_negatives_has_the_weights_of_the_plane(tmp_path, x, y):
    """The same of every anchor's negatives, ℓ_ij = s_ij − s_ii; here without the margin."""
    image, text, other, more = torch.nn.functional.normalize(
        torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.manual_seed(4)), dim=-1
    )
    image.requires_grad_()
    method = method_of(tmp_path, Cell(x, y), "pair", method={"epsilon": 0.0})
    step = method(Pairs(image, text, torch.arange(6), other, more))
    (found,) = torch.autograd.grad(step.loss, image)
    total = 0.0
    for s, r in ((image @ text.T, other @ more.T), (text @ image.T, more @ other.T)):
        loss, guide = (one - one.diagonal()[:, None] for one in (s, r))
        free = torch.eye(6, dtype=torch.bool)
        p = (x * loss.detach() - y * guide).masked_fill(free, -math.inf).softmax(-1)
        total = total + (p * loss).sum(-1).mean() / 2
    (wanted,) = torch.autograd.grad(total, image)
    torch.testing.assert_close(found, wanted)


def test_the_diagonal_is_drrho_as_published_and_the_origin_plain(tmp_path):
    plane = Plane(PlaneOptions())
    assert plane.section(Cell(0.0, 0.0)) == {"name": "erm"}
    ray = with_method(config_of(tmp_path), plane.section(Cell(0.5, 0.5)), "here")
    published = with_method(config_of(tmp_path), {"name": "drrho", "tau": 2.0}, "here")
    assert ray.method == published.method


def test_the_outer_plane_weighs_pairs_on_top_of_the_same_inner_risk():
    inner = {"inner": {"tau": 0.05}, "outer": {"estimator": "batch"}}
    plane = Plane(PlaneOptions(adversary="outer", method=inner))
    assert plane.section(Cell(2.0, 1.0)) == {
        "name": "nested",
        "inner": {"tau": 0.05},
        "outer": {"estimator": "batch", "tau": 0.5, "strength": 0.5, "prior": 0.0},
    }
    origin = plane.section(Cell(0.0, 0.0))
    assert (origin["outer"]["tau"], origin["outer"]["prior"]) == (math.inf, 0.0)
    given = Plane(PlaneOptions(adversary="outer", unguided={"name": "erm"}))
    assert given.section(Cell(0.0, 0.0)) == {"name": "erm"}


def values(record, tuning):
    scores = record.scores()["seen/likelihood"].values
    return scores[Half(0, tuning=tuning).mask(len(scores))].mean()


def test_rounds_choice_and_report(tmp_path, capsys):
    config = config_of(tmp_path, *UNITS, *SMALL, "studies.plane.sharpness=[0, 1, 2]")
    study("plane", config)
    folder = tmp_path / "runs/study"
    records = {r.label: r for r in Store(folder).all() if "stage" in r.axes}
    rows = json.loads((folder / "plane.json").read_text())
    # The first round by hand: of each axis, the diagonal and the rest the better half goes on.
    first = {
        (x, y): values(records[f"x{x}-y{y}-80-seed0"], tuning=True)
        for x in (0, 1, 2)
        for y in (0, 1)
    }
    families = [[(1, 1)], [(0, 1)], [(1, 0), (2, 0)], [(0, 0), (2, 1)]]
    left = [max(mine, key=lambda cell: first[cell]) for mine in families]
    second = {(r.axes["x"], r.axes["y"]) for r in records.values() if r.axes["share"] == 1.0}
    assert second >= {*left, (0, 0)}
    cells = {(row["x"], row["y"]): row for row in rows if row["kind"] == "cell"}
    assert {cell for cell, row in cells.items() if row["round"] == 2} == {*left}
    scores = {
        (x, y): np.mean([values(records[f"x{x}-y{y}-160-seed{s}"], tuning=True) for s in (0, 1)])
        for x, y in left
    }
    (best,) = [row for row in rows if row.get("role") == "best"]
    assert (best["x"], best["y"]) == max(scores, key=lambda cell: scores[cell])
    # The report has other seeds and the other half.
    for row in rows:
        if row["kind"] == "choice":
            name = f"x{row['x']:g}-y{row['y']:g}-160"
            report = [values(records[f"{name}-seed{seed}"], tuning=False) for seed in (2, 3)]
            plain = [values(records[f"x0-y0-160-seed{seed}"], tuning=False) for seed in (2, 3)]
            assert row["value"] == pytest.approx(np.mean(report))
            assert row["gain"]["value"] == pytest.approx(np.mean(report) - np.mean(plain))
    assert (folder / "plane.png").is_file()

    before = {path: path.read_bytes() for path in folder.glob("*/record.json")}
    study("plane", config)  # nothing is done again
    assert {path: path.read_bytes() for path in folder.glob("*/record.json")} == before
    made = [folder / name for name in ("plane.md", "plane.json")]
    texts = [path.read_text() for path in made]
    for path in made:
        path.unlink()
    assert main(["report", str(folder)]) == 0  # from the records alone
    assert [path.read_text() for path in made] == texts
    assert "would have trained on 1,920 samples" in texts[0]
    assert "on the other half" in capsys.readouterr().out


def trials_of(folder, gains):
    """A race of one round whose cells have these accuracies above ERM."""
    records = []
    for number, (cell, gain) in enumerate({Cell(0.0, 0.0): 0.0, **gains}.items()):
        place = folder / str(number)
        place.mkdir(parents=True)
        hits = (np.arange(200) < 100 + 100 * gain) * 1.0
        write_scores(place / "scores.npz", {"m": Scores(hits, np.ones(200))})
        axes = {"x": cell.x, "y": cell.y, "stage": TUNING, "share": 1.0, "seed": 0}
        more = {"metrics": {"m": hits.mean()}, "meaning": {"m": Metric(of=("m",))}, "folder": place}
        records.append(RunRecord(str(number), "train", str(number), axes=axes, **more))
    return Trials(records, cell_of, [*gains], [Round(1.0, 1)], 0.5, "s", "m", family=group)


def seen(drawn):
    """Label -> what the legend shows."""
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_the_figure_shows_the_contours_the_ray_and_the_axes_alone(tmp_path):
    grid = [Cell(x, y) for x in (0.0, 0.5, 2.0) for y in (0.0, 1.0, 2.0)]
    gains = {cell: 0.1 * cell.y - 0.02 * cell.x for cell in grid}
    gains[Cell(0.0, 0.0)] = 0.0
    trials = trials_of(tmp_path / "a", gains)
    drawn = figure(trials, 1.0, "ERM")
    axes = drawn.axes[0]
    names = ["* not told from the best", "ERM", "DRRho as published", "best cell", "DRRho, κ = 1/τ"]
    assert seen(drawn) == names
    assert sum("ContourSet" in type(one).__name__ for one in axes.collections) == 2
    # Both axes are stretched alike, so that the ray is straight: 0.5 is at 1, 2 at 3.
    assert [*axes.get_xticks()] == [0, 1, 3]
    assert [*axes.get_yticks()] == [0, 2, 3]
    lines = {line.get_label(): line for line in axes.lines}
    assert [*lines["best cell"].get_xydata()[0]] == [0, 3]
    assert [*lines["DRRho as published"].get_xydata()[0]] == [2, 2]  # 1 = 0.5·2¹
    ray = lines["DRRho, κ = 1/τ"]
    assert [*ray.get_xdata()] == [*ray.get_ydata()] == [0, 3.5]
    texts = [text.get_text() for text in axes.texts]
    assert "filter" in texts
    assert "adversary alone" in texts
    best = trials.gain(Cell(0.0, 2.0), Cell(0.0, 0.0)).value
    assert f"{100 * best:+.1f}* (1)" in texts
    # Without the origin, and where κ is far from 1/τ: none of these, and the legend does not say so.
    far = {Cell(x, y): 0.01 * (x + y) for x in (7.0, 14.0) for y in (0.5, 1.0)}
    drawn = figure(trials_of(tmp_path / "b", far), None, "ERM")
    assert seen(drawn) == ["* not told from the best", "best cell"]
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert not {"filter", "adversary alone"} & {*texts}
    # A plane of pairs, which the ray crosses though few values stand in both lists.
    pairs = {Cell(x, y): 0.01 * y for x in (7.0, 14.0, 28.0) for y in (0.0, 5.0, 20.0)}
    drawn = figure(trials_of(tmp_path / "c", pairs), 14.0, "unguided")
    assert seen(drawn) == ["* not told from the best", *names[2:]]
    assert "adversary alone" in [text.get_text() for text in drawn.axes[0].texts]


def test_the_figure_has_holes_where_a_cell_is_no_number_and_outlines_the_region(tmp_path):
    grid = [Cell(float(x), float(y)) for x in range(3) for y in range(3)]
    gains = {cell: 0.2 * cell.y for cell in grid}
    trials = trials_of(tmp_path, gains)
    lost = replace(trials.done[5], metrics={}, meaning={}, summary={"diverged": "by step 3"})
    assert (lost.axes["x"], lost.axes["y"]) == (1.0, 2.0)
    done = [lost if one is trials.done[5] else one for one in trials.done]
    trials = replace(trials, done=done, _runs={})
    axes = figure(trials, None, "ERM").axes[0]
    dots = next(one for one in axes.collections if len(one.get_offsets()) == 8)
    assert [1.0, 2.0] not in dots.get_offsets().tolist()
    (outline,) = [one for one in axes.collections if one.get_label() == "* not told from the best"]
    length = sum(math.dist(*side) for side in outline.get_segments())
    inside = {(cell.x, cell.y) for cell in trials.region}
    steps = ((1, 0), (-1, 0), (0, 1), (0, -1))
    around = sum((x + dx, y + dy) not in inside for x, y in inside for dx, dy in steps)
    assert 0 < len(inside) < 8
    assert length == pytest.approx(around)


@pytest.mark.parametrize("xs", [[0.0], [0.0, 1.0]])
def test_a_row_or_a_few_cells_are_drawn_as_dots(tmp_path, xs):
    gains = {Cell(x, 1.0): 0.1 for x in xs}
    axes = figure(trials_of(tmp_path, gains), 1.0, "ERM").axes[0]
    assert not any("ContourSet" in type(one).__name__ for one in axes.collections)
    assert any(len(one.get_offsets()) == len(xs) for one in axes.collections)


@pytest.mark.parametrize("adversary", ["inner", "outer"])
def test_both_planes_of_pairs(tmp_path, adversary):
    """The negatives' plane has no x = 0 here: equal weights over negatives leave no contrast."""
    sharpness = {"inner": "[7, 14]", "outer": "[0, 1]"}[adversary]
    words = [
        *SMALL,
        f"studies.plane.adversary={adversary}",
        f"studies.plane.sharpness={sharpness}",
        f"studies.plane.published={ {'inner': 14, 'outer': 'null'}[adversary] }",
        "studies.plane.metric=seen/image_to_text_R@1",
    ]
    study("plane", config_of(tmp_path, "train.threads=1", "train.samples=64", *words))
    rows = json.loads((tmp_path / "runs/study/plane.json").read_text())
    assert sum(row["kind"] == "cell" for row in rows) == 4
    roles = [row["role"] for row in rows if row["kind"] == "choice"]
    assert roles[0] == "unguided"
    assert roles[-1] == "best"
    assert ("DRRho" in roles) == (adversary == "inner")


def test_a_plane_of_tokens(tmp_path):
    """The language task: weights of tokens, and a perplexity of which less is better."""
    words = "the a cat dog tree bird sees hears near under".split()  # noqa: SIM905
    text = " ".join(np.random.default_rng(0).choice(words, 900))
    (tmp_path / "few.txt").write_text("\n\n".join([text[:2000], text[2000:]]))
    shape = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}
    (tmp_path / "tiny.json").write_text(json.dumps(shape))
    model = f"{{name: {tmp_path}/tiny.json}}"
    (tmp_path / "tokens.yaml").write_text(f"""name: tokens
output: {tmp_path}/runs
task:
  name: language
  length: 16
  data: {{source: files, separator: "\\n\\n", held_out: 0.5, paths: {{few: {tmp_path}/few.txt}}}}
target: {model}
reference: {{name: {tmp_path}/tiny.json, cache: auto, train: {{train.samples: 160, optimizer.lr: 0.02}}}}
method: erm
optimizer: {{lr: 1.0e-2}}
train: {{samples: 64, batch_size: 16, threads: 1}}
device: cpu
""")
    metric = "studies.plane.metric=perplexity/average"
    words = [*SMALL, "studies.plane.shares=[1]", "studies.plane.seeds=[1]", metric]
    study("plane", load_config(tmp_path / "tokens.yaml", words))
    folder = tmp_path / "runs/tokens"
    rows = json.loads((folder / "plane.json").read_text())
    cells = {(row["x"], row["y"]): row["gain"]["value"] for row in rows if row["kind"] == "cell"}
    assert {*cells} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    records = {record.label: record for record in Store(folder).all()}
    used = records["x1-y1-64-seed0"].config()["method"]
    assert (used["name"], used["tau"], used["strength"]) == ("drrho", 1.0, 1.0)
    (best,) = [row for row in rows if row.get("role") == "best"]
    assert (best["x"], best["y"]) == min(cells, key=lambda cell: cells[cell])
    assert "perplexity/average ↓" in (folder / "plane.md").read_text()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("reference=null", "reference: the study needs one"),
        ("studies.plane.adversary=middle", "adversary: expected inner or outer, got 'middle'"),
        ("studies.plane.sharpness=[]", "sharpness: expected different numbers ≥ 0"),
        ("studies.plane.trust=[1, 1]", "trust: expected different numbers ≥ 0"),
        ("studies.plane.trust=[-1]", "trust: expected different numbers ≥ 0"),
        ("studies.plane.shares=[1, 0.5]", "shares: expected rising numbers"),
        ("studies.plane.shares=[1]", "seeds: expected 1 rising numbers"),
        ("studies.plane.seeds=[2, 1]", "seeds: expected 2 rising numbers"),
        ("studies.plane.seeds=[0, 1]", "seeds: expected 2 rising numbers"),
        ("studies.plane.shares=[0.99, 1]", "make runs of one length; lengthen train.samples"),
        ("studies.plane.survivors=0", "survivors: expected a number in"),
        ("studies.plane.report_seeds=0", "report_seeds: expected at least 1"),
        ("studies.plane.split=-1", "split: expected a number ≥ 0"),
        ("studies.plane.published=0", "published: expected above 0, or null"),
        (
            "studies.plane.unguided={name: drrho, tau: 1.0, strength: 0.0}",
            "studies.plane: x0-y0-80-seed0 and x1-y0-80-seed0 are the same run",
        ),
        ("studies.plane.method={radios: 1}", "unknown key 'studies.plane.method.radios'"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, word, says):
    few = "train.samples=32" if "0.99" in word else "train.samples=160"
    with pytest.raises(ConfigError, match=says):
        study("plane", config_of(tmp_path, *UNITS, *SMALL, few, word))
