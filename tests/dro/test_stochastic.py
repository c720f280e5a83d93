"""Mini-batch KL-DRO: docs/theory.md, section 5, and facts 1 to 5, 8, 10, 12; the running estimates,
the temperature, masks."""

import itertools
import math
from typing import Any

import pytest
import torch
from adversaries import stochastic
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.dro import KL, worst_case
from steering.dro.online.estimators import MovingAverageDual, gamma_schedule
from steering.dro.online.stochastic import StochasticRisk
from steering.dro.online.temperature import Temperature
from steering.dro.online.visit import Estimate
from steering.items import Units

EXACT = {"rtol": 1e-10, "atol": 1e-12}
few = settings(deadline=None, derandomize=True, max_examples=40)
ROW = torch.zeros((), dtype=torch.int64)


def losses(*values: float, gradient: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=gradient)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(target: Tensor, reference: Tensor | None = None, mask: Tensor | None = None) -> Units:
    """Rows with the keys 0, 1, ...; one row of key 0 for a vector."""
    rows = torch.arange(target[..., 0].numel()).reshape(target.shape[:-1])
    return Units(target, reference, rows, mask)


def exact_risk(num_rows: int = 1, *, tau: float, **options: Any) -> StochasticRisk:
    """The risk in float64 throughout, with exactly this temperature."""
    risk = stochastic(num_rows, tau=tau, **options).double()
    risk.temperature.log_tau.data.fill_(math.log(tau))
    return risk


def close(found: Tensor, expected: Tensor | float | list) -> None:
    torch.testing.assert_close(
        found.detach(), torch.as_tensor(expected, dtype=found.dtype).detach(), **EXACT
    )


# ---- the running estimates
# ------------------------------------------------------------------------------------------


def test_moving_average_by_hand():
    table = MovingAverageDual(3).double()
    rows = torch.tensor([2, 0])
    first = table.update(rows, losses(2.0, 8.0).log(), gamma=0.25)
    second = table.update(rows, losses(6.0, 0.0).log(), gamma=0.25)
    close(first.exp(), [2.0, 8.0])
    close(second.exp(), [0.75 * 2 + 0.25 * 6, 0.75 * 8])
    close(table.log_u[rows], second)
    assert table.visited.tolist() == [True, False, True]
    assert table.log_u[1] == 0


def test_zero_is_a_legal_logarithm():
    # A visited row with log u = 0 has history u = 1.
    table = MovingAverageDual(1).double()
    table.update(torch.tensor([0]), losses(0.0), gamma=0.5)
    close(table.update(torch.tensor([0]), losses(3.0).log(), gamma=0.5).exp(), [2.0])


def test_log_domain_equals_linear_domain():
    # Fact 10.
    table, u = MovingAverageDual(4).double(), torch.full((4,), torch.nan, dtype=torch.float64)
    for step, gamma in enumerate([0.3, 0.9, 1.0, 0.01, 0.5]):
        rows, g = torch.tensor([[0, 1], [2, 3]])[step % 2], random(2, seed=step).exp()
        u[rows] = torch.where(u[rows].isnan(), g, (1 - gamma) * u[rows] + gamma * g)
        close(table.update(rows, g.log(), gamma).exp(), u[rows])
        close(table.log_u.exp()[~u.isnan()], u[~u.isnan()])


def test_log_domain_stays_finite_where_exp_overflows():
    # Fact 10: d up to 1e4, and from one extreme to the other.
    table = MovingAverageDual(2)
    for log_g in ([1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]):
        new = table.update(torch.tensor([0, 1]), torch.tensor(log_g), gamma=0.5)
        assert new.isfinite().all()
    # Both rows: half of e^{1e4}, then (that + e^{1e4})/2. float32 keeps a number near 1e4 to 1e-3.
    torch.testing.assert_close(new, torch.tensor([1e4, 1e4]) + math.log(0.75), rtol=0, atol=2e-3)


def test_gamma_one_never_reads_history():
    # Fact 10.
    table = MovingAverageDual(2).double()
    table.log_u.fill_(torch.nan)
    table.visited.fill_(True)
    close(table.update(torch.tensor([1]), losses(0.7), gamma=1.0), [0.7])


def test_a_first_visit_ignores_what_is_stored():
    # Fact 10.
    table = MovingAverageDual(2).double()
    table.log_u.fill_(torch.nan)
    close(table.update(torch.tensor([1]), losses(0.7), gamma=0.3), [0.7])


def test_estimates_keep_the_dtype_of_the_losses():
    table = MovingAverageDual(1)
    assert table.update(ROW, losses(0.5)[0], gamma=0.5).dtype == torch.float64
    assert table.log_u.dtype == torch.float32
    assert table.update(ROW, losses(0.5)[0], gamma=0.5).dtype == torch.float64


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1, math.nan])
def test_rate_out_of_range(gamma):
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\]"):
        MovingAverageDual(1).update(ROW, losses(0.0)[0], gamma)


# ---- the schedule of the rate
# ---------------------------------------------------------------------------------------


def test_gamma_schedule():
    # Fact 12.
    assert gamma_schedule(0, 0.2, 10) == 1
    assert gamma_schedule(5, 0.2, 10) == pytest.approx((1 + 0.2) / 2, abs=1e-15)
    assert [gamma_schedule(e, 0.2, 10) for e in (10, 11, 100)] == [0.2] * 3
    assert gamma_schedule(0, 0.2, 0) == 0.2


@few
@given(st.floats(1e-6, 1), st.integers(1, 40))
def test_gamma_schedule_falls_from_exactly_one(final, decay):
    rates = [gamma_schedule(e, final, decay) for e in range(decay + 2)]
    assert rates[0] == 1  # one ulp more would be out of range
    assert rates[-2:] == [final, final]
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert max(rates) <= 1


def test_start_epoch_moves_the_rate():
    risk = stochastic(1, tau=1.0, gamma=0.2, gamma_decay_epochs=10)
    rates = []
    for epoch in (0, 5, 10):
        risk.start_epoch(epoch)
        rates.append(risk.estimator.gamma)
    assert rates == pytest.approx([1, 0.6, 0.2])
    assert stochastic(1, tau=1.0, gamma=0.2).estimator.gamma == 0.2


def test_the_rate_is_the_one_of_the_schedule():
    # u after two batches with g = e and g = 1: in epoch 0 (γ = 1) the second alone, in epoch 2 (γ =
    # 0.25) the mixture.
    for epoch, expected in ((0, 1.0), (2, 0.75 * math.e + 0.25)):
        risk = exact_risk(tau=1.0, gamma=0.25, gamma_decay_epochs=2)
        risk.start_epoch(epoch)
        risk(units(losses(1.0, 1.0)))
        close(risk(units(losses(0.0, 0.0))).loss, math.log(expected))


# ---- the temperature
# ------------------------------------------------------------------------------------------------


def test_temperature_keeps_what_it_is_given():
    assert Temperature(0.07, learned=False)().item() == pytest.approx(0.07, rel=1e-6)
    assert not Temperature(0.07, learned=False).log_tau.requires_grad
    assert Temperature(0.07, learned=True).log_tau.requires_grad


@pytest.mark.parametrize(("pushed", "expected"), [(-9.0, 0.01), (9.0, 2.0)])
def test_temperature_is_projected_and_not_trapped(pushed, expected):
    temperature = Temperature(0.5, learned=True, minimum=0.01, maximum=2.0)
    temperature.log_tau.data.fill_(pushed)
    tau = temperature()
    assert tau.item() == pytest.approx(expected, rel=1e-6)
    tau.backward()
    assert temperature.log_tau.grad.item() == pytest.approx(
        expected, rel=1e-6
    )  # dτ/dlog τ = τ, at the border too


@pytest.mark.parametrize(
    ("initial", "bounds"),
    [(0.0, {}), (-1.0, {}), (math.nan, {}), (math.inf, {}), (0.1, {"minimum": 0.2})],
)
def test_temperature_out_of_range(initial, bounds):
    with pytest.raises(ValueError, match="tau must be a number in"):
        Temperature(initial, learned=True, **bounds)


@pytest.mark.parametrize(
    "bounds", [{"minimum": 0.0}, {"minimum": math.nan}, {"minimum": 2.0, "maximum": 1.0}]
)
def test_bounds_of_the_temperature_out_of_range(bounds):
    with pytest.raises(ValueError, match="tau_min must lie in"):
        Temperature(1.0, learned=True, **bounds)


@pytest.mark.parametrize(("radius", "q"), [(None, 0.9), (0.0, 0.6), (0.3, 0.8)])
def test_two_losses_closed_form(radius, q):
    # h = (gap, 0) at τ = gap / logit(q) has p = (q, 1 − q), KL(p ‖ ½) = log 2 + q log q + (1 − q)
    # log(1 − q); fact 5.
    gap = 3.0
    tau = gap / math.log(q / (1 - q))
    kl = math.log(2) + q * math.log(q) + (1 - q) * math.log(1 - q)
    risk, target = exact_risk(tau=tau, radius=radius), losses(gap, 0.0, gradient=True)
    estimate = risk(units(target))
    estimate.loss.backward()
    close(estimate.weights, [q, 1 - q])
    close(target.grad, [q, 1 - q])
    close(estimate.loss, q * gap + tau * ((radius or 0.0) - kl))  # Σ p h − τ KL + τ R
    if radius is not None:
        close(risk.temperature.log_tau.grad, tau * (radius - kl))


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_temperature_gradient_of_a_row_with_history(gamma, epsilon):
    # 1.5.4: log(ε + u) + R − Σ p h/τ, with u the running estimate.
    h, tau, R, old = losses(0.3, -1.0, 2.0), 0.8, 0.25, 1.7
    risk = exact_risk(tau=tau, radius=R, gamma=gamma, epsilon=epsilon)
    risk.estimator.log_u.fill_(math.log(old))
    risk.estimator.visited.fill_(True)
    risk(units(h)).loss.backward()
    u = (1 - gamma) * old + gamma * (h / tau).exp().mean()
    p = (h / tau).exp() / 3 / (epsilon + u)
    close(risk.temperature.log_tau.grad, tau * ((epsilon + u).log() + R - (p * h).sum() / tau))


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_temperature_gradient_by_finite_differences(epsilon):
    h = units(random(3, 7))

    def value(log_tau: float, backward: bool = False) -> tuple[float, Tensor | None]:
        risk = exact_risk(3, tau=math.exp(log_tau), radius=0.4, epsilon=epsilon)
        loss = risk(h).loss
        if backward:
            loss.backward()
        return loss.item(), risk.temperature.log_tau.grad

    step = 1e-5
    slope = (value(-0.3 + step)[0] - value(-0.3 - step)[0]) / (2 * step)
    assert value(-0.3, backward=True)[1].item() == pytest.approx(slope, rel=1e-7)


def test_descending_the_temperature_finds_the_ball():
    # Fact 5: at the optimum KL(p ‖ uniform) = R, and the value is the exact worst case of the ball.
    h, radius = random(20), 0.3
    risk = exact_risk(tau=3.0, radius=radius)
    for _ in range(300):
        risk.zero_grad()
        risk(units(h)).loss.backward()
        risk.temperature.log_tau.data -= 0.5 * risk.temperature.log_tau.grad
    p = risk(units(h)).weights
    assert (p * (20 * p).log()).sum().item() == pytest.approx(radius, abs=1e-6)
    assert risk(units(h)).loss.item() == pytest.approx(
        worst_case(h, KL(), radius=radius).value.item(), abs=1e-9
    )


# ---- one batch without history
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.05, 0.7, 20.0])
def test_without_history_it_is_the_exact_worst_case(tau):
    h = random(4, 9).requires_grad_()
    estimate = exact_risk(4, tau=tau)(units(h))
    exact = worst_case(h, KL(), penalty=tau)
    close(estimate.loss, exact.value.mean())
    close(estimate.weights, exact.weights)
    (gradient,) = torch.autograd.grad(estimate.loss, h)
    close(gradient, exact.weights / 4)  # the mean over rows


def test_the_surrogate_is_the_gradient_of_log_mean_exp():
    # Fact 9 for plain rows.
    h = random(4, 9).requires_grad_()
    (found,) = torch.autograd.grad(exact_risk(4, tau=0.5)(units(h)).loss, h)
    (expected,) = torch.autograd.grad((0.5 * (h / 0.5).exp().mean(-1).log()).mean(), h)
    close(found, expected)


def test_high_temperature_is_plain_averaging():
    # Fact 1: gradient of ERM, value lower by the mean reference loss.
    target, reference = random(9).requires_grad_(), random(9, seed=1)
    estimate = exact_risk(tau=1e9)(units(target, reference))
    estimate.loss.backward()
    torch.testing.assert_close(target.grad, torch.full_like(target, 1 / 9), rtol=1e-8, atol=0)
    assert estimate.loss.item() == pytest.approx((target - reference).mean().item(), abs=1e-6)


def test_low_temperature_is_the_worst_excess():
    # Fact 2.
    target, reference = losses(3.0, 1.0, 2.0), losses(2.9, 0.2, 1.9)
    estimate = exact_risk(tau=1e-3, tau_min=1e-3)(units(target, reference))
    close(estimate.weights, [0.0, 1.0, 0.0])
    assert estimate.loss.item() == pytest.approx(0.8 - 1e-3 * math.log(3), abs=1e-9)


@few
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(0.05, 50))
def test_value_between_mean_and_maximum_and_falling_in_tau(values, tau):
    # Fact 3.
    h = losses(*values)
    sharp, flat = (exact_risk(tau=t)(units(h)).loss for t in (tau, 2 * tau))
    assert h.mean() - 1e-9 <= flat <= sharp + 1e-9
    assert sharp <= h.max() + 1e-9


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_a_shift_of_all_losses_shifts_the_value_alone(gamma):
    # Fact 4; with history, when every batch is shifted.
    def two_steps(shift: float) -> Estimate:
        risk = exact_risk(2, tau=0.5, gamma=gamma)
        risk(units(random(2, 5, seed=1) + shift))
        return risk(units(random(2, 5, seed=2) + shift))

    base, shifted = two_steps(0.0), two_steps(7.0)
    close(shifted.loss, base.loss + 7.0)
    close(shifted.weights, base.weights)


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_losses_and_temperature_have_one_unit(gamma):
    def two_steps(scale: float) -> Estimate:
        risk = exact_risk(2, tau=0.5 * scale, gamma=gamma, epsilon=0.3, radius=0.2)
        risk(units(random(2, 5, seed=1) * scale))
        return risk(units(random(2, 5, seed=2) * scale))

    base, scaled = two_steps(1.0), two_steps(40.0)
    close(scaled.loss, base.loss * 40)
    close(scaled.weights, base.weights)


def test_a_permutation_permutes_rows_and_items():
    h, mask, reference = random(3, 5), random(3, 5, seed=1) > -0.7, random(3, 5, seed=2)
    columns, rows = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])

    def two_steps(rows: Tensor, columns: Tensor) -> Estimate:
        risk = exact_risk(3, tau=0.5, gamma=0.4)
        for step in (1.0, -2.0):
            shuffled = [x[rows][:, columns] for x in (step * h, reference, mask)]
            estimate = risk(Units(shuffled[0], shuffled[1], rows, shuffled[2]))
        return estimate

    base, permuted = two_steps(torch.arange(3), torch.arange(5)), two_steps(rows, columns)
    close(permuted.loss, base.loss)
    close(permuted.weights, base.weights[rows][:, columns])


# ---- the reference
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.7])
def test_excess_losses_by_strength(strength):
    target, reference = random(6).requires_grad_(), random(6, seed=1).requires_grad_()
    estimate = exact_risk(tau=0.5, strength=strength)(units(target, reference))
    estimate.loss.backward()
    close(target.grad, ((target - strength * reference) / 0.5).softmax(-1))
    assert reference.grad is None  # fact 14


def test_a_constant_reference_is_plain_dro():
    # Fact 8.
    target = random(6)
    plain, steered = (
        exact_risk(tau=0.5)(units(target, r)) for r in (None, torch.full_like(target, 2.5))
    )
    close(steered.loss, plain.loss - 2.5)
    close(steered.weights, plain.weights)


def test_a_copy_of_the_target_gives_uniform_weights():
    # Fact 8.
    target = random(6)
    estimate = exact_risk(tau=0.01)(units(target, target.clone()))
    close(estimate.weights, [1 / 6] * 6)
    close(estimate.loss, 0.0)


# ---- the margin
# -----------------------------------------------------------------------------------------------------


def test_margin_by_hand():
    # All losses at τ·ln u: the row pulls with u / (ε + u), half at τ·ln ε; the value never falls
    # below τ·ln ε.
    tau, epsilon = 0.5, 0.01
    for u, share in ((1.0, 1 / 1.01), (epsilon, 0.5), (1e-6, 1e-6 / (0.01 + 1e-6))):
        estimate = exact_risk(tau=tau, epsilon=epsilon)(units(losses(*[tau * math.log(u)] * 4)))
        close(estimate.weights.sum(), share)
        close(estimate.loss, tau * math.log(epsilon + u))


def test_a_row_far_below_the_margin_stops_pulling():
    h = random(2, 5) * 0.1
    h[1] -= 100.0
    weights = exact_risk(2, tau=1.0, epsilon=0.1)(units(h)).weights.sum(-1)
    assert weights[0] > 0.85
    assert weights[1] < 1e-40


# ---- masks
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, -1e5])
@pytest.mark.parametrize("garbage", [0.0, 1e30, math.nan, math.inf, -math.inf])
def test_what_a_mask_hides_may_be_anything(garbage, level):
    kept, mask = random(4) + level, torch.tensor([True, False, True, True, False, True])
    target = torch.full((6,), garbage, dtype=torch.float64)
    target[mask] = kept
    target.requires_grad_()
    options = {"tau": 0.5, "epsilon": 0.2 if level == 0 else 0.0, "radius": 0.1}
    full, short = exact_risk(**options), exact_risk(**options)
    estimate = full(units(target, torch.full_like(target, garbage).where(~mask, 1.0), mask))
    expected = short(units(kept, torch.ones_like(kept)))
    estimate.loss.backward()
    expected.loss.backward()
    close(estimate.loss, expected.loss)
    close(estimate.weights[mask], expected.weights)
    close(target.grad[mask], expected.weights)
    close(target.grad[~mask], [0.0, 0.0])
    close(full.temperature.log_tau.grad, short.temperature.log_tau.grad)
    for name, value in expected.metrics.items():
        close(estimate.metrics[name], value)


def test_rows_of_different_length_average_as_rows():
    h, mask = random(2, 4), torch.tensor([[True] * 4, [True, False, False, False]])
    close(
        exact_risk(2, tau=0.5)(units(h, None, mask)).loss,
        (0.5 * ((h[0] / 0.5).exp().mean()).log() + h[1, 0]) / 2,
    )


def test_a_row_without_items_is_an_error():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"mask: row \[1\] of the losses has no items"):
        stochastic(2, tau=1.0)(units(random(2, 2), None, mask))


# ---- the log
# --------------------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    # h = (ln 3, 0) at τ = 1 has p = (¾, ¼): effective sample size 1 / (9/16 + 1/16) = 1.6 of 2.
    metrics = exact_risk(tau=1.0)(
        units(losses(math.log(3) + 1, 1.0, gradient=True), losses(1.0, 1.0))
    ).metrics
    expected = {
        "excess_mean": math.log(3) / 2,
        "excess_variance": math.log(3) ** 2 / 4,
        "effective_sample_share": 0.8,
        "weight_sum": 1.0,
        "weight_max": 1.5,  # of 2 items, so 1 is uniform
        "kl_spent": 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
        "tau": 1.0,
        "strength": 1.0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        close(metrics[name], value)
        assert metrics[name].shape == ()
        assert not metrics[name].requires_grad


def test_effective_sample_share_of_equal_losses_and_of_none():
    assert exact_risk(tau=1.0)(units(losses(2.0, 2.0, 2.0))).metrics["effective_sample_share"] == 1
    starved = exact_risk(tau=1e-2, tau_min=1e-2, epsilon=1.0)(
        units(losses(-1e3, -1e3))
    )  # weights underflow
    assert starved.metrics["effective_sample_share"] == 0


# ---- state, numerics, bad input
# -------------------------------------------------------------------------------------


def test_a_saved_state_continues_to_the_bit():
    def step(risk: StochasticRisk, seed: int) -> Tensor:
        h = random(3, 5, seed=seed).float()
        risk.zero_grad()
        loss = risk(units(h)).loss
        loss.backward()
        risk.temperature.log_tau.data -= 0.1 * risk.temperature.log_tau.grad
        return loss.detach()

    options: dict[str, Any] = {"tau": 0.5, "radius": 0.2, "gamma": 0.4}
    whole = stochastic(3, **options)
    for seed in range(3):
        step(whole, seed)
    resumed = stochastic(3, **options)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    for seed in range(3, 6):
        assert torch.equal(step(resumed, seed), step(whole, seed))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


@few
@given(
    st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=4
    ),
    st.sampled_from([0.01, 0.5, 1.0]),
    st.sampled_from([0.0, 1e-14, 1.0]),
)
def test_weights_stay_finite_in_float32(batches, gamma, epsilon):
    # History pulls u away from the batch's own mean, yet no weight exceeds 1/γ and nothing
    # overflows.
    risk = stochastic(1, tau=1.0, gamma=gamma, epsilon=epsilon)
    for batch in batches:
        estimate = risk(units(torch.tensor(batch)))
        assert estimate.loss.isfinite()
        assert estimate.weights.isfinite().all()
        assert (estimate.weights >= 0).all()
        assert estimate.weights.sum() <= 1.01 / gamma  # float32 keeps a logarithm of 1e4 to 1e-3
    assert risk.estimator.log_u.isfinite().all()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("tau", v) for v in (0.0, -1.0, math.nan)],
        *[("tau_min", v) for v in (0.0, -1.0, math.nan)],
        *[("radius", v) for v in (-0.1, math.nan, math.inf)],
        *[("strength", v) for v in (-0.1, math.nan, math.inf)],
        *[("epsilon", v) for v in (-0.1, math.nan, math.inf)],
        *[("gamma", v) for v in (0.0, -0.1, 1.1, math.nan)],
        ("num_rows", 0),
    ],
)
def test_an_option_out_of_range_is_named(option, value):
    with pytest.raises(ValueError, match=f"{option} must be .*, got {value}"):
        stochastic(**{"num_rows": 1, "tau": 1.0, option: value})


def test_a_rate_that_rises_from_its_end_is_named():
    with pytest.raises(ValueError, match="decay_epochs must be ≥ 0, got -1"):
        stochastic(1, tau=1.0, gamma_decay_epochs=-1)
    with pytest.raises(ValueError, match="tau must be finite with a radius, got inf"):
        stochastic(1, tau=math.inf, radius=0.1)


def test_a_learned_temperature_starts_inside_its_bounds():
    with pytest.raises(ValueError, match=r"tau must be a number in \[0.01, 1.0\], got 0.001"):
        stochastic(1, tau=0.001, radius=0.1, tau_min=0.01, tau_max=1.0)
    assert stochastic(1, tau=0.001, tau_min=0.01).temperature().item() == pytest.approx(
        0.001
    )  # fixed: any


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(())}, r"target must be \(..., n\) with n ≥ 1, got \(\)"),
        ({"target": torch.zeros(2, 0)}, r"target must be .*, got \(2, 0\)"),
        ({"reference": torch.zeros(3)}, r"reference must be \(2, 3\) like target, got \(3,\)"),
        ({"reference": torch.zeros(2, 1)}, r"reference must be \(2, 3\) like target, got \(2, 1\)"),
        ({"rows": torch.zeros(3)}, r"rows must be \(2,\), one key per row of target, got \(3,\)"),
        (
            {"mask": torch.ones(3, dtype=torch.bool)},
            r"mask must be bool, \(2, 3\), got torch.bool, \(3,\)",
        ),
        ({"mask": torch.ones(2, 3)}, r"mask must be bool, \(2, 3\), got torch.float32"),
    ],
)
def test_units_that_do_not_fit_are_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        Units(**{"target": torch.zeros(2, 3), "reference": None, "rows": torch.arange(2)} | change)
