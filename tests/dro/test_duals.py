"""Tables of running estimates that are split over the ranks, in half precision, or in a file."""

import math
import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from adversaries import built
from torch import nn

from steering import distributed
from steering.dro.online.estimators import MirrorDescentDual, MovingAverageDual
from steering.dro.online.row_table import Layout, RowTable, merged, split_state

SPLIT = Layout(split=True)


@pytest.fixture
def as_rank(monkeypatch):
    """Makes something as rank k of K would; for what needs no exchange."""

    def make(rank, count, build):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "active", lambda: count > 1)
            patch.setattr(distributed, "rank", lambda: rank)
            patch.setattr(distributed, "world_size", lambda: count)
            return build()

    return make


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["memory", "file"])
def layout(request, tmp_path):
    return lambda dtype="float32": Layout(dtype, str(tmp_path) if request.param == "file" else None)


def test_what_is_written_is_read_and_the_rest_was_never_visited(layout):
    table = RowTable(10, layout())
    rows, values = torch.tensor([[7, 0], [3, 9]]), torch.tensor([[1.5, 0.0], [-0.0, -math.pi]])
    assert not table.read(rows, False)[1].any()
    table.write(rows, values, False)
    found, known = table.read(torch.arange(10).view(2, 5), False)
    assert known.flatten().nonzero().flatten().tolist() == [
        0,
        3,
        7,
        9,
    ]  # a zero that is meant is known
    torch.testing.assert_close(found.flatten()[rows], values.abs() * values.sign(), rtol=0, atol=0)


def test_rows_of_several_numbers_and_a_single_row_of_any_shape(layout):
    table, wide = RowTable(5, layout()), RowTable(5, layout(), columns=3)
    for rows in (torch.tensor(2), torch.tensor([2]), torch.tensor([[2, 4]])):
        assert not wide.read(torch.tensor(1), False)[1]
        table.write(rows, torch.full(rows.shape, 7.0), False)
        wide.write(rows, torch.arange(3.0).expand(*rows.shape, 3), False)
        values, known = table.read(rows, False)
        assert values.shape == known.shape == rows.shape
        assert (values == 7).all()
        values, known = wide.read(rows, False)
        assert known.shape == rows.shape
        assert known.all()  # the zero among them is a value
        assert torch.equal(values.abs(), torch.arange(3.0).expand(*rows.shape, 3))


def test_half_precision_has_its_error_and_its_range(layout):
    table, values = RowTable(1000, layout("float16")), 8 * noise(1000)
    table.write(torch.arange(1000), values, False)
    found, known = table.read(torch.arange(1000), False)
    assert known.all()
    assert ((found - values).abs() <= values.abs() * 2**-11 + 1e-7).all()
    table.write(torch.tensor([1, 2, 3]), torch.tensor([1e6, -1e6, 1e-30]), False)
    found, known = table.read(torch.tensor([1, 2, 3]), False)
    assert found.tolist() == [65504, -65504, 0]
    assert known.all()


def test_double_keeps_half_precision_and_widens_single(layout):
    assert RowTable(3, layout("float16")).double().table.dtype == torch.float16
    wide = RowTable(3, Layout("float32", None, split=False)).double()
    wide.write(torch.tensor([1]), torch.tensor([math.pi], dtype=torch.float64), False)
    assert wide.read(torch.tensor([1]), False)[0].item() == math.pi


@pytest.mark.parametrize("name", ["moving_average", "mirror_descent"])
def test_a_layout_changes_no_result(layout, name):
    found, plain = (built(name, _kl(), 20, gamma=0.3, layout=x) for x in (layout(), None))
    for seed in range(5):
        rows = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:6]
        log_g = noise(6, seed)
        assert torch.equal(found.track(rows, log_g), plain.track(rows, log_g))


def _kl():
    from steering.dro import KL

    return KL()


@pytest.mark.parametrize("counts", [(1, 3), (3, 1), (2, 5), (5, 2), (4, 3), (1, 12), (12, 1)])
def test_parts_of_some_ranks_become_those_of_others(as_rank, counts):
    n, (before, after) = 11, counts
    rows, values = torch.tensor([10, 0, 4, 5, 7]), torch.tensor([1.0, 0.0, -2.0, 3.0, 0.5])

    def make():
        return nn.ModuleDict({"e": MovingAverageDual(n, gamma=0.5, layout=SPLIT)})

    old = [as_rank(rank, before, make) for rank in range(before)]
    for module in old:
        estimator = module["e"]
        if estimator.duals is None:
            estimator.remember(rows, values, False)
        else:
            estimator.duals.write(rows, values, False)  # each keeps what is its own
    states = [module.state_dict() for module in old]
    assert sum(len(state.get("e.duals.part", range(n))) for state in states) == n
    for rank in range(after):
        module = as_rank(rank, after, make)
        module.load_state_dict(merged(states, module) if before > 1 else states[0])
        estimator = module["e"]
        if estimator.duals is None:
            assert estimator.visited.nonzero().flatten().tolist() == [0, 4, 5, 7, 10]
            torch.testing.assert_close(estimator.log_u[rows], values, rtol=0, atol=0)
            continue
        duals = estimator.duals
        own = torch.arange(duals.first, duals.first + duals.count)
        expected = torch.zeros(n).index_put((rows,), values)[own]
        assert torch.equal(duals.table[: duals.count] + 0.0, expected)
        bits = duals.table[: duals.count].view(torch.int32)
        assert torch.equal(bits != 0, torch.isin(own, rows))


def test_every_row_has_one_owner(as_rank):
    for n in (1, 2, 7, 8, 9):
        for count in (1, 2, 3, 8):
            tables = [as_rank(rank, count, partial(RowTable, n, SPLIT)) for rank in range(count)]
            owners = torch.stack([table._mine(torch.arange(n)) for table in tables]).sum(0)
            assert (owners == 1).all(), (n, count)
            assert max(table.count for table in tables) <= math.ceil(n / count)


def test_parts_that_leave_gaps(as_rank):
    tables = [
        as_rank(rank, 3, lambda: nn.ModuleDict({"duals": RowTable(9, SPLIT)})) for rank in range(3)
    ]
    states = [table.state_dict() for table in tables]
    with pytest.raises(ValueError, match="of 9 rows leave gaps"):
        merged([states[0], states[2]])
    with pytest.raises(ValueError, match="of 9 rows leave gaps"):
        merged(states[:2])
    with pytest.raises(ValueError, match=r"rows \[0, 3\) of 9 are there, \[3, 6\) of 9 are wanted"):
        tables[1].load_state_dict(states[0])
    part = as_rank(0, 3, lambda: MirrorDescentDual(9, layout=SPLIT)).state_dict()
    with pytest.raises(ValueError, match="join the ranks' parts"):
        MirrorDescentDual(9).load_state_dict(part)


def test_what_is_split_is_told_apart(as_rank):
    module = as_rank(
        1, 2, lambda: nn.ModuleDict({"a": MovingAverageDual(6, layout=SPLIT), "b": nn.Linear(1, 1)})
    )
    rest, own = split_state(module)
    assert {*own} == {"a.duals.part", "a.duals.extent"}
    assert {*rest} == {"b.weight", "b.bias"}
    assert split_state(MovingAverageDual(6))[1] == {}


def test_two_thousand_million_examples(tmp_path):
    """4·10⁹ rows in a sparse file: what is not visited takes neither memory nor disk."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    average = MovingAverageDual(4 * 10**9, gamma=0.5, layout=Layout("float16", str(tmp_path)))
    rows = torch.tensor([0, 1, 3_999_999_999, 2_500_000_000])
    average.track(rows, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    found = average.track(rows, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0, 4.0]), rtol=2**-10, atol=0)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100e6
    assert not [*Path(tmp_path).iterdir()]  # the file has no name: it goes with the process


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int8"}, "duals must be one of float32, float16, got 'int8'"),
        ({"folder": "/nowhere/at/all"}, "duals_folder must"),
    ],
)
def test_bad_layouts(options, words):
    with pytest.raises(ValueError, match=words):
        Layout(**options)
