"""Loss items: what both kinds share, and what is refused. Their shapes: tests/dro/test_stochastic.py
and tests/contrastive/test_naive.py."""

import pytest
import torch

from steering.errors import SteeringError
from steering.items import LossItems, Pairs, Units, gathered, pairs_of, rows_of

UNITS = Units(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]))
PAIRS = Pairs(torch.eye(2), torch.eye(2), torch.arange(2))


def test_both_kinds_have_a_unit():
    assert isinstance(UNITS, LossItems)
    assert isinstance(PAIRS, LossItems)
    assert (UNITS.unit, PAIRS.unit) == ("example", "pair")
    assert Units(torch.ones(3), unit="token").unit == "token"
    with pytest.raises(TypeError, match="unit"):
        Pairs(torch.eye(2), torch.eye(2), torch.arange(2), unit="token")


def test_a_plain_batch_is_one_row_of_key_0():
    assert UNITS.rows.shape == ()
    assert UNITS.rows.dtype == torch.int64
    assert UNITS.rows == 0
    assert Units(torch.ones(3, device="meta")).rows.device.type == "meta"


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2, 2, 3)])
def test_several_rows_need_keys(shape):
    with pytest.raises(ValueError, match=r"rows must be \(.*\), one key per row .* got None"):
        Units(torch.ones(shape))
    assert (
        Units(torch.ones(shape), rows=torch.zeros(shape[:-1], dtype=torch.int64)).rows.shape
        == (shape[:-1])
    )


def test_items_of_the_wrong_kind_are_refused():
    assert rows_of(UNITS) is UNITS
    assert pairs_of(PAIRS) is PAIRS
    with pytest.raises(SteeringError, match=r"expected Units, .*got Pairs \(unit 'pair'\)"):
        rows_of(PAIRS)
    with pytest.raises(SteeringError, match=r"expected Pairs, .*got Units \(unit 'example'\)"):
        pairs_of(UNITS)


def test_gathering_keeps_everything_but_the_logits(monkeypatch):
    """Two ranks that hold the same."""
    monkeypatch.setattr("steering.distributed.active", lambda: True)
    monkeypatch.setattr("steering.distributed.gather", lambda x: torch.cat([x, x]))
    mask, groups = torch.tensor([True, False]), torch.tensor([3, 1])
    logits = torch.zeros(2, 4)
    one = Units(UNITS.target, UNITS.reference, None, mask, False, groups, logits, logits, "token")
    both = gathered(one)
    assert both.target.tolist() == [1, 2, 1, 2]
    assert both.reference.tolist() == [0.5] * 4
    assert both.mask.tolist() == [True, False, True, False]
    assert both.groups.tolist() == [3, 1, 3, 1]
    assert (both.logits, both.reference_logits) == (None, None)
    assert both.unit == "token"
    assert both.rows == 0
