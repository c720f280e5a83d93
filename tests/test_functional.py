"""The stateless losses against the exact solver, closed forms, and the modules at their first call."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steering import functional
from steering import losses as modules
from steering.contrastive import Pairs, info_nce, negatives
from steering.dro import CressieRead, CVaR, worst_case

EXACT = {"rtol": 1e-9, "atol": 1e-11}
B = 9


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(seed: int, width: int = 4) -> Tensor:
    return F.normalize(noise(B, width, seed=seed), dim=-1)


LOSSES, REFERENCE = noise(B).abs(), noise(B, seed=1).abs()
MASK = torch.tensor([True, True, False, True, True, True, False, True, True])


def pull(call: Any) -> tuple[Tensor, Tensor]:
    """Value of call(losses), and its gradient."""
    leaf = LOSSES.clone().requires_grad_()
    loss = call(leaf)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({}, {"divergence": "kl", "penalty": 1.0}),
        ({"tau": 0.3}, {"divergence": "kl", "penalty": 0.3}),
        ({"radius": 0.2}, {"divergence": "kl", "radius": 0.2}),
        ({"divergence": "chi2", "tau": 0.5}, {"divergence": "chi2", "penalty": 0.5}),
        ({"divergence": "chi2", "radius": 0.1}, {"divergence": "chi2", "radius": 0.1}),
        ({"divergence": "tv", "radius": 0.2}, {"divergence": "tv", "radius": 0.2}),
        ({"divergence": CVaR(0.4)}, {"divergence": CVaR(0.4)}),
        (
            {"divergence": CressieRead(1.5), "tau": 0.7},
            {"divergence": CressieRead(1.5), "penalty": 0.7},
        ),
    ],
    ids=str,
)
def test_drrho_is_the_worst_case_of_the_excess_losses(options, budget, strength, mask):
    value, gradient = pull(
        lambda x: functional.drrho_loss(x, REFERENCE, strength=strength, mask=mask, **options)
    )
    exact = worst_case(LOSSES - strength * REFERENCE, mask=mask, **budget)
    torch.testing.assert_close(value, exact.value, **EXACT)
    torch.testing.assert_close(gradient, exact.weights, **EXACT)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize(
    "options", [{"tau": 0.4}, {"radius": 0.3}, {"divergence": "chi2"}], ids=str
)
def test_a_prior_is_the_solvers(options, mask):
    value, gradient = pull(
        lambda x: functional.drrho_loss(x, REFERENCE, prior=1.5, mask=mask, **options)
    )
    budget = {"penalty": options.get("tau", 1.0)}
    if "radius" in options:
        budget = {"radius": options["radius"]}
    exact = worst_case(
        LOSSES - REFERENCE,
        options.get("divergence", "kl"),
        prior=(-1.5 * REFERENCE).exp(),
        mask=mask,
        **budget,
    )
    torch.testing.assert_close(value, exact.value, **EXACT)
    torch.testing.assert_close(gradient, exact.weights, **EXACT)


def test_the_gradient_by_finite_differences():
    def loss(x: Tensor) -> Tensor:
        return functional.drrho_loss(x, REFERENCE, tau=0.5, prior=0.7, mask=MASK)

    assert torch.autograd.gradcheck(loss, LOSSES.clone().requires_grad_())


def test_an_offset_of_the_losses_costs_no_digits():
    single = (LOSSES + 1e6).float()  # what is left of their differences is exact
    leaf = single.clone().requires_grad_()
    functional.dro_loss(leaf, tau=0.1).backward()
    expected = worst_case(single.double(), "kl", penalty=0.1).weights
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-5, atol=1e-12)


def test_dro_is_drrho_without_a_reference():
    for options in ({}, {"radius": 0.2}, {"divergence": "chi2", "tau": 0.4}):
        expected = pull(lambda x, o=options: functional.drrho_loss(x, None, **o))
        found = pull(lambda x, o=options: functional.dro_loss(x, **o))
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_strength_auto_is_the_regression_slope_of_the_batch():
    def deviation(x: Tensor) -> Tensor:
        return x - x.mean()

    slope = (deviation(LOSSES) * deviation(REFERENCE + LOSSES)).sum() / deviation(
        REFERENCE + LOSSES
    ).square().sum()
    found = functional.drrho_loss(LOSSES, REFERENCE + LOSSES, strength="auto")
    expected = functional.drrho_loss(LOSSES, REFERENCE + LOSSES, strength=slope.item())
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (
            lambda x: functional.drrho_loss(x, REFERENCE, tau=0.4, mask=MASK),
            lambda x: modules.DRRho(tau=0.4)(x, REFERENCE, mask=MASK),
        ),
        (
            lambda x: functional.drrho_loss(x, REFERENCE, prior=2.0),
            lambda x: modules.DRRho(prior=2.0)(x, REFERENCE),
        ),
        (
            lambda x: functional.soft_filter_loss(x, REFERENCE, prior=0.7, mask=MASK),
            lambda x: modules.SoftFilter(prior=0.7)(x, REFERENCE, MASK),
        ),
        (
            lambda x: functional.rho1_loss(x, REFERENCE, mask=MASK),
            lambda x: modules.Rho1()(x, REFERENCE, MASK),
        ),
        (
            lambda x: functional.distillation_loss(x, noise(B, 3), noise(B, 3, seed=2), mask=MASK),
            lambda x: modules.Distillation()(x, noise(B, 3), noise(B, 3, seed=2), MASK),
        ),
    ],
    ids=["drrho", "prior", "soft filter", "rho1", "distillation"],
)
def test_a_function_is_the_first_call_of_its_module(function, module):
    for found, expected in zip(pull(function), pull(module), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# ---- pairs


def sides(width: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    return features(seed, width), features(seed + 1, width)


def slopes(call: Any) -> list[Tensor]:
    leaves = [one.requires_grad_() for one in sides()]
    loss = call(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"tau": 0.3, "epsilon": 0.0, "strength": 0.5}, {"strength": "auto"}], ids=str
)
def test_the_contrastive_loss_is_the_first_call_of_its_module(options, guided):
    guide = sides(6, 3) if guided else ()
    found = slopes(lambda *x: functional.contrastive_drrho_loss(*x, *guide, **options))
    expected = slopes(
        lambda *x: modules.GlobalContrastiveLoss(B, **options)(*x, torch.arange(B), *guide)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({"radius": 0.3}, ("kl", {"radius": 0.3})),
        ({"divergence": "chi2", "tau": 0.2}, ("chi2", {"penalty": 0.2})),
        ({"divergence": CVaR(0.5)}, (CVaR(0.5), {})),
    ],
    ids=str,
)
def test_the_contrastive_loss_elsewhere_is_the_solvers(options, budget):
    guide = sides(6, 3)
    found = slopes(
        lambda *x: functional.contrastive_drrho_loss(*x, *guide, strength=0.5, **options)
    )

    def exact(image: Tensor, text: Tensor) -> Tensor:
        units = negatives(Pairs(image, text, torch.arange(B), *guide))
        return worst_case(units.excess(0.5), budget[0], mask=units.mask, **budget[1]).value.mean()

    for one, other in zip(found, slopes(exact), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_clip_is_info_nce_with_a_learned_temperature():
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    image, text = sides()
    loss = functional.clip_loss(image, text, tau=tau)
    expected = info_nce(image, text, tau).mean()
    torch.testing.assert_close(loss, expected, **EXACT)
    found, exact = (torch.autograd.grad(x, tau)[0] for x in (loss, expected))
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(functional.clip_loss(image, text, tau=0.2), loss, **EXACT)


# ---- compiled, wrong, half


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_a_compiled_step_has_the_same_gradient():
    torch.compiler.reset()
    weight = noise(3, seed=5).requires_grad_()
    x = noise(B, 3, seed=6)

    def loss() -> Tensor:
        return functional.drrho_loss((x @ weight).square(), REFERENCE, tau=0.5)

    expected = torch.autograd.grad(loss(), weight)[0]
    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(), weight)[0], expected, **EXACT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.drrho_loss(LOSSES, REFERENCE, tau=1.0, radius=0.1), "tau or radius"),
        (lambda: functional.drrho_loss(LOSSES, REFERENCE, tau=0.0), "tau must be a number > 0"),
        (lambda: functional.drrho_loss(LOSSES, REFERENCE, strength=-1.0), "strength must be"),
        (lambda: functional.drrho_loss(LOSSES, REFERENCE, prior=-1.0), "prior must be"),
        (lambda: functional.drrho_loss(LOSSES, None, prior=1.0), "prior: needs reference_losses"),
        (lambda: functional.drrho_loss(LOSSES.mean(), None), r"losses must be .*got \(\); use red"),
        (lambda: functional.dro_loss(LOSSES, divergence="cvar"), "level: 'cvar' needs it"),
        (lambda: functional.dro_loss(LOSSES, divergence=CVaR(0.3), tau=1.0), "None for 'cvar'"),
        (lambda: functional.dro_loss(LOSSES * math.nan), "losses: not finite at position 0"),
        (
            lambda: functional.rho1_loss(LOSSES, REFERENCE, mask=torch.zeros(B, dtype=torch.bool)),
            "mask: row 0 of the losses has no items",
        ),
        (
            lambda: functional.soft_filter_loss(LOSSES, REFERENCE, mask=~torch.ones_like(MASK)),
            "mask: row 0 of the losses has no items",
        ),
        (lambda: functional.clip_loss(*sides(), tau=0.0), "tau must be a number > 0, got 0"),
        (
            lambda: functional.contrastive_drrho_loss(*sides(), radius=0.1, epsilon=0.1),
            "epsilon must be 0 with a radius",
        ),
        (
            lambda: functional.contrastive_drrho_loss(features(1)[:1], features(2)[:1]),
            "at least 2 pairs",
        ),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_as_float32(dtype):
    found = functional.drrho_loss(LOSSES.to(dtype), REFERENCE.to(dtype))
    assert found.dtype == torch.float32
    expected = functional.drrho_loss(LOSSES.to(dtype).float(), REFERENCE.to(dtype).float())
    assert torch.equal(found, expected)


def test_a_function_leaves_no_random_number_and_no_state_behind():
    state = torch.random.get_rng_state()
    first = [functional.contrastive_drrho_loss(*sides(), *sides(6, 3)) for _ in range(2)]
    assert torch.equal(first[0], first[1])
    assert torch.equal(state, torch.random.get_rng_state())
