"""The exact worst case on whatever it may be given: extreme rows, any budget, float32, bad
input."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from solver_cases import check, every, random, rows
from torch import Tensor

from steering.dro import (
    KL,
    ChiSquare,
    CressieRead,
    CVaR,
    Divergence,
    TotalVariation,
    divergence,
    worst_case,
)

# Stability


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_rows(phi: Divergence, budget: dict[str, float], dtype: torch.dtype):
    losses = torch.tensor(
        [
            [1e30, -1e30, 0.0, 1.0, 1e29],
            [1e-30, -1e-30, 0.0, 1e-31, 2e-30],
            [7.0, 7.0, 7.0, 7.0, 7.0],
            [3e37, 3e37, 3e37, 3e37, -3e38],
            [1e6, 1e6 + 1, 1e6 + 2, 1e6, 1e6],
            [0.0, 0.0, 0.0, 0.0, 1e-38],
        ],
        dtype=dtype,
    )
    check(worst_case(losses, phi, **budget), losses, phi, **budget)


def test_small_temperature_in_float32():
    # Scores go up to 1e5; softmax(h/τ) is the naive twin in float64.
    losses = (10 * random(4, 50)).float()
    losses[:, 1] = losses.amax(-1) - 1e-4
    found = worst_case(losses, KL(), penalty=1e-4)
    torch.testing.assert_close(found.weights, (losses.double() / 1e-4).softmax(-1).float())
    expected = 1e-4 * ((losses.double() / 1e-4).logsumexp(-1) - math.log(50))
    torch.testing.assert_close(found.value, expected.float())


@every
def test_float32_is_near_the_float64_solution(phi: Divergence, budget: dict[str, float]):
    losses = random(4, 30).float()
    single, double = worst_case(losses, phi, **budget), worst_case(losses.double(), phi, **budget)
    torch.testing.assert_close(single.weights, double.weights.float(), rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(single.value, double.value.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(single.dual.tau, double.dual.tau.float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(1, 1_000_000), (3, 300_001), (4097, 300)])
def test_long_rows_and_many_rows_in_float32(shape: tuple[int, int]):
    # Longer and more than one block of the solver; sums of a million float32 numbers must not
    # drift.
    losses = random(*shape).float()
    softmax = (losses.double() / 0.5).softmax(-1)
    found = worst_case(losses, KL(), penalty=0.5)
    torch.testing.assert_close(found.weights.double(), softmax, rtol=2e-6, atol=0)
    torch.testing.assert_close(
        found.weights.double().sum(-1), torch.ones(shape[0]).double(), rtol=0, atol=5e-7
    )
    expected = 0.5 * ((losses.double() / 0.5).logsumexp(-1) - math.log(shape[1]))
    torch.testing.assert_close(found.value, expected.float(), rtol=1e-6, atol=1e-6)
    k = shape[1] // 10
    tail = losses.double().topk(k).values.mean(-1)
    torch.testing.assert_close(
        worst_case(losses, "cvar", level=k / shape[1]).value, tail.float(), rtol=1e-6, atol=1e-6
    )
    for form in ({"radius": 0.5}, {"penalty": 0.5}):
        found = worst_case(losses, ChiSquare(), **form)
        assert (found.gap.abs() <= 1e-5 * (losses.amax(-1) - losses.amin(-1))).all()


losses_of_any_kind = st.lists(
    st.one_of(
        st.floats(-1e30, 1e30, allow_subnormal=True),
        st.floats(-3, 3),
        st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30, 1e-300, 1e-12, 1 + 1e-15]),
    ),
    min_size=1,
    max_size=12,
)
strengths = st.one_of(
    st.floats(0, 1e3), st.sampled_from([0.0, 1e-300, 1e-35, 1e-20, 1e-8, 1e6, 1e300, math.inf])
)


def limited(phi: Divergence, radius: float, n: int) -> float:
    """The radius, or the most that n items can spend, or ∞."""
    most = float(phi.phi(rows(float(n))) / n + (phi.phi(rows(0.0)) * (n - 1) / n if n > 1 else 0))
    return radius if math.isinf(radius) else min(radius, most)


@settings(max_examples=250, derandomize=True, deadline=None)
@given(
    losses_of_any_kind,
    st.sampled_from(
        [KL(), ChiSquare(), TotalVariation(), CressieRead(1.5), CressieRead(0.5), CressieRead(0.0)]
    ),
    st.sampled_from(["radius", "penalty"]),
    strengths,
)
@example([0.0, -1e-300, -1.0], KL(), "radius", 0.9)
@example([1.0, 1 + 1e-15, 0.0], ChiSquare(), "radius", 1.0)
@example([0.0, 1.0, 1.0, 1.0], KL(), "radius", 1.0)  # a quotient of two counts is a float32
def test_any_budget_on_any_row(values: list[float], phi: Divergence, kind: str, strength: float):
    losses = rows(*values)
    budget = {kind: limited(phi, strength, len(values)) if kind == "radius" else strength}
    found = worst_case(losses, phi, **budget)
    check(found, losses, phi, **budget)
    slack = 1e-12 * (losses.abs().max().item() + 1e-300)
    assert losses.mean().item() - slack <= found.value.item() <= losses.max().item() + slack


@settings(max_examples=250, derandomize=True, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.floats(-(2.0**99), 2.0**99, width=32), st.sampled_from([0.0, 1.0, 1.0000001, -1.0])
        ),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 0.5, 1.0]), min_size=12, max_size=12),
    st.sampled_from(
        [KL(), ChiSquare(), TotalVariation(), CVaR(0.3), CressieRead(1.5), CressieRead(0.5)]
    ),
    st.one_of(st.floats(1e-8, 1), st.sampled_from([0.0, math.inf])),
    st.sampled_from(["radius", "penalty"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_certificate(
    values: list[float],
    prior: list[float],
    phi: Divergence,
    strength: float,
    kind: str,
    dtype: torch.dtype,
):
    # Gap ≤ 1e-10 of the spread in float64, 1e-5 in float32; with a mask and a prior from 1e-12 to
    # 1.
    losses, q = torch.tensor(values, dtype=dtype), torch.tensor(prior[: len(values)]).double()
    q[0] = 1.0
    mask = torch.arange(len(values)) % 4 != 3
    kept = losses[mask & (q > 0)].double()
    spread = max(float(kept.max() - kept.min()), 1e-300)
    budget = {
        kind: strength * spread
        if kind == "penalty" and strength < 2
        else limited(phi, strength, len(values))
    }
    found = worst_case(losses, phi, mask=mask, prior=q, **(budget if phi.takes_budget else {}))
    assert abs(float(found.gap)) <= (1e-10 if dtype == torch.float64 else 1e-5) * spread
    assert (found.weights >= 0).all()
    assert not found.weights[~mask | (q == 0)].any()
    torch.testing.assert_close(float(found.weights.double().sum()), 1.0, rtol=0, atol=1e-6)


def test_total_variation_at_any_price():
    losses = random(3, 9)
    for tau in (1e-6, 1.0, 1e3, 1e9, 1e15):
        found = worst_case(losses, "tv", penalty=tau)
        torch.testing.assert_close(found.gap, torch.zeros(3).double(), rtol=0, atol=1e-12)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(losses_of_any_kind, st.floats(1e-6, 1))
def test_cvar_of_any_level_on_any_row(values: list[float], level: float):
    losses = rows(*values)
    found = worst_case(losses, CVaR(level))
    check(found, losses, CVaR(level))
    k = max(level * len(values), 1.0)
    falling = sorted(values, reverse=True)
    shares = [min(1.0, max(0.0, k - i)) / k for i in range(len(values))]
    expected = sum(share * value for share, value in zip(shares, falling, strict=True))
    assert abs(found.value.item() - expected) <= 1e-9 * (max(map(abs, values)) + 1e-300)


# Bad input


@pytest.mark.parametrize(
    ("message", "losses", "arguments"),
    [
        (r"losses: row 1 holds nan at item 2", rows([1, 2, 3], [1, 2, math.nan]), {"radius": 0.1}),
        (
            r"losses: row \(0, 1\) holds -inf at item 0",
            rows([[1, 2], [-math.inf, 2]]),
            {"penalty": 0.1},
        ),
        (r"losses: the only row holds inf at item 1", rows(1, math.inf), {"penalty": 0.1}),
        (
            r"losses: row 1 spans more than float64",
            rows([0, 1], [1.5e308, -1.5e308]),
            {"radius": 0.1},
        ),
        (
            r"losses: expected at least one item in each row, got shape \(3, 0\)",
            torch.zeros(3, 0),
            {"radius": 0.1},
        ),
        (
            r"losses: expected at least one item in each row, got shape \(\)",
            torch.zeros(()),
            {"radius": 0.1},
        ),
        (r"losses: expected float32 or float64, got torch.int64", torch.arange(3), {"radius": 0.1}),
        (
            r"losses: expected float32 or float64, got torch.bfloat16",
            torch.zeros(3).bfloat16(),
            {"radius": 0.1},
        ),
        (
            r"mask: row 1 hides every item",
            torch.zeros(2, 2),
            {"radius": 0.1, "mask": torch.tensor([[True], [False]])},
        ),
        (
            r"mask: expected dtype bool, got torch.float32",
            torch.zeros(2, 2),
            {"radius": 0.1, "mask": torch.ones(2, 2)},
        ),
        (
            r"mask: expected a shape that broadcasts to \(2, 2\), got \(3, 2\)",
            torch.zeros(2, 2),
            {"radius": 0.1, "mask": torch.ones(3, 2, dtype=torch.bool)},
        ),
        (
            r"radius: expected a number >= 0, got -0.1 for row 0",
            torch.zeros(2, 2),
            {"radius": -0.1},
        ),
        (
            r"penalty: expected a number >= 0, got nan for row 1",
            torch.zeros(2, 2),
            {"penalty": rows(0, math.nan)},
        ),
        (
            r"penalty: expected .* broadcasts to \(2,\), got \(3,\)",
            torch.zeros(2, 2),
            {"penalty": rows(1, 2, 3)},
        ),
        (
            r"prior: row 0 holds -1.0 at item 1",
            torch.zeros(2, 2),
            {"radius": 0.1, "prior": rows(1, -1)},
        ),
        (
            r"prior: row 1 is zero on every item",
            torch.zeros(2, 2),
            {"radius": 0.1, "prior": rows([1, 1], [0, 0])},
        ),
        (
            r"prior: expected a shape that broadcasts",
            torch.zeros(2, 2),
            {"radius": 0.1, "prior": rows(1, 1, 1)},
        ),
        (
            r"prior: gets no gradient",
            torch.zeros(2),
            {"radius": 0.1, "prior": rows(1, 1).requires_grad_()},
        ),
        (r"penalty: gets no gradient", torch.zeros(2, 2), {"penalty": rows(1, 2).requires_grad_()}),
        (r"radius, rho, penalty: expected at least one of them, got none", torch.zeros(2), {}),
        (
            r"radius and rho: expected one of them",
            torch.zeros(2),
            {"radius": 0.1, "rho": 0.1},
        ),
    ],
)
def test_bad_input_is_named(message: str, losses: Tensor, arguments: dict[str, Any]):
    with pytest.raises(ValueError, match=message):
        worst_case(losses, KL(), **arguments)


@pytest.mark.parametrize(
    ("named", "arguments"), [("radius", {"radius": 0.1}), ("penalty", {"penalty": 0.0})]
)
def test_cvar_refuses_a_budget(named: str, arguments: dict[str, float]):
    with pytest.raises(ValueError, match=rf"{named}: CVaR\(level=0.5\) takes no budget"):
        worst_case(torch.zeros(2), CVaR(0.5), **arguments)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (
            "divergence: expected one of chi2, cressie-read, cvar, cvar-kl, kl, tv, got 'kls'",
            {"divergence": "kls"},
        ),
        ("level: 'cvar' needs it, got None", {"divergence": "cvar"}),
        ("order: 'cressie-read' needs it, got None", {"divergence": "cressie-read", "radius": 0.1}),
        (
            "level: belongs to 'cvar' and 'cvar-kl' only, got 0.1 together with 'kl'",
            {"divergence": "kl", "level": 0.1, "radius": 0.1},
        ),
        (
            "order: belongs to 'cressie-read' only",
            {"divergence": KL(), "order": 2.0, "radius": 0.1},
        ),
        (
            "order: expected a finite number other than 1",
            {"divergence": "cressie-read", "order": math.inf, "radius": 0.1},
        ),
    ],
)
def test_wrong_names_are_named(message: str, arguments: dict[str, Any]):
    with pytest.raises(ValueError, match=message):
        worst_case(torch.zeros(3), **arguments)


def test_names_are_objects():
    losses = random(2, 7)
    for name, options, phi in [
        ("kl", {}, KL()),
        ("chi2", {}, ChiSquare()),
        ("tv", {}, TotalVariation()),
        ("cressie-read", {"order": 1.5}, CressieRead(1.5)),
        ("cressie-read", {"order": 1.0}, KL()),
    ]:
        assert divergence(name, **options) == phi
        found, expected = (
            worst_case(losses, name, radius=0.1, **options),
            worst_case(losses, phi, radius=0.1),
        )
        assert torch.equal(found.weights, expected.weights)
    assert torch.equal(
        worst_case(losses, "cvar", level=0.3).weights, worst_case(losses, CVaR(0.3)).weights
    )
