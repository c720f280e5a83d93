"""The adversary as one section: its defaults, its parts from outside, and the steering plane."""

import math
from pathlib import Path

import pytest
import torch
from adversaries import flat
from torch import Tensor

from steering.contrastive.naive import negatives
from steering.contrastive.risk import row_risks
from steering.dro import KL, ChiSquare, CressieRead, CVaR, Divergence, TotalVariation, worst_case
from steering.dro.adversary import Adversary
from steering.dro.divergences.base import DIVERGENCES
from steering.dro.divergences.proximal import by_sections
from steering.dro.online.metrics import Metrics
from steering.dro.online.specs import Batch, MovingAverage, Proximal
from steering.dro.online.stochastic import StochasticRisk
from steering.dro.online.strength import Auto
from steering.errors import SteeringError
from steering.items import Pairs, Units
from steering.methods import build_method, find_method
from steering.methods.drrho import DroOptions, DrrhoOptions
from steering.schedules import Constant, Linear
from steering.typed import differences, typed

ROW = torch.tensor(0)
HELLINGER = """
from dataclasses import dataclass
from torch import Tensor
from steering.dro import DIVERGENCES, Divergence

@DIVERGENCES.register("root")
@dataclass(frozen=True)
class Hellinger(Divergence):
    scale: float = 1.0

    def phi(self, t: Tensor) -> Tensor:
        return (2 * (t.clamp_min(0).sqrt() - 1).square()).masked_fill(t < 0, float("inf"))

    def conjugate(self, s: Tensor) -> Tensor:
        return (s / (1 - s / 2)).masked_fill(s >= 2, float("inf"))

    def ratio(self, s: Tensor) -> Tensor:
        return (1 - s / 2).pow(-2).masked_fill(s >= 2, float("inf"))
"""
ESTIMATOR = """
from dataclasses import dataclass
from steering.dro.online.estimators import MiniBatchDual
from steering.dro.online.specs import ESTIMATORS, EstimatorSpec

@ESTIMATORS.register("forgetful")
@dataclass(frozen=True)
class Forgetful(EstimatorSpec):
    unused: float = 1.0

    def build(self, divergence, num_rows, layout):
        return MiniBatchDual(divergence)
"""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fail(path: str, message: str) -> None:  # noqa: ARG001
    raise SteeringError(message)


def risk_of(**keys) -> StochasticRisk:
    risk = StochasticRisk(1, Adversary(**flat(**keys))).double()
    if risk.adversary.tau is not None:  # log τ was rounded to float32
        risk.temperature.log_tau.data.fill_(math.log(risk.adversary.tau(0.0)))
    return risk


# ---- one section


def test_short_spellings_mean_parts():
    long = Adversary(
        divergence=ChiSquare(), tau=Constant(2.0), strength=Auto(), estimator=Proximal()
    )
    assert Adversary("chi2", 2, strength="auto", estimator="proximal") == long
    assert hash(long) == hash(Adversary("chi2", 2.0, strength="auto", estimator=Proximal()))


@pytest.mark.parametrize(
    ("unit", "tau", "epsilon", "gamma"),
    [("example", 1.0, 0.0, 0.9), ("token", 1.0, 0.0, 1.0), ("pair", 0.07, 1e-4, 1.0)],
)
def test_what_null_means_by_unit(unit: str, tau: float, epsilon: float, gamma: float):
    found = Adversary().for_unit(unit)
    assert (found.tau, found.epsilon) == (Constant(tau), epsilon)
    assert found.estimator == MovingAverage(gamma)
    cvar = Adversary(CVaR(0.3)).for_unit(unit)
    assert (cvar.tau, cvar.epsilon, cvar.estimator) == (None, 0.0, Proximal())
    assert Adversary("tv").for_unit(unit).estimator == Batch()


def test_a_section_of_a_config_and_back():
    raw = {
        "divergence": {"name": "cvar", "level": 0.3},
        "estimator": {"name": "proximal", "step": 0.5},
        "strength": {"name": "linear", "start": 0, "end": 1},
        "prior": 0.5,
    }
    found = typed(DrrhoOptions, raw, "method", fail)
    assert found.divergence == CVaR(0.3)
    assert found.estimator == Proximal(0.5)
    assert found.strength == Linear(0, 1)
    assert typed(DrrhoOptions, differences(found), "method", fail) == found
    assert differences(DrrhoOptions()) == {}
    with pytest.raises(SteeringError, match=r"unknown key 'method.strength'"):
        typed(DroOptions, {"strength": 0.5}, "method", fail)
    with pytest.raises(SteeringError, match=r"method.divergence.level is missing"):
        typed(DroOptions, {"divergence": "cvar"}, "method", fail)


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        ("prior must be 0 for 'chi2'", {"divergence": "chi2", "tau": 1, "prior": 0.5}),
        ("prior must be a number ≥ 0, got -1", {"tau": 1, "prior": -1}),
        ("tau must be a number with a radius", {"tau": Linear(1, 2), "radius": 0.1}),
        ("tau must be None for 'cvar'", {"divergence": CVaR(0.3), "tau": 1}),
    ],
)
def test_what_does_not_fit_is_named(message: str, keys: dict):
    with pytest.raises(ValueError, match=message):
        StochasticRisk(1, Adversary(**keys))


# ---- parts from outside


@pytest.fixture
def outside(tmp_path: Path):
    """Registers parts for the length of a test."""
    from steering.dro.online.specs import ESTIMATORS

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    yield write
    DIVERGENCES._parts.pop("root", None)
    ESTIMATORS._parts.pop("forgetful", None)


def test_a_divergence_and_an_estimator_of_ones_own(outside):
    # φ(t) = 2(√t − 1)² is the Cressie–Read divergence of order 1/2.
    phi = f"{outside('mine.py', HELLINGER)}:root"
    estimator = f"{outside('slow.py', ESTIMATOR)}:forgetful"
    raw = {"divergence": phi, "tau": 0.7, "estimator": estimator}
    options = typed(DrrhoOptions, raw, "method", fail)
    assert differences(options) == {
        "divergence": {"name": phi},
        "tau": 0.7,
        "estimator": {"name": estimator},
    }
    method = build_method("drrho", options, 10).double()
    h = random(20).requires_grad_()
    step = method(Units(h, torch.zeros(20, dtype=torch.float64), ROW))
    exact = worst_case(h, CressieRead(0.5), penalty=float(torch.tensor(0.7)))
    torch.testing.assert_close(step.loss, exact.value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(step.weights, exact.weights, rtol=1e-5, atol=1e-7)
    found = worst_case(h, options.divergence, radius=0.3)
    expected = worst_case(h, CressieRead(0.5), radius=0.3)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-9, atol=1e-9)
    assert found.gap.abs() < 1e-10


@pytest.mark.parametrize("phi", [KL(), ChiSquare(), CVaR(0.3), CressieRead(3.0)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_the_tilt_by_search_is_the_written_one(phi: Divergence, scale: float):
    s, mask = scale * random(6, 11), random(6, 11, seed=1) < 0.7
    mask[:, 0] = True
    prior = random(6, 11, seed=2).exp() * mask
    prior = prior / prior.sum(-1, keepdim=True)
    for q in (None, prior):
        found, nu = Divergence.tilt(phi, s, mask, q)
        expected, expected_nu = phi.tilt(s, mask, q)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8 * scale**0.5)
        if phi != CVaR(0.3):  # its ν may be any number between two items
            torch.testing.assert_close(nu, expected_nu, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("phi", [ChiSquare(), CVaR(0.3), CVaR(1.0), CVaR(0.02)], ids=str)
def test_the_proximal_step_by_a_sort_is_that_by_sections(phi: Divergence):
    for seed in range(60):
        s = 3 * random(5, 9, seed=seed)
        s = s.round() if seed % 2 else s  # ties
        mask = None
        if seed % 3:
            mask = random(5, 9, seed=seed + 100) < 0.5
            mask[:, 0] = True
        before, lam = 3 * random(5, seed=seed + 200), random(5, seed=seed + 300).mul(3).exp()
        t, x = phi.proximal(s, mask, before, lam)
        expected, root = by_sections(phi.ratio, s, mask, before, lam)
        torch.testing.assert_close(x, root, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(t, expected, rtol=1e-7, atol=1e-7)


# ---- the plane


@pytest.mark.parametrize("kappa", [0.4, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_lie_on_the_plane(kappa: float, alpha: float, masked: bool):
    # p ∝ exp(ℓ/τ − (α/τ + κ)·ℓ_ref), and the value is τ·log Σ q exp(h/τ) with q ∝ exp(−κ·ℓ_ref).
    target, reference = random(4, 12).requires_grad_(), random(4, 12, seed=1)
    mask = random(4, 12, seed=2) < 0.8 if masked else None
    counts = torch.ones(4, 12, dtype=torch.bool) if mask is None else mask
    risk = risk_of(tau=0.5, strength=alpha, prior=kappa, gamma=1.0)
    risk = StochasticRisk(4, risk.adversary).double()
    found = risk(Units(target, reference, torch.arange(4), mask))
    found.loss.backward()
    scores = target.detach() / 0.5 - (alpha / 0.5 + kappa) * reference
    p = scores.masked_fill(~counts, -math.inf).softmax(-1)
    q = (-kappa * reference).masked_fill(~counts, -math.inf).softmax(-1)
    torch.testing.assert_close(found.weights, p, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(target.grad, p / 4, rtol=1e-6, atol=1e-9)
    value = 0.5 * (q * ((target - alpha * reference) / 0.5).exp()).sum(-1).log()
    torch.testing.assert_close(found.loss.detach(), value.mean().detach(), rtol=1e-6, atol=1e-8)
    assert found.metrics["prior"] == kappa


def test_no_prior_is_no_prior_to_the_bit():
    units = Units(random(9), random(9, seed=1), ROW)
    one = risk_of(tau=0.5)(units)
    other = risk_of(tau=0.5, prior=Linear(0.0, 1.0))(units)  # begins at 0
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(one.weights, other.weights)
    assert "prior" not in one.metrics


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_an_infinite_temperature_the_prior_is_a_soft_filter(alpha: float):
    target, reference = random(9).requires_grad_(), random(9, seed=1)
    risk = StochasticRisk(1, Adversary(tau=math.inf, strength=alpha, prior=1.5))
    found = risk(Units(target, reference, ROW))
    found.loss.backward()
    q = (-1.5 * reference).softmax(-1)
    torch.testing.assert_close(target.grad, q)
    torch.testing.assert_close(
        found.loss.detach(), (q * (target - alpha * reference)).sum().detach()
    )
    plain = StochasticRisk(1, Adversary(tau=math.inf, strength=0.0))(Units(target, reference, ROW))
    torch.testing.assert_close(plain.loss, target.mean())  # the origin of the plane


def test_the_prior_of_examples_is_that_of_the_convex_problem():
    target, reference = random(15), random(15, seed=1)
    q = (-0.8 * reference).softmax(-1)
    found = risk_of(tau=0.3, strength=1.0, prior=0.8, gamma=1.0)(Units(target, reference, ROW))
    exact = worst_case(target - reference, "kl", penalty=0.3, prior=q)
    torch.testing.assert_close(found.loss, exact.value, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.weights, exact.weights, rtol=1e-6, atol=1e-9)


def test_pairs_have_a_prior_over_their_negatives():
    image, text, *guide = torch.nn.functional.normalize(random(4, 6, 5), dim=-1)
    pairs = Pairs(image, text, torch.arange(6), *guide)
    adversary = Adversary(tau=0.4, strength=0.5, prior=2.0)
    found = row_risks(StochasticRisk(12, adversary).double(), pairs).risks
    expected = StochasticRisk(12, adversary).double().per_row(negatives(pairs))[0]
    torch.testing.assert_close(found, expected)
    units = negatives(pairs)
    scores = units.target / 0.4 - (0.5 / 0.4 + 2) * units.reference
    mass = scores.exp().masked_fill(~units.mask, 0).sum(-1)
    start = (-2 * units.reference).exp().masked_fill(~units.mask, 0).sum(-1)
    torch.testing.assert_close(found, 0.4 * (mass / start).log(), rtol=1e-6, atol=1e-7)


def test_schedules_move_and_are_told():
    schedule = {"tau": Linear(1.0, 3.0), "strength": Linear(0.0, 1.0), "prior": Linear(2.0, 0.0)}
    method = build_method("drrho", find_method("drrho").options(**schedule), 5)
    for progress in (0.0, 0.25, 1.0):
        method.at(progress)
        step = method(Units(random(8).float(), random(8, seed=1).float(), ROW))
        found = [step.metrics[name].item() for name in ("tau", "strength", "prior")]
        assert found == pytest.approx([1 + 2 * progress, progress, 2 - 2 * progress])
    method.at(0.25)  # metrics that were not read yet keep their step's numbers
    assert step.metrics["strength"] == 1
    with pytest.raises(ValueError, match="strength must be a number ≥ 0"):
        StochasticRisk(1, Adversary(tau=1.0, strength=Linear(1.0, -1.0))).at(0.9)


def test_a_constant_never_moves():
    method = build_method("drrho", find_method("drrho").options(tau=0.3), 5)
    before = method.risk.temperature.log_tau.clone()
    method.at(0.7)
    assert torch.equal(method.risk.temperature.log_tau, before)


def test_total_variation_needs_no_estimator_of_its_own():
    with pytest.raises(ValueError, match="estimator 'proximal' does not work"):
        StochasticRisk(1, Adversary(TotalVariation(), 1.0, estimator=Proximal()))


# ---- CVaR with a KL price


def test_cvar_with_a_kl_price_lies_between_cvar_and_kl():
    h = random(5, 20)
    priced = worst_case(h, "cvar-kl", level=0.3, penalty=0.5)
    bound = torch.full_like(priced.weights, 1 / (0.3 * 20))
    assert (priced.weights <= bound * (1 + 1e-12)).all()
    assert (priced.value <= worst_case(h, "cvar", level=0.3).value).all()
    assert (priced.value <= worst_case(h, "kl", penalty=0.5).value + 1e-12).all()
    free = worst_case(h, "cvar-kl", level=0.3, penalty=0.0)
    torch.testing.assert_close(free.value, worst_case(h, "cvar", level=0.3).value)
    wide = worst_case(h, "cvar-kl", level=1e-4, penalty=0.5)
    torch.testing.assert_close(wide.weights, worst_case(h, "kl", penalty=0.5).weights)
    # The optimality condition: below the ceiling weights are those of one exponential.
    inside = priced.weights < bound * (1 - 1e-9)
    level = (priced.weights.log() - h / 0.5).masked_fill(~inside, 0.0)
    mean = level.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
    torch.testing.assert_close(level, torch.where(inside, mean, 0.0), rtol=0, atol=1e-9)


def test_cvar_with_a_kl_price_from_mini_batches():
    h = random(20).requires_grad_()
    adversary = flat(divergence="cvar-kl", level=0.3, tau=0.5, estimator="batch", strength=0.0)
    risk = StochasticRisk(1, Adversary(**adversary)).double()
    loss = risk(Units(h, None, ROW)).loss
    loss.backward()
    exact = worst_case(h, "cvar-kl", level=0.3, penalty=0.5)
    torch.testing.assert_close(h.grad, exact.weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss, exact.value, rtol=1e-6, atol=1e-9)


def test_metrics_are_made_when_they_are_read():
    made = []

    def make() -> dict[str, Tensor]:
        made.append(torch.is_grad_enabled())
        return {"one": torch.ones(())}

    metrics = Metrics(make)
    both = {"zero": torch.zeros(())} | (metrics | {"two": torch.ones(())}).prefixed("outer_")
    assert made == []
    assert [*both] == ["zero", "outer_one", "outer_two"]
    assert dict(both) == dict(both)
    assert made == [False]  # once, and without gradients


def test_cvar_with_a_kl_price_is_certified_in_float32():
    h = random(40, 20).float()
    for budget in ({"penalty": 0.5}, {"radius": 0.3}, {"penalty": 0.5, "radius": 0.2}):
        found = worst_case(h, "cvar-kl", level=0.3, **budget)
        assert (found.gap.abs() < 1e-5).all()
