"""The nested risk: naive loops, its limits (drrho, one flat adversary), invariances, what it
refuses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adversaries import options_of
from torch import Tensor

from steering.contrastive import Pairs, negatives
from steering.dro import worst_case
from steering.errors import SteeringError
from steering.items import Units
from steering.methods import Method, build_method, find_method
from steering.methods.drrho import DrrhoOptions

ALL, B = 12, 6
INDEX = torch.tensor([4, 0, 9, 2, 7, 11])


def features(seed: int, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(B, width, generator=generator, dtype=torch.float64), dim=-1)


def pairs(seed: int = 0, guided: bool = True) -> Pairs:
    image, text = features(seed).requires_grad_(), features(seed + 1).requires_grad_()
    guides = (features(seed + 2, 3), features(seed + 3, 3)) if guided else (None, None)
    return Pairs(image, text, INDEX, *guides)


def build(**options) -> Method:
    options = {"outer_tau": 0.1, "outer_prior": 0.0} | options
    method = build_method("nested", options_of("nested", **options), ALL).double()
    for risk, tau in (
        (method.inner, method.inner.temperature),
        (method.outer, method.outer.temperature),
    ):
        del risk
        tau.log_tau.data = tau.log_tau.data.double()
    method.inner.temperature.log_tau.data.fill_(math.log(options.get("tau", 0.07)))
    method.outer.temperature.log_tau.data.fill_(math.log(options["outer_tau"]))
    return method


def naive(
    batch: Pairs,
    tau: float,
    lam: float,
    alpha: float,
    beta: float,
    epsilon: float,
    kappa: float = 0.0,
) -> tuple[float, np.ndarray]:
    """F and the outer weights q, by loops over the definition."""
    target = batch.image.detach().numpy() @ batch.text.detach().numpy().T
    guide = batch.reference_image.numpy() @ batch.reference_text.numpy().T
    excess, prior = np.zeros(B), np.zeros(B)
    for i in range(B):
        for direction in (0, 1):
            inner, reference = 0.0, 0.0
            for j in range(B):
                if j == i:
                    continue
                loss = (target[i, j] if direction == 0 else target[j, i]) - target[i, i]
                other = (guide[i, j] if direction == 0 else guide[j, i]) - guide[i, i]
                inner += math.exp((loss - alpha * other) / tau) / (B - 1)
                reference += math.exp(other / tau) / (B - 1)
            prior[i] += tau * math.log(epsilon + reference) / 2
            excess[i] += (
                tau * (math.log(epsilon + inner) - beta * math.log(epsilon + reference)) / 2
            )
    prior = np.exp(-kappa * prior) / np.exp(-kappa * prior).sum()
    z = prior * np.exp(excess / lam)
    return lam * math.log(z.sum()), z / z.sum()


@pytest.mark.parametrize(
    ("alpha", "beta", "kappa"), [(0.0, 1.0, 0.0), (0.5, 1.0, 3.0), (1.0, 0.0, 0.5), (0.3, 2.0, 0.0)]
)
@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
def test_value_and_gradient_against_loops(alpha: float, beta: float, kappa: float, epsilon: float):
    batch = pairs()
    options = {"strength": alpha, "outer_strength": beta, "outer_prior": kappa}
    method = build(tau=0.2, outer_tau=0.15, epsilon=epsilon, **options)
    loss = method(batch).loss
    expected, _ = naive(batch, 0.2, 0.15, alpha, beta, epsilon, kappa)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss.backward()
    for leaf in (batch.image, batch.text):  # finite differences of the loops, feature by feature
        for place in [(0, 0), (2, 3), (5, 4)]:
            values = []
            for step in (1e-6, -1e-6):
                moved = leaf.detach().clone()
                moved[place] += step
                changed = {"image": batch.image.detach(), "text": batch.text.detach()}
                changed["image" if leaf is batch.image else "text"] = moved
                other = Pairs(
                    **changed,
                    index=INDEX,
                    reference_image=batch.reference_image,
                    reference_text=batch.reference_text,
                )
                values.append(naive(other, 0.2, 0.15, alpha, beta, epsilon, kappa)[0])
            assert leaf.grad[place].item() == pytest.approx(
                (values[0] - values[1]) / 2e-6, abs=1e-8
            )


def test_without_an_outer_adversary_it_is_drrho():
    # λ → ∞: the mean over pairs, less the constant mean of β G^ref.
    batch, twin = pairs(), pairs()
    nested = build(tau=0.1, outer_tau=1e9, strength=0.5)
    drrho = build_method("drrho", DrrhoOptions(tau=0.1, strength=0.5), ALL, unit="pair").double()
    drrho.risk.temperature.log_tau.data.fill_(math.log(0.1))
    nested(batch).loss.backward()
    drrho(twin).loss.backward()
    torch.testing.assert_close(batch.image.grad, twin.image.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(batch.text.grad, twin.text.grad, rtol=1e-6, atol=1e-9)


def test_without_an_outer_adversary_the_prior_is_a_soft_filter():
    # λ → ∞: the weights of the pairs are q⁰ ∝ exp(−κ G^ref), whatever the target does.
    rows = torch.randn(
        5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    reference = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    method = build(tau=0.5, outer_tau=1e9, outer_prior=2.0, epsilon=0.0)
    method(Units(rows, reference, torch.arange(5))).loss.backward()
    guide = 0.5 * ((reference / 0.5).logsumexp(-1) - math.log(4))
    torch.testing.assert_close(rows.grad.sum(-1), (-2 * guide).softmax(-1), rtol=1e-6, atol=1e-9)


def test_with_equal_temperatures_it_is_one_adversary_over_rows_and_items():
    # λ = τ, ε = 0, β = 0 on rows of equal length: KL(q_i p_ij) = KL(q) + Σ q_i KL(p_i), so the rows
    # lie in one long row.
    rows = torch.randn(
        4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    method = build(tau=0.3, outer_tau=0.3, epsilon=0.0, outer_strength=0.0)
    loss = method(Units(rows, None, torch.arange(4))).loss
    loss.backward()
    flat = worst_case(rows.detach().flatten(), "kl", penalty=0.3)
    torch.testing.assert_close(loss.detach(), flat.value)
    torch.testing.assert_close(rows.grad.flatten(), flat.weights)


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.0, 1 / (1 + math.e**2)), (1.0, 0.5), (2.0, 1 / (1 + math.e**-2))]
)
def test_a_pair_that_the_reference_finds_wrong_drops_out(beta: float, expected: float):
    # A clean anchor (losses −1) and a wrong one (losses 1), target and reference alike, λ = 1: q ∝
    # exp(G − βG), by hand.
    rows = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64).requires_grad_()
    method = build(tau=0.1, outer_tau=1.0, outer_strength=beta, epsilon=0.0)
    method(Units(rows, rows.detach().clone(), torch.arange(2))).loss.backward()
    torch.testing.assert_close(
        rows.grad.sum(-1), torch.tensor([expected, 1 - expected], dtype=torch.float64)
    )


def test_the_order_of_the_batch_does_not_matter():
    batch = pairs()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = Pairs(
        *(
            getattr(batch, name)[order]
            for name in ("image", "text", "index", "reference_image", "reference_text")
        )
    )
    torch.testing.assert_close(build()(batch).loss, build()(moved).loss)


def test_reference_equal_to_the_target_leaves_the_anchors_alone():
    image, text = features(0).requires_grad_(), features(1)
    step = build(tau=0.1, outer_tau=0.05)(Pairs(image, text, INDEX, image.detach(), text))
    assert step.metrics["outer_effective_sample_share"].item() == pytest.approx(1)


def test_history_over_two_steps():
    # Inner γ = 0.5: the second step's log u is the mean of both steps' u; outer γ = 0.5 likewise.
    method = build(tau=0.2, outer_tau=0.2, gamma=0.5, outer_gamma=0.5, epsilon=0.0)
    first, second = pairs(0), pairs(7)
    method(first)
    before = method.inner.estimator.log_u.clone()
    outer_before = method.outer.estimator.log_u.clone()
    method(second)
    units = negatives(second)
    d = (units.target / 0.2).masked_fill(~units.mask, -math.inf)
    g = d.logsumexp(-1) - math.log(B - 1)
    expected = torch.logaddexp(before[units.rows], g) - math.log(2)
    torch.testing.assert_close(method.inner.estimator.log_u[units.rows], expected)
    assert not torch.equal(method.outer.estimator.log_u, outer_before)


def test_a_learned_outer_temperature_has_the_slope_of_its_budget():
    method = build(tau=0.2, outer_tau=0.1, outer_radius=0.3)
    batch = pairs()
    method(batch).loss.backward()
    _, q = naive(batch, 0.2, 0.1, 0.0, 1.0, 1e-4)
    divergence = float((q * np.log(q * B)).sum())
    slope = method.outer.temperature.log_tau.grad.item() / 0.1  # by λ, not by log λ
    assert slope == pytest.approx(0.3 - divergence, abs=1e-9)


def test_rows_of_examples_work_and_a_single_row_is_refused():
    rows = torch.rand(3, 4, dtype=torch.float64).requires_grad_()
    assert build()(Units(rows, torch.rand(3, 4).double(), torch.arange(3))).loss.isfinite()
    with pytest.raises(SteeringError, match=r"method \(nested\): needs rows of losses"):
        build()(Units(rows[0], None, torch.tensor(0)))


def test_which_reference_it_uses():
    def uses(**options) -> bool:
        entry = find_method("nested")
        return entry.needs(options_of("nested", **{"outer_prior": 0.0, **options})).reference

    assert uses()
    assert uses(outer_strength=0.0, strength="auto")
    assert uses(outer_strength=0.0, outer_prior=1.0)
    assert not uses(outer_strength=0.0)
