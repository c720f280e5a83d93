"""InfoNCE and the global contrastive risk: docs/theory.md, section 6, in loops, facts 5, 8, 9 and
14, invariances, bad input."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adversaries import stochastic
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.contrastive import Pairs, info_nce, negatives, pairwise_losses
from steering.dro.online.stochastic import StochasticRisk
from steering.dro.online.visit import Estimate

EXACT = {"rtol": 1e-10, "atol": 1e-10}
ALL, BATCH, WIDTH = 9, 6, 4
INDEX = torch.tensor([7, 2, 0, 8, 3, 5])  # the batch's examples, out of order
few = settings(deadline=None, derandomize=True, max_examples=25)


def features(seed: int, width: int = WIDTH, count: int = BATCH, gradient: bool = False) -> Tensor:
    x = torch.randn(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return F.normalize(x, dim=-1).requires_grad_(gradient)


def exact_risk(**options) -> StochasticRisk:
    """The risk in float64 throughout: its tables and temperature are float32 by default."""
    return stochastic(2 * ALL, **options).double()


def tau_of(risk: StochasticRisk) -> float:
    return risk.temperature().item()


# ---- the oracle
# ---------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    value: float
    image: np.ndarray  # gradient, (B, d)
    text: np.ndarray
    tau: float  # derivative with respect to the temperature
    u: np.ndarray  # running estimates after the step, (2, B), linear domain
    weight: np.ndarray  # (2, B, B)


def by_hand(
    image: np.ndarray,
    text: np.ndarray,
    tau: float,
    *,
    guide: tuple[np.ndarray, np.ndarray] | None = None,
    strength: float = 1.0,
    epsilon: float = 0.0,
    radius: float = 0.0,
    gamma: float = 1.0,
    history: np.ndarray | None = None,
) -> Truth:
    """docs/theory.md, (25) and (26), one pair at a time, exponentials and all; the gradient is Σ_ij
    p_ij ∇h_ij, p_ij constant.

    `history` holds u of earlier visits, (2, B), NaN where there was none.
    """
    B = len(image)
    gradient = {0: np.zeros_like(image), 1: np.zeros_like(text)}
    u, weight = np.zeros((2, B)), np.zeros((2, B, B))
    value = slope = 0.0
    for side, i in itertools.product((0, 1), range(B)):
        anchors, others = (image, text) if side == 0 else (text, image)
        h = {}
        for j in set(range(B)) - {i}:
            h[j] = anchors[i] @ others[j] - anchors[i] @ others[i]
            if guide is not None:
                g_anchors, g_others = guide if side == 0 else guide[::-1]
                h[j] -= strength * (g_anchors[i] @ g_others[j] - g_anchors[i] @ g_others[i])
        u[side, i] = sum(math.exp(h[j] / tau) for j in h) / (B - 1)
        if history is not None and not math.isnan(history[side, i]):
            u[side, i] = (1 - gamma) * history[side, i] + gamma * u[side, i]
        share = 1 / (2 * B)  # mean over anchors of both sides
        log_mean = math.log(epsilon + u[side, i])
        value += share * tau * (log_mean + radius)
        slope += share * (log_mean + radius)
        for j in h:
            p = math.exp(h[j] / tau) / ((epsilon + u[side, i]) * (B - 1))
            weight[side, i, j] = p
            slope -= share * p * h[j] / tau
            # h_ij = a_i·(o_j − o_i) − (what does not depend on the target)
            gradient[side][i] += share * p * (others[j] - others[i])
            gradient[1 - side][j] += share * p * anchors[i]
            gradient[1 - side][i] -= share * p * anchors[i]
    return Truth(value, gradient[0], gradient[1], slope, u, weight)


def close(found: Tensor, truth: np.ndarray | float, **tolerance: float) -> None:
    torch.testing.assert_close(
        found.detach(),
        torch.as_tensor(truth, dtype=torch.float64),
        **(tolerance or EXACT),
        check_dtype=False,
    )


def run(
    risk: StochasticRisk, image: Tensor, text: Tensor, *guide: Tensor, index: Tensor = INDEX
) -> Estimate:
    """One step with fresh gradients, through the code under test."""
    image.grad = text.grad = risk.temperature.log_tau.grad = None
    estimate = risk(negatives(Pairs(image, text, index, *guide)))
    estimate.loss.backward()
    return estimate


def plant_history(risk: StochasticRisk, seed: int = 5) -> np.ndarray:
    """Estimates of earlier visits for about 3 rows in 4, a zero logarithm among them; returns u,
    (2, B), NaN if none."""
    generator = torch.Generator().manual_seed(seed)
    table = risk.estimator
    table.log_u.copy_(torch.randn(len(table.log_u), generator=generator, dtype=torch.float64))
    table.visited.copy_(torch.arange(2 * ALL) % 4 != 1)
    table.log_u[2 * INDEX[0]] = 0.0
    assert table.visited[2 * INDEX[0]]  # log u = 0 is a value like any other
    rows = 2 * INDEX + torch.arange(2)[:, None]
    u = table.log_u.exp().where(table.visited, torch.nan)[rows].numpy()
    assert 0 < np.isnan(u).sum() < u.size
    return u


# ---- loss items
# ---------------------------------------------------------------------------------------------------

# S = [[0.6, 0], [0.8, 1]] by hand.
TWO = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])


def test_pairwise_losses_of_two_pairs_by_hand():
    expected = torch.tensor([[[0.0, -0.6], [-0.2, 0.0]], [[0.0, 0.2], [-1.0, 0.0]]])
    torch.testing.assert_close(pairwise_losses(*TWO), expected)


def test_units_of_two_pairs_by_hand():
    units = negatives(Pairs(*TWO, torch.tensor([4, 1])))
    assert units.rows.tolist() == [[8, 2], [9, 3]]  # 2·index + direction
    assert units.mask is not None
    assert units.mask.tolist() == [[[False, True], [True, False]]] * 2
    assert units.reference is None
    assert not units.sharded


def test_info_nce_of_two_pairs_by_hand():
    # Image anchors see 0.6 against 0 and 1 against 0.8; text anchors 0.6 against 0.8 and 1 against
    # 0.
    gaps = torch.tensor([[0.6, 0.2], [-0.2, 1.0]]) / 0.5
    torch.testing.assert_close(info_nce(*TWO, 0.5), (1 + (-gaps).exp()).log())


# ---- value and gradient against the oracle
# --------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 0.7])
def test_info_nce_against_loops(tau):
    image, text = features(1, gradient=True), features(2, gradient=True)
    losses = info_nce(image, text, tau)
    losses.mean().backward()
    x, y = image.detach().numpy(), text.detach().numpy()
    gradient = {0: np.zeros_like(x), 1: np.zeros_like(y)}
    for side, i in itertools.product((0, 1), range(BATCH)):
        a, o = (x, y) if side == 0 else (y, x)
        q = np.array([math.exp(a[i] @ o[j] / tau) for j in range(BATCH)])
        q /= q.sum()
        close(losses[side, i], -math.log(q[i]))
        for j in range(BATCH):
            pull = (q[j] - (i == j)) / tau / (2 * BATCH)
            gradient[side][i] += pull * o[j]
            gradient[1 - side][j] += pull * a[i]
    close(image.grad, gradient[0])
    close(text.grad, gradient[1])


@pytest.mark.parametrize("radius", [None, 0.3])
@pytest.mark.parametrize("gamma", [1.0, 0.3])
@pytest.mark.parametrize("epsilon", [0.0, 0.4])
@pytest.mark.parametrize("strength", [None, 0.0, 0.5, 1.0, 1.7])
def test_global_risk_against_loops(strength, epsilon, gamma, radius):
    # strength None: no reference at all. The reference's width differs from the target's.
    guide = () if strength is None else (features(3, width=7), features(4, width=7))
    options = {
        "strength": 1.0 if strength is None else strength,
        "epsilon": epsilon,
        "gamma": gamma,
    }
    risk = exact_risk(tau=0.4, radius=radius, **options)
    history = plant_history(risk)
    before = risk.estimator.log_u.clone()
    image, text = features(1, gradient=True), features(2, gradient=True)
    estimate = run(risk, image, text, *guide)

    numpy_guide = (guide[0].numpy(), guide[1].numpy()) if guide else None
    truth = by_hand(
        image.detach().numpy(),
        text.detach().numpy(),
        tau_of(risk),
        guide=numpy_guide,
        history=history if gamma < 1 else None,
        radius=radius or 0.0,
        **options,
    )
    close(estimate.loss, truth.value)
    close(image.grad, truth.image)
    close(text.grad, truth.text)
    close(estimate.weights, truth.weight)
    assert not estimate.weights.requires_grad
    if radius is None:
        assert risk.temperature.log_tau.grad is None
    else:
        close(risk.temperature.log_tau.grad, tau_of(risk) * truth.tau)

    rows = 2 * INDEX + torch.arange(2)[:, None]
    close(risk.estimator.log_u[rows].exp(), truth.u)
    assert risk.estimator.visited[rows].all()
    untouched = torch.ones(2 * ALL, dtype=torch.bool)
    untouched[rows] = False
    torch.testing.assert_close(risk.estimator.log_u[untouched], before[untouched], rtol=0, atol=0)
    assert not risk.estimator.visited[untouched].all()


def test_history_over_three_steps_against_loops():
    # 1.5.2 as it runs: the second and third batch overlap the first in part.
    risk, u = exact_risk(tau=0.5, gamma=0.3, epsilon=0.01), np.full((2, ALL), np.nan)
    for step, index in enumerate(([0, 1, 2, 3], [2, 3, 4, 8], [3, 0, 8, 7])):
        image, text = (features(10 * step + k, count=4, gradient=True) for k in (1, 2))
        estimate = run(risk, image, text, index=torch.tensor(index))
        truth = by_hand(
            image.detach().numpy(),
            text.detach().numpy(),
            tau_of(risk),
            epsilon=0.01,
            gamma=0.3,
            history=u[:, index],
        )
        u[:, index] = truth.u
        close(estimate.loss, truth.value)
        close(image.grad, truth.image)
        close(text.grad, truth.text)
    close(risk.estimator.visited.view(ALL, 2).T, ~np.isnan(u))
    close(risk.estimator.log_u.view(ALL, 2).T[:, [0, 2, 3, 7, 8]].exp(), u[:, [0, 2, 3, 7, 8]])


def closed_form(
    image: Tensor,
    text: Tensor,
    tau: Tensor,
    guide: tuple[Tensor, Tensor],
    radius: float,
    eps: float,
):
    """F of docs/theory.md, (25), mean of both sides, for autograd: differentiable in features and
    τ."""
    B = len(image)
    sides = []
    for s, r in ((image @ text.T, guide[0] @ guide[1].T), (text @ image.T, guide[1] @ guide[0].T)):
        h = (s - s.diagonal()[:, None]) - (r - r.diagonal()[:, None])
        off = ~torch.eye(B, dtype=torch.bool)
        mean_exp = (h / tau).exp().where(off, 0.0).sum(1) / (B - 1)
        sides.append((tau * ((eps + mean_exp).log() + radius)).mean())
    return (sides[0] + sides[1]) / 2


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_without_history_the_surrogate_is_the_gradient_of_the_risk(epsilon):
    # Fact 9: γ = 1 and the batch is the data set. Also 1.5.4: then the temperature's gradient is
    # exact.
    guide = features(3, count=ALL, width=7), features(4, count=ALL, width=7)
    image, text = features(1, count=ALL, gradient=True), features(2, count=ALL, gradient=True)
    risk = exact_risk(tau=0.3, radius=0.2, epsilon=epsilon)
    estimate = run(risk, image, text, *guide, index=torch.arange(ALL))

    tau = torch.tensor(tau_of(risk), dtype=torch.float64, requires_grad=True)
    value = closed_form(image, text, tau, guide, 0.2, epsilon)
    by_image, by_text, by_tau = torch.autograd.grad(value, (image, text, tau))
    close(estimate.loss, value.item())
    close(image.grad, by_image.numpy())
    close(text.grad, by_text.numpy())
    close(risk.temperature.log_tau.grad, (tau * by_tau).item())


def test_the_temperature_gradient_by_finite_differences():
    guide = features(3), features(4)
    image, text = features(1, gradient=True), features(2, gradient=True)

    def value(log_tau: float) -> float:
        risk = exact_risk(tau=1.0, radius=0.2)
        risk.temperature.log_tau.data.fill_(log_tau)
        return run(risk, image, text, *guide).loss.item()

    risk, step = exact_risk(tau=1.0, radius=0.2), 1e-5
    risk.temperature.log_tau.data.fill_(-0.8)
    run(risk, image, text, *guide)
    close(
        risk.temperature.log_tau.grad,
        (value(-0.8 + step) - value(-0.8 - step)) / (2 * step),
        rtol=1e-7,
        atol=1e-9,
    )


def test_the_temperature_gradient_is_radius_minus_divergence():
    # Fact 5, averaged over anchors: R − KL(p ‖ uniform over the negatives).
    risk = exact_risk(tau=0.3, radius=0.2)
    p = run(risk, features(1, gradient=True), features(2, gradient=True)).weights
    kl = torch.special.xlogy(p, p * (BATCH - 1)).sum(-1)
    close(risk.temperature.log_tau.grad, (tau_of(risk) * (0.2 - kl.mean())).item())


# ---- the reference
# --------------------------------------------------------------------------------------------------


def test_a_copy_of_the_target_as_reference_gives_uniform_weights():
    # Fact 8.
    image, text = features(1, gradient=True), features(2, gradient=True)
    weights = run(exact_risk(tau=0.05), image, text, image.detach(), text.detach()).weights
    close(weights, (1 - np.eye(BATCH))[None].repeat(2, 0) / (BATCH - 1))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_constant_reference_loss_is_no_reference(strength):
    # Fact 8: orthonormal reference features give ℓ_ref = −1 on every negative: value higher by α,
    # gradient the same.
    image, text = features(1, gradient=True), features(2, gradient=True)
    plain = run(exact_risk(tau=0.2), image, text)
    expected = image.grad, text.grad
    one_hot = torch.eye(BATCH, dtype=torch.float64)
    steered = run(exact_risk(tau=0.2, strength=strength), image, text, one_hot, one_hot)
    close(steered.loss, plain.loss.item() + strength)
    close(image.grad, expected[0].numpy())
    close(text.grad, expected[1].numpy())


def test_strength_zero_is_no_reference_to_the_bit():
    # The no-reference switch reproduces the unguided method exactly.
    image, text = features(1, gradient=True), features(2, gradient=True)
    plain = run(exact_risk(tau=0.2, epsilon=0.1), image, text)
    expected = image.grad
    switched = run(
        exact_risk(tau=0.2, epsilon=0.1, strength=0.0), image, text, features(3), features(4)
    )
    assert torch.equal(switched.loss, plain.loss)
    assert torch.equal(image.grad, expected)


def test_the_reference_never_gets_a_gradient():
    # Fact 14.
    guide = features(3, gradient=True), features(4, gradient=True)
    image, text = features(1, gradient=True), features(2, gradient=True)
    run(exact_risk(tau=0.2), image, text, *guide)
    assert guide[0].grad is None
    assert guide[1].grad is None
    assert image.grad.abs().sum() > 0


# ---- invariances
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_of_the_batch_permutes_the_gradient(seed):
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(seed))
    guide = features(3), features(4)

    def step(order: Tensor) -> tuple[Tensor, ...]:
        risk = exact_risk(tau=0.2, gamma=0.4, epsilon=0.1)
        plant_history(risk)
        image, text = (features(k)[order].requires_grad_() for k in (1, 2))
        loss = run(risk, image, text, guide[0][order], guide[1][order], index=INDEX[order]).loss
        return loss.detach(), image.grad, text.grad, risk.estimator.log_u

    loss, image, text, table = step(torch.arange(BATCH))
    other = step(order)
    for found, expected in zip(other, (loss, image[order], text[order], table), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_swapping_the_modalities_swaps_the_gradients():
    image, text = features(1, gradient=True), features(2, gradient=True)
    loss = run(exact_risk(tau=0.2), image, text, features(3), features(4)).loss
    expected = text.grad, image.grad
    swapped = run(exact_risk(tau=0.2), text, image, features(4), features(3)).loss
    close(swapped, loss.item())
    close(text.grad, expected[0].numpy())
    close(image.grad, expected[1].numpy())


def test_only_cosines_count():
    # Rotating the target rotates its gradient; rotating the reference, both towers alike, changes
    # nothing.
    turn = torch.linalg.qr(features(8, count=WIDTH))[0]
    image, text = features(1, gradient=True), features(2, gradient=True)
    loss = run(exact_risk(tau=0.2), image, text, features(3), features(4)).loss
    turned = (image.detach() @ turn).requires_grad_(), (text.detach() @ turn).requires_grad_()
    close(
        run(exact_risk(tau=0.2), *turned, features(3) @ turn, features(4) @ turn).loss, loss.item()
    )
    close(turned[0].grad, (image.grad @ turn).numpy())


@few
@given(
    st.integers(0, 10**6), st.floats(0.01, 10), st.floats(0, 2), st.sampled_from([0.0, 0.01, 3.0])
)
def test_value_and_weights_stay_in_their_bounds(seed, tau, strength, epsilon):
    pairs = Pairs(
        features(seed), features(seed + 1), INDEX, features(seed + 2, 3), features(seed + 3, 3)
    )
    estimate = exact_risk(tau=tau, strength=strength, epsilon=epsilon)(negatives(pairs))
    assert (estimate.weights >= 0).all()
    assert (estimate.weights.diagonal(dim1=1, dim2=2) == 0).all()
    assert estimate.weights.sum(-1).max() < 1 + 1e-9
    units = negatives(pairs)
    assert units.mask is not None
    h = units.excess(strength)
    low = h.where(units.mask, 0.0).sum(-1).mean() / (BATCH - 1)
    high = torch.maximum(
        h.where(units.mask, -torch.inf).amax(-1), h.new_tensor(tau * math.log(epsilon or 1e-300))
    )
    assert low - 1e-9 <= estimate.loss <= high.mean() + tau * math.log(2) + 1e-9
    if epsilon == 0:
        close(estimate.weights.sum(-1), np.ones((2, BATCH)))
        assert estimate.loss <= high.mean() + 1e-9


def test_float32_features_agree_with_float64():
    pairs = [features(k) for k in (1, 2, 3, 4)]
    exact = stochastic(2 * ALL, tau=0.05)(
        negatives(Pairs(pairs[0], pairs[1], INDEX, pairs[2], pairs[3]))
    )
    single = [x.float() for x in pairs]
    found = stochastic(2 * ALL, tau=0.05)(
        negatives(Pairs(single[0], single[1], INDEX, single[2], single[3]))
    )
    assert found.loss.dtype == torch.float32
    assert exact.loss.dtype == torch.float64
    torch.testing.assert_close(found.loss.double(), exact.loss, rtol=1e-5, atol=1e-6)


def test_autocast_leaves_the_cosines_alone():
    image, text = features(1).float(), features(2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pairwise_losses(image, text), info_nce(image, text, 0.05)
    assert torch.equal(inside[0], pairwise_losses(image, text))
    assert torch.equal(inside[1], info_nce(image, text, 0.05))


# ---- bad input
# ------------------------------------------------------------------------------------------------------


def test_an_anchor_without_negatives_is_an_error():
    with pytest.raises(ValueError, match="at least 2 pairs over all ranks, got 1"):
        negatives(Pairs(features(1, count=1), features(2, count=1), torch.tensor([0])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"text": features(2, width=5)},
            r"image and text must both be \(b, d\), got \(6, 4\), \(6, 5\)",
        ),
        ({"image": features(1)[0], "text": features(2)[0]}, r"must both be \(b, d\), got \(4,\)"),
        ({"index": INDEX[:3]}, r"index must be \(b,\) = \(6,\), got \(3,\)"),
        ({"reference_image": features(3)}, "both reference_image and reference_text, or neither"),
        ({"reference_text": features(3)}, "both reference_image and reference_text, or neither"),
        (
            {"reference_image": features(3, count=5), "reference_text": features(4, count=5)},
            r"both be \(6, d'\)",
        ),
        (
            {"reference_image": features(3, width=3), "reference_text": features(4)},
            r"got \(6, 3\), \(6, 4\)",
        ),
        (
            {"reference_image": features(3)[:, 0], "reference_text": features(4)[:, 0]},
            r"got \(6,\), \(6,\)",
        ),
    ],
)
def test_pairs_that_do_not_fit_are_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        Pairs(**{"image": features(1), "text": features(2), "index": INDEX} | change)
