"""Priors: groups instead of examples, items that stand for many, rho, and what the penalty's
derivative is."""

import pytest
import torch
from solver_cases import BUDGETED, EVERY, every, random, rows
from torch import Tensor

from steering.dro import (
    KL,
    ChiSquare,
    CressieRead,
    CVaR,
    Divergence,
    TotalVariation,
    distance,
    worst_case,
)


@every
def test_an_item_of_double_prior_is_two_items(phi: Divergence, budget: dict[str, float]):
    losses = random(3, 5)
    counts = torch.tensor([1, 3, 2, 1, 2])
    repeated = worst_case(losses.repeat_interleave(counts, -1), phi, **budget)
    found = worst_case(losses, phi, prior=counts.double(), **budget)
    torch.testing.assert_close(found.value, repeated.value, rtol=1e-9, atol=1e-12)
    summed = torch.stack([part.sum(-1) for part in repeated.weights.split(counts.tolist(), -1)], -1)
    torch.testing.assert_close(found.weights, summed, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.dual.tau, repeated.dual.tau, rtol=1e-6, atol=0)


@every
def test_only_ratios_of_the_prior_count_and_a_zero_hides(phi: Divergence, budget: dict[str, float]):
    losses, prior = (
        random(4, 6),
        torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).double(),
    )
    prior[:, 2] = 0
    found = worst_case(losses, phi, prior=prior, **budget)
    scaled = worst_case(losses, phi, prior=1e6 * prior, **budget)
    torch.testing.assert_close(found.weights, scaled.weights)
    keep = [0, 1, 3, 4, 5]
    alone = worst_case(losses[:, keep], phi, prior=prior[:, keep], **budget)
    torch.testing.assert_close(found.weights[:, keep], alone.weights)
    torch.testing.assert_close(
        found.gap, torch.zeros(4).double(), rtol=0, atol=1e-12
    )  # φ(0) = ∞ hides nothing
    assert not found.weights[:, 2].any()
    masked = worst_case(losses, phi, prior=prior + 0.3 * (prior == 0), mask=prior > 0, **budget)
    torch.testing.assert_close(masked.weights, found.weights)


def test_groups_by_hand():
    # Two groups with shares 3/4 and 1/4, losses 0 and ln 3: KL penalty 1 tilts the shares by (1,
    # 3): (1/2, 1/2).
    found = worst_case(rows(1.0, 3.0).log(), "kl", penalty=1.0, prior=rows(0.75, 0.25))
    torch.testing.assert_close(found.weights, rows(0.5, 0.5))
    torch.testing.assert_close(found.value, rows(1.5).log()[0])
    # CVaR over groups: no group more than its share over the level.
    torch.testing.assert_close(
        worst_case(rows(0.0, 1.0, 2.0), "cvar", level=0.5, prior=rows(0.5, 0.3, 0.2)).weights,
        rows(0.0, 0.6, 0.4),
    )


@pytest.mark.parametrize(("phi", "budget"), [pair for pair in BUDGETED if "radius" in pair[1]])
def test_rho_is_n_times_the_radius(phi: Divergence, budget: dict[str, float]):
    losses, mask = random(3, 8), torch.ones(3, 8, dtype=torch.bool)
    mask[1, 5:] = False
    counts = mask.sum(-1).double()
    expected = worst_case(losses, phi, radius=budget["radius"] / counts, mask=mask)
    found = worst_case(losses, phi, rho=budget["radius"], mask=mask)
    torch.testing.assert_close(found.weights, expected.weights)


@pytest.mark.parametrize("prior", [None, rows(0.1, 0.4, 0.2, 0.05, 0.25)])
@every
def test_gradient_with_a_prior(phi: Divergence, budget: dict[str, float], prior: Tensor | None):
    losses = random(2, 5, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h: worst_case(h, phi, prior=prior, **budget).value, (losses,)
    )


@pytest.mark.parametrize("phi", [KL(), ChiSquare(), CressieRead(1.5), CressieRead(0.5)])
def test_the_slope_of_the_value_in_the_penalty_is_minus_the_divergence(phi: Divergence):
    losses, prior = random(6), rows(0.1, 0.4, 0.2, 0.05, 0.15, 0.1)
    up, down = (worst_case(losses, phi, penalty=0.5 + e, prior=prior).value for e in (1e-5, -1e-5))
    spent = distance(worst_case(losses, phi, penalty=0.5, prior=prior).weights, phi, prior=prior)
    torch.testing.assert_close((up - down) / 2e-5, -spent, rtol=1e-6, atol=0)


@every
def test_no_other_weights_do_better(phi: Divergence, budget: dict[str, float]):
    # Ten thousand random distributions, drawn in to the ball where there is one.
    losses, prior = random(4), rows(0.4, 0.3, 0.2, 0.1)
    best = worst_case(losses, phi, prior=prior, **budget).value
    p = torch.distributions.Dirichlet(torch.ones(4).double()).sample((10_000,))
    for _ in range(30):
        spent = distance(p, phi, prior=prior)
        limit = budget.get("radius", 0.0 if not phi.takes_budget else float("inf"))
        p = torch.where((spent > limit)[:, None], (p + prior) / 2, p)
    spent = distance(p, phi, prior=prior)
    paid = budget["penalty"] * spent if "penalty" in budget else torch.where(spent > 0, 0.0, 0.0)
    feasible = spent <= budget.get("radius", float("inf"))
    assert feasible.any()
    assert ((p @ losses - paid)[feasible & spent.isfinite()] <= best + 1e-12).all()


def test_every_form_is_tested():
    assert {type(phi) for phi, _ in EVERY} == {KL, ChiSquare, CVaR, TotalVariation, CressieRead}
