"""The picture of the evaluated examples with the highest loss: when it is drawn, and what stands on
its cards."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steering.errors import SteeringError
from steering.exhibits import Exhibit, Judged, thumbnail
from steering.schema import BoardConfig
from steering.training.board.cards import LETTERS, LETTERS_ALONE, Titled, cards_figure
from steering.training.board.pictures import worst_figure
from steering.training.loop import run

SIX = Judged(np.arange(6.0), lambda places: [Exhibit(f"number {n}") for n in places])


def drawn(folder: Path, judged: Judged | None, board: BoardConfig, **changes: object) -> list[int]:
    """Steps at which a run of 20 steps, evaluated after each fifth, has drawn the picture."""
    job = toys.make_job(folder, kind="units", eval_every=5, **changes)
    plain = job.task.evaluate
    job.task.evaluate = lambda *given: replace(plain(*given), judged=judged)
    run(replace(job, train=replace(job.train, board=board)))
    found = EventAccumulator(str(folder)).Reload()
    if "eval/worst" not in found.Tags()["images"]:
        return []
    return [one.step for one in found.Images("eval/worst")]


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [5, 10, 15, 20]), (7, [10, 15, 20]), (12, [15, 20]), (1000, [20])]
)
def test_it_is_drawn_as_often_as_the_other_pictures_and_at_the_end(
    tmp_path: Path, every: int, steps: list[int]
) -> None:
    board = BoardConfig(histograms_every=0, pictures_every=every, examples=4)
    assert drawn(tmp_path, SIX, board) == steps


def _gone(_: object) -> list[Exhibit]:
    raise SteeringError("the data are gone")


@pytest.mark.parametrize(
    ("judged", "changes"),
    [
        (SIX, {"pictures_every": 0}),
        (SIX, {"examples": 0}),
        (None, {}),
        (Judged(np.zeros(3), _gone), {}),
        (Judged(np.zeros(0), lambda _: []), {}),
    ],
)
def test_no_picture_where_none_is_wanted_or_can_be_had(
    tmp_path: Path, judged: Judged | None, changes: dict[str, int]
) -> None:
    board = BoardConfig(**({"pictures_every": 10} | changes))
    assert drawn(tmp_path, judged, board) == []


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_the_worst_first_under_its_loss_and_what_was_said_behind_an_arrow() -> None:
    losses = np.array([0.5, 2.25, 1.0])
    picture = thumbnail(Image.new("L", (8, 8)))
    shown = [Exhibit(f"class {n}", picture, said=f"class {n + 1}") for n in range(3)]
    figure = worst_figure(Judged(losses, lambda places: [shown[n] for n in places]), 2)
    assert words(figure) == ["loss 2.25", "class 1\n→ class 2", "loss 1", "class 2\n→ class 3"]
    assert len(figure.axes[0].images) == 2


def test_a_card_takes_any_text_and_picture_without_a_warning(tmp_path: Path) -> None:
    texts = ["$5 and $6 \\alpha", "漢 \x00 \x1b", "W" * 300, "a\n\nb\tc", "", "\u202eright to left"]
    pictures = [Image.new("RGB", (300, 20)), Image.new("L", (1, 90), 255)]
    cards = [Titled(Exhibit(text), "title") for text in texts]
    cards += [Titled(Exhibit(texts[2], thumbnail(one), "said"), "×1", "red") for one in pictures]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = cards_figure({"most": cards, "least": cards[:1]})
        figure.savefig(tmp_path / "figure.png")
    lines = ["".join(card.lines()) for card in cards]
    assert lines[0] == "$5 and $6 \\alpha"
    assert (len(lines[2]), len(lines[-1])) == (LETTERS_ALONE, LETTERS + len("→ said"))
    assert lines[3] == "a b c"
    for text in figure.axes[0].texts:  # every card is on the paper
        assert not (text.get_parse_math() and "$" in text.get_text())
        (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
        assert left <= text.get_position()[0] <= right
        assert top <= text.get_position()[1] <= bottom
    assert {"most", "least"} <= set(words(figure))
