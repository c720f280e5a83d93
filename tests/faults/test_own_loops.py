"""Faults of the five lines in a loop of one's own."""

import pytest
import torch

import steering
import steering.distributed


@pytest.mark.parametrize("divergence", ["kl", "chi2", "cvar", "tv"])
def test_the_mask_of_the_five_lines_is_the_batch_without_the_others(divergence):
    options = {"divergence": divergence, "gamma": 1.0} | (
        {"level": 0.5} if divergence == "cvar" else {}
    )
    losses, reference = torch.randn(6), torch.randn(6)
    mask, index = torch.tensor([True, False, True, True, False, True]), torch.arange(6)
    found = []
    for kept in (None, mask):
        leaf = losses.clone().requires_grad_()
        steer = steering.DRRho(6, **options)
        if kept is None:
            loss = steer(leaf[mask], reference[mask], index[mask])
        else:
            loss = steer(leaf, reference, index, mask)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1])
