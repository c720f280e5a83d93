"""A run that keeps some training examples to look at, and what is known of all labels."""

from __future__ import annotations

from steering import distributed
from steering.exhibits import write_exhibits
from steering.runs.execute import Outcome, Place
from steering.runs.store import require_same_found
from steering.runs.wanted import Ask

KEEP_EXAMPLES = "steering.runs.examples:keep_examples"


def keep_examples(ask: Ask, place: Place) -> Outcome:
    """Write the examples of `ask.about["arguments"]["numbers"]`, and the labels of all, beside the
    record.

    Raises:
        SteeringError: the data are not those that finished runs of the same task saw.
    """
    opened = place.workshop.opened(ask)
    data = opened.plain_data(opened.task.build(ask.config.target))
    found = {"task: data": opened.digest(data)}
    require_same_found(place.workshop.store.all(), ask.asked, found, place.folder)
    numbers = ask.about["arguments"]["numbers"]
    if distributed.rank() == 0:
        shown = opened.task.exhibits(numbers) if numbers else []
        write_exhibits(place.folder, numbers, shown, opened.task.labels())
    return Outcome(found=found, summary={"examples": len(numbers)})
