"""Schedules by their closed forms."""

import math

import pytest

from steering.schedules import Constant, Cosine, Linear


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_constant(progress):
    assert Constant(0.3)(progress) == 0.3


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Linear(0.0, 2.0), {0.0: 0.0, 0.25: 0.5, 1.0: 2.0}),
        (Linear(0.0, 2.0, begin=0.5), {0.0: 0.0, 0.5: 0.0, 0.75: 1.0, 1.0: 2.0}),
        (Linear(1.0, 0.0, begin=0.2, until=0.6), {0.1: 1.0, 0.4: 0.5, 0.6: 0.0, 0.9: 0.0}),
        (Linear(0.0, 1.0, cycles=2), {0.25: 0.5, 0.5: 0.0, 0.75: 0.5, 1.0: 1.0}),
        (Cosine(1.0, 0.0), {0.0: 1.0, 0.5: 0.5, 1.0: 0.0, 1 / 3: 0.75}),
        (Cosine(0.0, 4.0, until=0.5), {0.25: 2.0, 0.5: 4.0, 1.0: 4.0}),
        (Cosine(1.0, 0.0, cycles=4), {0.125: 0.5, 0.25: 1.0, 0.875: 0.5, 1.0: 0.0}),
    ],
)
def test_values(schedule, values):
    for progress, value in values.items():
        assert math.isclose(schedule(progress), value, abs_tol=1e-12), progress


@pytest.mark.parametrize("arguments", [{"begin": 0.5, "until": 0.5}, {"until": 1.5}, {"cycles": 0}])
@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_a_span_that_is_none(kind, arguments):
    with pytest.raises(ValueError, match="must be"):
        kind(0.0, 1.0, **arguments)
