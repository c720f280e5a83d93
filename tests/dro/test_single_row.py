"""A batch of examples is one row, and its key a number without axes: looking it up must make no GPU
wait and break no compiled graph. Checked on tensors that have a device but no values."""

import pytest
import torch
from adversaries import stochastic
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from steering.dro.online.estimator import picked
from steering.items import Units


def on_a_gpu(**options) -> Tensor:
    with FakeTensorMode(), torch.device("cuda"):
        risk = stochastic(3, tau=1.0, **options)
        losses = torch.rand(8, requires_grad=True)
        row = torch.zeros((), dtype=torch.int64)
        return risk(Units(losses, torch.rand(8), row)).loss


@pytest.mark.parametrize(
    "options",
    [{"gamma": 0.5}, {"gamma": 1.0}, {"estimator": "mirror_descent"}, {"estimator": "batch"}],
    ids=str,
)
def test_a_single_row_is_not_asked_for_its_number(options):
    assert on_a_gpu(**options).device.type == "cuda"


def test_indexing_by_a_number_would_ask():
    with FakeTensorMode(), torch.device("cuda"), pytest.raises(DataDependentOutputException):
        torch.zeros(3)[torch.zeros((), dtype=torch.int64)]


@pytest.mark.parametrize("rows", [1, [1], [2, 0], [[2, 0], [1, 1]], []])
def test_picked_is_a_copy_of_what_indexing_shows(rows):
    table, keys = torch.arange(3.0), torch.tensor(rows, dtype=torch.int64)
    found = picked(table, keys)
    assert torch.equal(found, table[keys])
    found.fill_(9.0)
    assert table.tolist() == [0.0, 1.0, 2.0]
