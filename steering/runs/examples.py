"""A run that keeps some training examples to look at, and what is known of all labels."""

from __future__ import annotations

from steering import distributed
from steering.exhibits import write_exhibits
from steering.runs.call import Call, Outcome
from steering.runs.store import require_same_found

KEEP_EXAMPLES = "steering.runs.examples:keep_examples"


def keep_examples(call: Call) -> Outcome:
    """Write the examples of the option "numbers", and the labels of all, beside the
    record.

    Raises:
        SteeringError: the data are not those that finished runs of the same task saw.
    """
    opened, ask = call.opened, call.ask
    data = opened.plain_data(opened.task.build(ask.config.target))
    found = {"task: data": opened.digest(data)}
    require_same_found(call.workshop.store.all(), ask.asked, found, call.folder)
    numbers = call.options["numbers"]
    if distributed.rank() == 0:
        shown = opened.task.exhibits(numbers) if numbers else []
        write_exhibits(call.folder, numbers, shown, opened.task.labels())
    return Outcome(found=found, summary={"examples": len(numbers)})
