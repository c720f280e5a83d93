"""Running duals: SCENT's facts (docs/facts.md), the proximal point, and where all of them end."""

import math
from typing import Any

import pytest
import torch
from adversaries import built, stochastic
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.dro import KL, ChiSquare, CressieRead, CVaR, Divergence, TotalVariation, worst_case
from steering.dro.online.estimators import (
    Estimator,
    MirrorDescentDual,
    MovingAverageDual,
    ProximalDual,
)
from steering.dro.online.steps import mirror_step, proximal_step
from steering.items import Units

ROW = torch.zeros((), dtype=torch.int64)
DIVERGENCES = [KL(), ChiSquare(), CVaR(0.3), CressieRead(1.5), CressieRead(0.5)]
few = settings(deadline=None, derandomize=True, max_examples=60)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def all_of(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def minimum(f: Any, low: float, high: float) -> float:
    """Of a convex function of one number, by golden sections."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if f(left) < f(right) else (left, high)
    return (low + high) / 2


# ---- mirror descent (SCENT)
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_mirror_step_is_the_argmin(seed: int):
    # Fact 1.
    nu, s, log_alpha = (3 * random(3, seed=seed)).tolist()

    def objective(x: float) -> float:
        bregman = math.exp(-x) - math.exp(-nu) + math.exp(-nu) * (x - nu)
        return math.exp(s - x) + x + bregman / math.exp(log_alpha)

    found = mirror_step(number(nu), number(s), log_alpha)
    assert float(found) == pytest.approx(minimum(objective, -20, 20), abs=1e-6)
    slope = 1 - math.exp(s - found) + (math.exp(-nu) - math.exp(-found)) / math.exp(log_alpha)
    assert abs(slope) < 1e-9 * (1 + math.exp(s - found) + math.exp(-nu - log_alpha))
    closed = nu + math.log1p(math.exp(log_alpha + s)) - math.log1p(math.exp(log_alpha + nu))
    assert float(found) == pytest.approx(closed, abs=1e-10)


@few
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-46, 46))
def test_mirror_step_lies_between_and_is_finite(nu: float, s: float, log_alpha: float):
    # Facts 2 and 4: α from 1e-20 to 1e20.
    found = float(mirror_step(number(nu), number(s), log_alpha))
    slack = 1e-12 * (1 + max(abs(nu), abs(s)))
    assert min(nu, s) - slack <= found <= max(nu, s) + slack
    assert float(mirror_step(number(nu), number(nu), log_alpha)) == pytest.approx(
        nu, rel=1e-12, abs=1e-12
    )


def test_limits_of_the_step():
    # Fact 3.
    nu, s = random(5), random(5, seed=1)
    torch.testing.assert_close(mirror_step(nu, s, 200.0), s)
    torch.testing.assert_close(mirror_step(nu, s, -200.0), nu)


@pytest.mark.parametrize("gamma", [0.1, 0.9])
def test_a_constant_rate_is_the_moving_average(gamma: float):
    # Fact 5: α = γ / ((1 − γ) e^ν′).
    nu, s = random(7), random(7, seed=1)
    found = mirror_step(nu, s, math.log(gamma / (1 - gamma)) - nu)
    table = MovingAverageDual(7).double()
    table.update(torch.arange(7), nu, gamma=1.0)
    torch.testing.assert_close(found, table.update(torch.arange(7), s, gamma))


def test_the_rate_that_makes_the_sample_mean():
    # Fact 6: α_t = y_{t−1}/(t − 1) with y = e^−ν.
    s = random(50)
    nu = s[0]
    for t in range(2, 51):
        nu = mirror_step(nu, s[t - 1], -nu - math.log(t - 1))
    torch.testing.assert_close(nu, s.logsumexp(0) - math.log(50))


def test_the_objective_around_its_minimum():
    # Fact 7: F(ν) = E e^{s−ν} + ν − 1, F(ν) − F(ν*) = q − log q − 1 with q = e^{ν*−ν}.
    s = random(40)
    best = s.logsumexp(0) - math.log(40)
    assert float((s - best).exp().mean()) == pytest.approx(1, rel=1e-12)
    for nu in best + torch.linspace(-2, 2, 9, dtype=torch.float64):
        q = (best - nu).exp()
        torch.testing.assert_close((s - nu).exp().mean() + nu - 1 - best, q - q.log() - 1)


def test_first_visit_takes_the_batch_and_full_batch_is_the_exact_gradient():
    # Fact 8.
    h = random(12).requires_grad_()
    risk = stochastic(1, tau=1.0, estimator="mirror_descent", log_alpha=-3.0, strength=0.0).double()
    loss = risk(Units(h, None, ROW)).loss
    loss.backward()
    torch.testing.assert_close(h.grad, h.detach().softmax(0), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        loss.detach(), h.detach().logsumexp(0) - math.log(12), rtol=1e-6, atol=1e-7
    )


def test_zero_is_a_legal_dual():
    table = MirrorDescentDual(1, 0.0).double()
    table(ROW, torch.zeros(1, dtype=torch.float64), torch.tensor([True]))
    _, nu = table(ROW, torch.full((1,), math.log(3), dtype=torch.float64), torch.tensor([True]))
    torch.testing.assert_close(nu.exp(), number(2.0))  # rate σ(0) = 1/2 between 1 and 3


# ---- the proximal point
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("step", [0.05, 1.0, 30.0])
def test_proximal_step_is_the_argmin(divergence: Divergence, step: float):
    for seed in range(5):
        s, before = random(9, seed=seed), float(random(1, seed=seed + 50))

        def objective(x: float, s: Tensor = s, before: float = before) -> float:
            return x + float(divergence.conjugate(s - x).mean()) + (x - before) ** 2 / (2 * step)

        t, nu = proximal_step(divergence, s, all_of(s), number(before), number(step))
        low = float(s.max()) - 2 if divergence == CressieRead(0.5) else -10.0  # where φ* is finite
        assert float(nu) == pytest.approx(minimum(objective, low, 10.0), abs=2e-7)
        # The weights that belong to it: a reply to the scores, of the mean that the proximal term
        # leaves.
        assert float(t.mean()) == pytest.approx(1 + (float(nu) - before) / step, abs=1e-9)
        fenchel = divergence.phi(t) + divergence.conjugate(s - nu) - t * (s - nu)
        assert float(fenchel.abs().max()) < 1e-9


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_limits_of_the_proximal_step(divergence: Divergence):
    s, mask = random(2, 9), random(2, 9, seed=1) > -0.7
    exact, exact_nu = divergence.tilt(s, mask)
    t, nu = proximal_step(
        divergence, s, mask, torch.zeros(2).double(), torch.full((2,), 1e12).double()
    )
    torch.testing.assert_close(t, exact, rtol=1e-6, atol=1e-9)
    if divergence != CVaR(0.3):  # whose ν is an interval if level · n is whole
        torch.testing.assert_close(nu, exact_nu, rtol=1e-6, atol=1e-9)
    _, nu = proximal_step(divergence, s, mask, exact_nu + 0.1, torch.full((2,), 1e-9).double())
    torch.testing.assert_close(nu, exact_nu + 0.1, rtol=0, atol=1e-7)


def test_the_step_falls_with_the_root_of_the_visits():
    found = ProximalDual(1, ChiSquare(), step=0.5).double()
    s = [random(6, seed=seed) for seed in range(3)]
    _, nu = found(ROW, s[0], all_of(s[0]))
    for visits in (1, 2):
        _, expected = proximal_step(
            ChiSquare(), s[visits], all_of(s[0]), nu, number(0.5 / math.sqrt(visits))
        )
        _, nu = found(ROW, s[visits], all_of(s[0]))
        torch.testing.assert_close(nu, expected)
    assert found.visits.tolist() == [3]


# ---- all of them
# -----------------------------------------------------------------------------------------------------

PAIRS = [
    ("batch", KL(), {}),
    ("batch", ChiSquare(), {}),
    ("batch", CVaR(0.3), {}),
    ("batch", TotalVariation(), {}),
    ("moving_average", KL(), {"gamma": 0.02}),
    ("mirror_descent", KL(), {"log_alpha": -3.0}),
    ("proximal", KL(), {"step": 0.3}),
    ("proximal", ChiSquare(), {"step": 0.3}),
    ("proximal", CVaR(0.3), {"step": 0.3}),
    ("proximal", CressieRead(1.5), {"step": 0.3}),
]
remembering = [pair for pair in PAIRS if pair[0] != "batch"]


@pytest.mark.parametrize(("name", "divergence", "options"), PAIRS, ids=str)
def test_a_first_full_batch_is_the_exact_worst_case(
    name: str, divergence: Divergence, options: dict[str, float]
):
    h = random(3, 11)
    mask = random(3, 11, seed=1) > -0.8
    tau = None if divergence == CVaR(0.3) else 0.7
    risk = stochastic(
        3, tau=tau, divergence=divergence, estimator=name, strength=0.0, **options
    ).double()
    if tau:
        risk.temperature.log_tau.data.fill_(math.log(tau))
    found = risk(Units(h, None, torch.arange(3), mask))
    expected = worst_case(h, divergence, mask=mask, **({} if tau is None else {"penalty": tau}))
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.loss, expected.value.mean(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "divergence", "options"), PAIRS, ids=str)
def test_a_first_batch_of_a_single_row_too(
    name: str, divergence: Divergence, options: dict[str, float]
):
    # The key of a plain batch of examples has no dimensions.
    s = random(11)
    t, nu = built(name, divergence, 1, **options).double()(ROW, s, all_of(s))
    exact, exact_nu = divergence.tilt(s, all_of(s))
    torch.testing.assert_close(t, exact)
    torch.testing.assert_close(nu, exact_nu)


@pytest.mark.parametrize(("name", "divergence", "options"), remembering, ids=str)
def test_small_batches_find_the_dual_of_all_examples(
    name: str, divergence: Divergence, options: dict[str, float]
):
    # 300 examples in batches of 8, a standing model. The plain mini-batch is off by its bias, these
    # are not.
    s = random(300, seed=3)
    _, exact = divergence.tilt(s, all_of(s))
    found, plain = (
        built(name, divergence, 1, **options).double(),
        built("batch", divergence, 1),
    )
    generator, duals, biased, means = torch.Generator().manual_seed(0), [], [], []
    for _ in range(1200):
        batch = s[torch.randint(300, (8,), generator=generator)]
        t, nu = found(ROW, batch, all_of(batch))
        duals.append(float(nu))
        means.append(float(t.mean()))
        biased.append(float(plain(ROW, batch, all_of(batch))[1]))
    error, bias = (abs(sum(x[400:]) / 800 - float(exact)) for x in (duals, biased))
    assert error < 0.03
    assert bias > 2 * error
    assert sum(means[400:]) / 800 == pytest.approx(1, abs=0.04)  # weights sum to one on average


@pytest.mark.parametrize(("name", "divergence", "options"), remembering, ids=str)
def test_rows_are_remembered_apart_and_the_state_is_complete(
    name: str, divergence: Divergence, options: dict[str, float]
):
    def build() -> Estimator:
        return built(name, divergence, 4, **options).double()

    def play(estimator: Estimator, seeds: list[int]) -> list[Tensor]:
        out = []
        for seed in seeds:
            rows = torch.tensor([[0, 1], [2, 0]])[seed % 2]
            out.append(estimator(rows, random(2, 5, seed=seed), all_of(random(2, 5)))[1])
        return out

    whole, resumed = build(), build()
    first = play(whole, [0, 1, 2])
    resumed.load_state_dict(whole.state_dict())
    for found, expected in zip(play(resumed, [3, 4]), play(whole, [3, 4]), strict=True):
        assert torch.equal(found, expected)
    alone = build()  # row 1 is met in the batches 0, 2 and 4 only: the others leave no trace in it
    for seed in (0, 2):
        nu = alone(torch.tensor([1]), random(2, 5, seed=seed)[1:], all_of(random(1, 5)))[1]
    torch.testing.assert_close(first[2][1], nu[0])


def test_total_variation_and_kl_have_what_fits_them():
    for name, divergence in [
        ("moving_average", ChiSquare()),
        ("mirror_descent", CVaR(0.5)),
        ("proximal", TotalVariation()),
    ]:
        with pytest.raises(
            ValueError,
            match=f"estimator '{name}' does not work for the divergence '{divergence.name}'",
        ):
            built(name, divergence, 1)
    assert isinstance(built(None, KL(), 1), MovingAverageDual)
    assert isinstance(built(None, CVaR(0.5), 1), ProximalDual)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("estimator must be one of batch, .*, got 'ema'", {"name": "ema"}),
        ("step must be a number > 0, got 0", {"name": "proximal", "step": 0.0}),
        ("log_alpha must be finite", {"name": "mirror_descent", "log_alpha": math.inf}),
        ("gamma must be in", {"gamma": 0.0}),
        ("num_rows must be at least 1, got 0", {"num_rows": 0}),
    ],
)
def test_wrong_options_are_named(message: str, options: dict[str, Any]):
    with pytest.raises(ValueError, match=message):
        built(**{"name": None, "phi": KL(), "num_rows": 1, **options})


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("tau must be None for 'cvar', got 1.0", {"divergence": "cvar", "level": 0.1, "tau": 1.0}),
        ("tau must be given, got None", {"divergence": "chi2", "tau": None}),
        (
            "radius must be None for 'cvar'",
            {"divergence": "cvar", "level": 0.1, "tau": None, "radius": 0.1},
        ),
        ("epsilon must be 0 for 'chi2'", {"divergence": "chi2", "tau": 1.0, "epsilon": 0.1}),
        ("level: 'cvar' needs it", {"divergence": "cvar", "tau": None}),
    ],
)
def test_risks_that_make_no_sense(message: str, options: dict[str, Any]):
    with pytest.raises(ValueError, match=message):
        stochastic(1, **options)


def test_a_learned_temperature_spends_the_radius():
    # Half chi-square with R = 0.2 on standing losses: τ goes to the exact multiplier.
    h = random(50)
    risk = stochastic(
        1, tau=3.0, divergence="chi2", radius=0.2, estimator="batch", strength=0.0
    ).double()
    optimizer = torch.optim.Adam(risk.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        loss = risk(Units(h, None, ROW)).loss
        loss.backward()
        optimizer.step()
    exact = worst_case(h, "chi2", radius=0.2)
    assert risk.temperature().item() == pytest.approx(float(exact.dual.tau), rel=1e-3)
    assert loss.item() == pytest.approx(float(exact.value), rel=1e-5)
