"""A temperature for every image and every text, as the methods and the loss hand it on and read it
back."""

import math

import pytest
import torch
import torch.nn.functional as F
from adversaries import options_of
from torch import Tensor

import steering
from steering.contrastive import Pairs, negatives
from steering.dro.online.stochastic import StochasticRisk
from steering.methods import Method, build_method
from steering.methods.distillation import pairs_divergence

ALL, B = 9, 6
INDEX = torch.tensor([4, 0, 7, 2, 8, 1])


def make(name: str, **options: object) -> Method:
    options = {"tau": 0.3, "radius": 0.2, "individual_tau": True} | options
    return build_method(name, options_of(name, **options), ALL).double()


def some_pairs() -> Pairs:
    generator = torch.Generator().manual_seed(0)
    image, text, *guide = F.normalize(
        torch.randn(4, B, 5, generator=generator, dtype=torch.float64), dim=-1
    )
    return Pairs(image, text, INDEX, *guide)


def with_temperatures(risk: StochasticRisk) -> Tensor:
    """Gives every row a τ; those of the batch, (2, b), are returned."""
    tau = 0.1 + 0.8 * torch.rand(2 * ALL, generator=torch.Generator().manual_seed(1))
    risk.temperature.duals.values[: 2 * ALL, 0] = tau
    return tau.view(ALL, 2)[INDEX].T.double()


def distillation(pairs: Pairs, scale: Tensor, reference_scale: float) -> float:
    """By loops; scale (2, b)."""
    total = 0.0
    for direction, scales in enumerate(scale):
        s, t = pairs.image @ pairs.text.T, pairs.reference_image @ pairs.reference_text.T
        s, t = (s.T, t.T) if direction else (s, t)
        for i in range(B):
            p, q = (reference_scale * t[i]).softmax(0), (scales[i] * s[i]).softmax(0)
            total += float((p * (p / q).log()).sum()) / (2 * B)
    return total


def test_distillation_at_a_scale_for_every_anchor_by_a_loop():
    pairs, scale = (
        some_pairs(),
        1 + 9 * torch.rand(2, B, generator=torch.Generator().manual_seed(2)).double(),
    )
    found = pairs_divergence(pairs, scale, 20.0)
    assert found.item() == pytest.approx(distillation(pairs, scale, 20.0))


def test_drrho_distils_at_the_temperatures_of_the_table():
    method, pairs = make("drrho", distill=0.7, distill_scale=20.0), some_pairs()
    tau = with_temperatures(method.risk)
    found = method(pairs).metrics["distillation"]  # before the step moves them
    assert found.item() == pytest.approx(distillation(pairs, 1 / tau, 20.0))
    assert not torch.equal(
        with_temperatures(make("drrho").risk), method.risk.temperature.read(INDEX * 2, False)
    )


@pytest.mark.parametrize("rows", [True, False], ids=["rows of losses", "pairs"])
def test_nested_takes_the_references_risks_at_the_same_temperatures(rows):
    # λ → ∞: the weights of the pairs are q⁰ ∝ exp(−κ G^ref), and G^ref is known in closed form.
    method = make("nested", strength=0.0, outer_tau=1e9, outer_prior=2.0, epsilon=1e-3)
    tau, pairs = with_temperatures(method.inner), some_pairs()
    units = negatives(pairs)
    guide = (units.reference / tau[..., None]).exp().masked_fill(~units.mask, 0).sum(-1) / (B - 1)
    risks = tau * (guide + 1e-3).log()
    if rows:
        units.target.requires_grad_()
        method(units).loss.backward()
        u = (units.target.detach() / tau[..., None]).exp().masked_fill(~units.mask, 0).sum(-1) / (
            B - 1
        )
        # All anchors are rows of their own; the inner weights of a row add up to u/(ε + u).
        expected = (-2 * risks.flatten()).softmax(0).view(2, B) * u / (u + 1e-3)
        torch.testing.assert_close(units.target.grad.sum(-1), expected, rtol=1e-6, atol=1e-9)
        return
    q = (-2 * risks.mean(0)).softmax(0)  # a weight for a pair
    image = pairs.image.requires_grad_()
    method(pairs).loss.backward()
    h = units.target
    p = (h / tau[..., None]).exp().masked_fill(~units.mask, 0) / (B - 1)
    p = p / (p.sum(-1, keepdim=True) + 1e-3)
    entries = q[:, None] * p[0] / 2 + (q[:, None] * p[1] / 2).T  # ∂/∂S
    entries -= torch.diag_embed(q * p.sum(-1).sum(0) / 2)
    torch.testing.assert_close(image.grad, entries @ pairs.text, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dro", "drrho", "nested"])
def test_the_first_visit_moves_by_the_step_that_was_asked_for(name):
    method = make(name, individual_tau_lr=0.004)
    method(some_pairs())
    risk = method.inner if name == "nested" else method.risk
    moved = risk.temperature.read(torch.arange(2 * ALL), False) - 0.3
    seen = torch.zeros(ALL, dtype=torch.bool).index_fill(0, INDEX, True).repeat_interleave(2)
    torch.testing.assert_close(
        moved.abs(), torch.where(seen, 0.004, 0.0).to(moved.dtype), rtol=1e-3, atol=1e-7
    )


def test_the_loss_hands_its_options_on():
    options = {"tau": 0.3, "radius": 0.2, "individual_tau": True, "individual_tau_lr": 0.004}
    criterion = steering.GlobalContrastiveLoss(ALL, **options)
    pairs = some_pairs()
    criterion(pairs.image, pairs.text, INDEX, pairs.reference_image, pairs.reference_text)
    tau = criterion.risk.temperature.read(2 * INDEX, False)
    torch.testing.assert_close((tau - 0.3).abs(), torch.full_like(tau, 0.004), rtol=1e-3, atol=1e-7)
    assert not list(criterion.parameters())  # nothing for an optimiser
    with pytest.raises(ValueError, match="false without a radius"):
        steering.GlobalContrastiveLoss(ALL, tau=0.3, individual_tau=True)
    assert math.isclose(
        steering.GlobalContrastiveLoss(ALL, tau=0.3, radius=0.2).risk.temperature().item(),
        0.3,
        rel_tol=1e-6,
    )
