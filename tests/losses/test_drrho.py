"""Steering in anybody's loop: DRRho and GlobalContrastiveLoss as a user calls them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adversaries import stochastic
from torch import Tensor

import steering
from steering.contrastive import Pairs, negatives
from steering.dro.online.row_table import Layout

EXACT = {"rtol": 1e-10, "atol": 1e-12}
INDEX = torch.tensor([4, 0, 9, 2, 7])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(seed: int, width: int = 4) -> Tensor:
    return F.normalize(random(len(INDEX), width, seed=seed), dim=-1)


def exact(tau: float = 0.5, **options: Any) -> steering.DRRho:
    """DRRho in float64 throughout, with exactly this temperature."""
    steer = steering.DRRho(10, tau=tau, **options).double()
    steer.risk.temperature.log_tau.data.fill_(math.log(tau))
    return steer


def pulls(steer: steering.DRRho, losses: Tensor, reference: Tensor | None) -> Tensor:
    """∂loss/∂losses: the weights, as training feels them."""
    leaf = losses.detach().clone().requires_grad_()
    steer(leaf, reference, INDEX).backward()
    assert leaf.grad is not None
    return leaf.grad


# ---- DRRho
# ----------------------------------------------------------------------------------------------------------


def test_two_examples_by_hand():
    # h = (ln 3, 0) at τ = 1: u = 2, value ln 2, weights (¾, ¼).
    losses = torch.tensor([math.log(3) + 1, 2.0], requires_grad=True)
    loss = steering.DRRho(2)(losses, torch.tensor([1.0, 2.0]), torch.tensor([1, 0]))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(math.log(2)))
    torch.testing.assert_close(losses.grad, torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.7])
def test_weights_are_the_softmax_of_the_excess_losses(strength):
    losses, reference = random(5), random(5, seed=1)
    found = pulls(exact(strength=strength, gamma=1.0), losses, reference)
    torch.testing.assert_close(found, ((losses - strength * reference) / 0.5).softmax(0), **EXACT)
    torch.testing.assert_close(found.sum(), torch.ones((), dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_running_estimate_against_loops(epsilon):
    # docs/theory.md, (19) and (20), in the linear domain.
    steer, tau, gamma, u = exact(gamma=0.3, epsilon=epsilon), 0.5, 0.3, None
    for seed in range(4):
        losses, reference = random(5, seed=seed), random(5, seed=seed + 50)
        e = [
            math.exp((x - r) / tau)
            for x, r in zip(losses.tolist(), reference.tolist(), strict=True)
        ]
        u = sum(e) / 5 if u is None else (1 - gamma) * u + gamma * sum(e) / 5
        leaf = losses.requires_grad_()
        loss = steer(leaf, reference, INDEX)
        loss.backward()
        assert loss.item() == pytest.approx(tau * math.log(epsilon + u), rel=1e-10)
        expected = torch.tensor([x / 5 / (epsilon + u) for x in e], dtype=torch.float64)
        torch.testing.assert_close(leaf.grad, expected, **EXACT)


def test_the_reference_is_detached():
    # Fact 14.
    losses, reference = random(5).requires_grad_(), random(5, seed=1).requires_grad_()
    exact()(losses, reference, INDEX).backward()
    assert reference.grad is None


def test_a_constant_reference_is_plain_dro():
    # Fact 8.
    losses = random(5)
    torch.testing.assert_close(
        pulls(exact(), losses, torch.full((5,), 3.0).double()),
        pulls(exact(), losses, None),
        **EXACT,
    )


def test_a_copy_of_the_target_is_uniform():
    # Fact 8.
    torch.testing.assert_close(
        pulls(exact(tau=0.01), random(5), random(5)), torch.full((5,), 0.2).double()
    )


def test_high_temperature_is_plain_training():
    # Fact 1.
    found = pulls(exact(tau=1e8, gamma=1.0), random(5), random(5, seed=1))
    torch.testing.assert_close(
        found, torch.full((5,), 1 / 5, dtype=torch.float64), rtol=1e-7, atol=0
    )


def test_the_order_of_the_batch_does_not_matter():
    losses, reference, order = random(5), random(5, seed=1), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(
        pulls(exact(), losses[order], reference[order]),
        pulls(exact(), losses, reference)[order],
        **EXACT,
    )


def test_a_radius_leaves_nothing_to_optimise():
    # The temperature moves by itself: tests/faults/test_state_and_defaults.py.
    fixed, learned = steering.DRRho(10), steering.DRRho(10, radius=0.2, gamma=1.0)
    assert not [p for p in fixed.parameters() if p.requires_grad]
    assert not [*learned.parameters()]
    p = pulls(learned, random(5), None)
    kl = (p * (5 * p).log()).sum().item()
    # The first step, from τ = 1: ½·clip(½·M·(D − R)/(R·(M − R)), ±1) with M = log 5.
    move = 0.5 * math.log(5) * (kl - 0.2) / (0.2 * (math.log(5) - 0.2))
    assert learned.risk.temperature.log_tau.item() == pytest.approx(
        0.5 * max(-1, min(1, move)), rel=1e-4
    )


@pytest.mark.parametrize("options", [{}, {"radius": 0.2, "epsilon": 0.1, "gamma": 0.3}])
def test_a_saved_state_continues_to_the_bit(options):
    def step(steer: steering.DRRho, seed: int) -> Tensor:
        return pulls(steer, random(5, seed=seed).float(), random(5, seed=seed + 50).float())

    whole, resumed = steering.DRRho(10, **options), steering.DRRho(10, **options)
    for seed in range(3):
        step(whole, seed)
    resumed.load_state_dict(whole.state_dict())
    for seed in range(3, 6):
        assert torch.equal(step(resumed, seed), step(whole, seed))
    assert not torch.equal(
        step(steering.DRRho(10, **options), 6), step(whole, 6)
    )  # the state does matter


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_as_float32(dtype):
    losses, reference = random(5).to(dtype).requires_grad_(), random(5, seed=1).to(dtype)
    loss = steering.DRRho(10)(losses, reference, INDEX)
    loss.backward()
    assert loss.dtype == torch.float32
    assert losses.grad.dtype == dtype
    torch.testing.assert_close(loss, steering.DRRho(10)(losses.float(), reference.float(), INDEX))
    assert steering.DRRho(10)(losses, reference.double(), INDEX).dtype == torch.float64
    assert steering.DRRho(10)(losses.double(), reference, INDEX).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"losses": torch.zeros(5, 1)},
            r"losses must be \(b,\) with b ≥ 1, got \(5, 1\); use reduction='none'",
        ),
        ({"losses": torch.zeros(())}, r"losses must be \(b,\).*got \(\)"),
        (
            {"losses": torch.zeros(0), "index": INDEX[:0]},
            r"losses must be \(b,\) with b ≥ 1, got \(0,\)",
        ),
        ({"reference_losses": torch.zeros(5, 1)}, r"reference_losses must be \(5,\), got \(5, 1\)"),
        ({"index": INDEX[:4]}, r"index must be \(5,\), got \(4,\)"),
        ({"index": INDEX.double()}, "index must be int64, got torch.float64"),
        (
            {"index": torch.tensor([4, 0, 10, 2, 7])},
            r"index: outside \[0, 10\) at position 2 .*\(example 10\)",
        ),
        (
            {"index": torch.tensor([4, -1, 9, 2, 7])},
            r"index: outside \[0, 10\) at position 1 .*\(example -1\)",
        ),
        (
            {"losses": torch.tensor([0, 0, math.nan, 0, 0])},
            r"losses: not finite at position 2 .*\(example 9\)",
        ),
        (
            {"reference_losses": torch.tensor([0, 0, 0, 0, -math.inf])},
            r"reference_losses: not finite at position 4 .*\(example 7\)",
        ),
    ],
)
def test_bad_input_is_named_and_leaves_no_trace(change, message):
    steer = steering.DRRho(10)
    good = {"losses": torch.zeros(5), "reference_losses": torch.ones(5), "index": INDEX}
    with pytest.raises(ValueError, match=message):
        steer(**good | change)
    assert not steer.risk.estimator.visited.any()


@pytest.mark.parametrize("make", [steering.DRRho, steering.GlobalContrastiveLoss])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_examples", 0),
        ("tau", 0.0),
        ("radius", -1.0),
        ("strength", -1.0),
        ("gamma", 0.0),
        ("epsilon", -0.1),
    ],
)
def test_an_option_out_of_range_is_named(make, option, value):
    with pytest.raises(ValueError, match=f"{option} must be .*, got {value}"):
        make(**{"num_examples": 3, option: value})


def test_an_unknown_divergence_is_an_error():
    with pytest.raises(
        ValueError, match=r"divergence: expected one of chi2, .*, got 'wasserstein'"
    ):
        steering.DRRho(3, divergence="wasserstein")


# ---- GlobalContrastiveLoss
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["kl", "chi2"])
@pytest.mark.parametrize("guided", [False, True])
def test_contrastive_loss_is_the_risk_of_its_negatives(guided, divergence):
    # The risk itself is proved against loops in tests/contrastive/test_naive.py; here: nothing is
    # lost on the way.
    options: dict[str, Any] = {
        "tau": 0.3,
        "radius": 0.2,
        "strength": 0.7,
        "divergence": divergence,
    }
    options |= {"epsilon": 0.1, "gamma": 0.4} if divergence == "kl" else {"step": 0.7}
    guide = (features(3, width=6), features(4, width=6)) if guided else ()
    criterion, risk = (
        steering.GlobalContrastiveLoss(10, **options),
        stochastic(20, tau_min=0.01, solve_tau=True, **options),
    )
    for seed in (1, 20):  # the second visit reads history
        leaves = [features(seed + k).requires_grad_() for k in (0, 1, 0, 1)]
        found = criterion(leaves[0], leaves[1], INDEX, *guide)
        expected = risk(negatives(Pairs(leaves[2], leaves[3], INDEX, *guide))).loss
        found.backward()
        expected.backward()
        close = {"rtol": 1e-6, "atol": 1e-9}  # the state is float32
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(leaves[0].grad, leaves[2].grad, **close)
        torch.testing.assert_close(leaves[1].grad, leaves[3].grad, **close)
    torch.testing.assert_close(criterion.risk.temperature.log_tau, risk.temperature.log_tau)
    assert criterion.risk.temperature.log_tau.item() != pytest.approx(math.log(0.3))
    for x, y in zip(criterion.risk.buffers(), risk.buffers(), strict=True):
        torch.testing.assert_close(x, y)


def negatives_by_hand(image: Tensor, text: Tensor) -> Tensor:
    """S_ij − S_ii of both directions without the positives, (2, b, b − 1)."""
    off = ~torch.eye(len(image), dtype=torch.bool)
    cosines = image @ text.T
    sides = torch.stack([cosines, cosines.T])
    sides = sides - sides.diagonal(dim1=1, dim2=2)[..., None]
    return torch.stack([side[off].view(len(image), -1) for side in sides])


CLOSED_FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    # The mean of the upper half.
    "cvar": (
        {"divergence": "cvar", "level": 0.5},
        lambda h, _: h.topk(h.shape[-1] // 2).values.mean(-1),
    ),
    # As long as no weight is clipped at zero, which a large τ sees to.
    "chi2": (
        {"divergence": "chi2", "tau": 9.0},
        lambda h, _: h.mean(-1) + h.var(-1, correction=0) / 18.0,
    ),
    # A unit of mass moves to the largest item at the price τ.
    "tv": (
        {"divergence": "tv", "tau": 0.4},
        lambda h, _: torch.maximum(h, h.amax(-1, keepdim=True) - 0.4).mean(-1),
    ),
    "prior": (
        {"prior": 2.0, "tau": 0.3, "epsilon": 0.0},
        lambda h, r: 0.3 * (h / 0.3 + (-2.0 * r).log_softmax(-1)).logsumexp(-1),
    ),
    "tau = inf": (
        {"prior": 2.0, "tau": math.inf, "epsilon": 0.0},
        lambda h, r: ((-2.0 * r).softmax(-1) * h).sum(-1),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_contrastive_divergences_against_closed_forms(name: str):
    options, closed = CLOSED_FORMS[name]
    criterion = steering.GlobalContrastiveLoss(10, estimator="batch", strength=0.7, **options)
    image, text = features(1).requires_grad_(), features(2).requires_grad_()
    guide = features(3, width=6), features(4, width=6)
    assert len(image) % 2, "the upper half must be a whole number of negatives"
    reference = negatives_by_hand(*guide)
    expected = closed(negatives_by_hand(image, text) - 0.7 * reference, reference).mean()
    wanted = torch.autograd.grad(expected, (image, text))
    found = criterion.estimate(image, text, INDEX, *guide)
    close = {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(found.loss, expected, **close)
    for x, y in zip(torch.autograd.grad(found.loss, (image, text)), wanted, strict=True):
        torch.testing.assert_close(x, y, **close)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones_like(found.weights[..., 0]))
    assert not found.weights.diagonal(dim1=1, dim2=2).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "wasserstein"}, "divergence: expected one of"),
        ({"divergence": "cvar", "level": 0.3, "tau": 0.1}, "tau must be None for 'cvar'"),
        ({"divergence": "chi2", "epsilon": 0.1}, "epsilon must be 0 for 'chi2'"),
        ({"divergence": "chi2", "prior": 1.0}, "prior must be 0 for 'chi2'"),
        ({"divergence": "chi2", "estimator": "moving_average"}, "does not work for the divergence"),
        ({"divergence": "tv", "estimator": "proximal"}, "does not work for the divergence"),
        ({"divergence": "chi2", "layout": Layout("float16")}, "layout must be None"),
        ({"prior": -1.0}, "prior must be a number ≥ 0"),
        ({"level": 0.3}, "level"),
    ],
    ids=str,
)
def test_contrastive_divergences_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        steering.GlobalContrastiveLoss(10, **options)


def test_contrastive_rate_follows_the_epochs():
    criterion = steering.GlobalContrastiveLoss(10, gamma=0.2, gamma_decay_epochs=4)
    rates = []
    for epoch in (0, 2, 4):
        criterion.start_epoch(epoch)
        rates.append(criterion.risk.estimator.gamma)
    assert rates == pytest.approx([1, 0.6, 0.2])


def test_contrastive_temperature_stays_above_its_bound():
    learned = steering.GlobalContrastiveLoss(10, tau=0.07, radius=0.5)
    learned.risk.temperature.log_tau.data.fill_(-9.0)
    assert learned.risk.temperature().item() == pytest.approx(0.01)
    assert steering.GlobalContrastiveLoss(10, tau=1e-3).risk.temperature().item() == pytest.approx(
        1e-3
    )  # fixed: any


def test_contrastive_reference_is_detached():
    # Fact 14.
    guide = features(3).requires_grad_(), features(4).requires_grad_()
    steering.GlobalContrastiveLoss(10)(
        features(1).requires_grad_(), features(2), INDEX, *guide
    ).backward()
    assert guide[0].grad is None
    assert guide[1].grad is None


def test_contrastive_state_continues_to_the_bit():
    def step(criterion: steering.GlobalContrastiveLoss, seed: int) -> Tensor:
        image = features(seed).float().requires_grad_()
        criterion(image, features(seed + 50).float(), INDEX).backward()
        return image.grad

    whole, resumed = (steering.GlobalContrastiveLoss(10, gamma=0.4) for _ in range(2))
    step(whole, 1)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(step(resumed, 2), step(whole, 2))
    assert not torch.equal(step(steering.GlobalContrastiveLoss(10, gamma=0.4), 3), step(whole, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_contrastive_half_precision_comes_out_as_float32(dtype):
    half = [features(k).to(dtype) for k in (1, 2, 3, 4)]
    half[0].requires_grad_()
    loss = steering.GlobalContrastiveLoss(10)(half[0], half[1], INDEX, half[2], half[3])
    loss.backward()
    assert loss.dtype == torch.float32
    assert half[0].grad.dtype == dtype
    wide = [x.detach().float() for x in half]
    assert torch.equal(
        loss, steering.GlobalContrastiveLoss(10)(wide[0], wide[1], INDEX, wide[2], wide[3])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"index": torch.tensor([4, 0, 10, 2, 7])},
            r"index: outside \[0, 10\) at position 2 .*\(example 10\)",
        ),
        (
            {"index": torch.tensor([4, 0, 9, 2, -1])},
            r"index: outside \[0, 10\) at position 4 .*\(example -1\)",
        ),
        ({"index": INDEX.int()}, "index must be int64, got torch.int32"),
        ({"index": INDEX[:3]}, r"index must be \(b,\) = \(5,\), got \(3,\)"),
        ({"text": features(2, width=3)}, "image and text must both be"),
        ({"reference_text": None}, "both reference_image and reference_text, or neither"),
        *[
            (
                {name: features(9) + torch.tensor([0, 0, 0, math.nan, 0])[:, None]},
                rf"{name}: not finite at position 3",
            )
            for name in ("image", "text", "reference_image", "reference_text")
        ],
    ],
)
def test_contrastive_bad_input_is_named_and_leaves_no_trace(change, message):
    criterion = steering.GlobalContrastiveLoss(10)
    names = ("image", "text", "reference_image", "reference_text")
    good = {name: features(k) for k, name in enumerate(names)} | {"index": INDEX}
    with pytest.raises(ValueError, match=message):
        criterion(**good | change)
    assert not criterion.risk.estimator.visited.any()
