"""Weights that `estimate` returns under several ranks: each its own part of those of one process."""

from typing import Any

import pytest
import torch
from test_ranks import Threads
from torch import Tensor, nn

from steering import losses as modules

B, RANKS = 8, 2


def noise(seed: int) -> Tensor:
    return torch.randn(B, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


GROUPS = torch.tensor([0, 1, 1, 0, 0, 0, 1, 0])
CASES: dict[str, Any] = {
    "DRRho": (lambda: modules.DRRho(gamma=1.0), ()),
    "SoftFilter": (modules.SoftFilter, ()),
    "Rho1": (lambda: modules.Rho1(share=0.4), ()),
    "GroupDRO": (lambda: modules.GroupDRO(2), (GROUPS,)),
    "DoReMi": (lambda: modules.DoReMi(2), (GROUPS,)),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rank_has_the_weights_of_its_own_items(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, more = CASES[name]
    losses, reference = noise(0).abs(), noise(1).abs()
    whole = make().double().estimate(losses, reference, *more).weights
    ranks = Threads(RANKS)
    ranks.install(monkeypatch)

    def job(rank: int) -> tuple[Tensor, nn.Module]:
        part = slice(rank * B // RANKS, (rank + 1) * B // RANKS)
        module = make().double()
        found = module.estimate(losses[part], reference[part], *(one[part] for one in more))
        return found.weights, module

    parts = [weights for weights, _ in ranks.run(job)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["GroupDRO", "DoReMi"])
def test_a_batch_in_which_nothing_counts_is_refused_and_leaves_no_trace(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing over all ranks, that is: one of them may well be empty."""
    make, (groups,) = CASES[name]
    module, nothing = make(), torch.zeros(B, dtype=torch.bool)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="mask: row 0 of the losses has no items"):
        module(noise(0).abs(), noise(1).abs(), groups, nothing)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key

    ranks = Threads(RANKS)
    ranks.install(monkeypatch)

    def job(rank: int) -> tuple[Tensor, nn.Module]:
        steer, mask = make(), nothing | (rank == 1)
        return steer.estimate(noise(0).abs(), noise(1).abs(), groups, mask).weights, steer

    empty, full = (weights for weights, _ in ranks.run(job))
    assert not empty.any()
    torch.testing.assert_close(full.sum(), torch.ones((), dtype=full.dtype))
