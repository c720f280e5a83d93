"""The order of examples: a bijection, seeded, the same for any number of ranks, in O(batch)
memory."""

import tracemalloc

import numpy as np
import pytest

from steering.errors import SteeringError
from steering.training.plan import Plan, shuffled

SIZES = [*range(1, 301), *(2**k + d for k in range(9, 14) for d in (-1, 0, 1))]


def test_shuffled_is_a_bijection():
    for n in SIZES:
        np.testing.assert_array_equal(
            np.sort(shuffled(np.arange(n), n, 3, 1)), np.arange(n), err_msg=f"n = {n}"
        )


def test_one_position_does_not_depend_on_the_others_asked_for():
    whole = shuffled(np.arange(100), 100, 5)
    np.testing.assert_array_equal([shuffled(np.array([i]), 100, 5)[0] for i in range(100)], whole)


def test_every_key_changes_the_order():
    orders = {
        tuple(shuffled(np.arange(50), 50, seed, epoch)) for seed in range(10) for epoch in range(10)
    }
    assert len(orders) == 100


def test_every_example_is_equally_likely_at_every_position():
    n, runs = 20, 1500
    orders = np.array([shuffled(np.arange(n), n, seed, 0) for seed in range(runs)])
    counts = np.array([np.bincount(column, minlength=n) for column in orders.T])
    deviation = (counts - runs / n) / np.sqrt(runs / n * (1 - 1 / n))  # about standard normal
    assert np.abs(deviation).max() < 4.5
    assert deviation.std() == pytest.approx(1, abs=0.15)


def test_two_thousand_million_examples_cost_the_memory_of_a_batch():
    plan = Plan(2 * 10**9, 4096, 10**10, seed=0)
    tracemalloc.start()
    index = plan.indices(plan.steps_per_epoch - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4096 * 8 * 40
    assert len(set(index)) == 4096
    assert 0 <= index.min() < 10**8
    assert 1.9e9 < index.max() < 2e9


def test_an_epoch_draws_without_replacement_and_drops_the_remainder():
    plan = Plan(n=103, batch_size=10, samples=400, seed=7)
    assert (plan.steps, plan.steps_per_epoch) == (40, 10)
    batches = list(plan.batches(0))
    assert [epoch for epoch, _ in batches] == [step // 10 for step in range(40)]
    for epoch in range(4):
        drawn = np.concatenate([index for of, index in batches if of == epoch])
        assert len(set(drawn)) == len(drawn) == 100
    left_out = [
        set(range(103)) - set(np.concatenate([i for of, i in batches if of == e])) for e in range(4)
    ]
    assert len({frozenset(left) for left in left_out}) > 1  # not the same three for ever


def test_orders_differ_between_epochs_and_seeds():
    one, other = Plan(64, 16, 640, seed=0), Plan(64, 16, 640, seed=1)
    assert not np.array_equal(one.indices(0), one.indices(4))
    assert not np.array_equal(one.indices(0), other.indices(0))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_parts_of_the_ranks_joined_are_the_global_batch(ranks):
    plan = Plan(n=100, batch_size=16, samples=320, seed=2)
    for step in range(plan.steps):
        parts = [plan.indices(step, rank, ranks) for rank in range(ranks)]
        np.testing.assert_array_equal(np.concatenate(parts), plan.indices(step))


def test_a_plan_can_begin_anywhere():
    plan = Plan(n=50, batch_size=8, samples=200, seed=0)
    for (epoch, index), (later_epoch, later) in zip(
        list(plan.batches(0))[11:], plan.batches(11), strict=True
    ):
        assert epoch == later_epoch
        np.testing.assert_array_equal(index, later)


def test_samples_are_rounded_down_to_whole_steps():
    assert Plan(n=50, batch_size=8, samples=39, seed=0).steps == 4


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        SteeringError, match=r"train.batch_size: 9 is more than the 8 training examples"
    ):
        Plan(n=8, batch_size=9, samples=9, seed=0)


@pytest.mark.parametrize(("batch", "n"), [(6, 100), (5000, 12000)])
def test_batches_are_the_steps_one_by_one_from_any_start(batch, n):
    """However many are worked out together."""
    plan = Plan(n, batch, samples=batch * 40, seed=3)
    for start, rank, world in ((0, 0, 1), (7, 1, 2), (39, 0, 1), (40, 0, 1)):
        found = [*plan.batches(start, rank, world)]
        assert len(found) == 40 - start
        for step, (epoch, indices) in enumerate(found, start):
            assert epoch == plan.epoch(step)
            assert np.array_equal(indices, plan.indices(step, rank, world))
