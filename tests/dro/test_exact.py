"""The exact worst case: facts 1 to 8 of docs/facts.md, hand-computed cases, naive twins,
invariances, gradients."""

import math

import pytest
import torch
from solver_cases import EVERY, check, every, naive_value, random, rows
from torch import Tensor

from steering.dro import KL, ChiSquare, CVaR, Divergence, distance, worst_case

HAND: list[tuple[Divergence, dict[str, float]]] = [
    (d, {"penalty": t}) for d in (KL(), ChiSquare()) for t in (0.2, 3)
]

# Hand-computed cases


def test_kl_penalty_by_hand():
    # τ log mean exp(h/τ) with h = (τ log 3, 0): mean exp = 2, weights (3/4, 1/4).
    found = worst_case(rows(2 * math.log(3), 0.0), KL(), penalty=2.0)
    torch.testing.assert_close(found.value.item(), 2 * math.log(2))
    torch.testing.assert_close(found.weights, rows(0.75, 0.25))
    torch.testing.assert_close(found.dual.nu, found.value)
    assert found.dual.tau == 2


@pytest.mark.parametrize("q", [0.6, 0.9, 0.99])
def test_kl_radius_of_two_losses(q: float):
    # Weights (q, 1 − q) have KL = log 2 + q log q + (1 − q) log(1 − q), and softmax gives them at τ
    # = gap/logit(q).
    radius = math.log(2) + q * math.log(q) + (1 - q) * math.log(1 - q)
    found = worst_case(rows(3.0, 0.0), KL(), radius=radius)
    torch.testing.assert_close(found.weights, rows(q, 1 - q), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.dual.tau.item(), 3 / math.log(q / (1 - q)))


def test_chi_square_penalty_by_hand_where_a_weight_is_zero():
    # τ = 1, n = 3, as in the tilt test: ratios (1.25, 0, 1.75), value Σ p h − (1/6)(0.25² + 1 +
    # 0.75²).
    found = worst_case(rows(0.5, -3.0, 1.0), ChiSquare(), penalty=1.0)
    torch.testing.assert_close(found.weights, rows(1.25, 0.0, 1.75) / 3)
    torch.testing.assert_close(found.value.item(), (0.625 + 1.75) / 3 - (0.0625 + 1 + 0.5625) / 6)


def test_chi_square_radius_by_hand_where_weights_are_zero():
    # n = 4, weights (1/2 + c, 1/2 − c, 0, 0): D = (4 (1/2 + 2c²) − 1)/2 = 1 gives c = 1/√8.
    found = worst_case(rows(5.0, 4.0, -50.0, -60.0), ChiSquare(), radius=1.0)
    c = 1 / math.sqrt(8)
    torch.testing.assert_close(found.weights, rows(0.5 + c, 0.5 - c, 0, 0))
    torch.testing.assert_close(found.value.item(), 4.5 + c)


def test_one_item_is_its_own_worst_case():
    losses = rows([3.0], [-2.0])
    for phi, budget in [
        *EVERY,
        (KL(), {"radius": 0.0}),
        (KL(), {"radius": math.inf}),
        (ChiSquare(), {"penalty": 0.0}),
    ]:
        found = worst_case(losses, phi, **budget)
        torch.testing.assert_close(found.value, losses[:, 0])
        torch.testing.assert_close(found.weights, torch.ones_like(losses))


# The facts of docs/facts.md


@pytest.mark.parametrize(
    ("phi", "budget"),
    [(d, b) for d in (KL(), ChiSquare()) for b in ({"penalty": math.inf}, {"radius": 0.0})]
    + [(CVaR(1.0), {})],
)
def test_no_adversary_is_the_mean(phi: Divergence, budget: dict[str, float]):
    # Fact 1.
    target, reference = random(3, 7).requires_grad_(), random(3, 7, seed=1)
    found = worst_case(target - reference, phi, **budget)
    torch.testing.assert_close(found.value, target.mean(-1) - reference.mean(-1))
    found.value.sum().backward()
    torch.testing.assert_close(target.grad, torch.full_like(target, 1 / 7))
    torch.testing.assert_close(found.gap, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("phi", [KL(), ChiSquare()])
def test_a_weak_adversary_is_nearly_the_mean(phi: Divergence):
    # Fact 1, and the first order of its limit: the mean plus Var/(2τ), the mean plus √(2 R Var).
    losses = random(20)
    variance = losses.var(correction=0)
    for tau in (1e4, 1e8, 1e20, 1e300):
        expected = losses.mean() + variance / (2 * tau)
        torch.testing.assert_close(
            worst_case(losses, phi, penalty=tau).value, expected, rtol=0, atol=tau**-2 + 1e-15
        )
    for radius in (1e-8, 1e-12, 1e-20, 1e-30, 2e-31, 1e-40):
        found = worst_case(losses, phi, radius=radius)
        expected = losses.mean() + (2 * radius * variance).sqrt()
        torch.testing.assert_close(found.value, expected, rtol=0, atol=radius + 1e-15)
        assert distance(found.weights, phi) <= radius * 1.3
        if radius > 1e-31:
            torch.testing.assert_close(
                found.dual.tau, (variance / (2 * radius)).sqrt(), rtol=0.2, atol=0
            )
    assert found.dual.tau == math.inf


@pytest.mark.parametrize(
    ("phi", "budget"),
    [(KL(), {"radius": r}) for r in (math.log(5), math.inf)]
    + [(ChiSquare(), {"radius": r}) for r in (2.0, math.inf)]
    + [(d, {"penalty": t}) for d in (KL(), ChiSquare()) for t in (0.0, 1e-3, 1e-300)]
    + [(CVaR(0.2), {}), (CVaR(0.01), {})],
)
def test_a_free_adversary_takes_the_maximum(phi: Divergence, budget: dict[str, float]):
    # Fact 2; with the penalty τ the value is max − τ D(vertex).
    losses = rows(0.5, -1.0, 2.0, 1.5, -3.0)
    found = worst_case(losses, phi, **budget)
    vertex = rows(0, 0, 1, 0, 0)
    expected = 2.0 - (
        budget["penalty"] * distance(vertex, phi).item() if "penalty" in budget else 0.0
    )
    torch.testing.assert_close(found.weights, vertex)
    torch.testing.assert_close(found.value.item(), expected)
    torch.testing.assert_close(found.gap.item(), 0.0, rtol=0, atol=1e-14)
    if "radius" in budget:
        assert found.dual.tau == 0


@pytest.mark.parametrize(
    ("phi", "radius"), [(KL(), math.log(5 / 2)), (ChiSquare(), (5 / 2 - 1) / 2)]
)
def test_tied_maxima_share_and_need_less_radius(phi: Divergence, radius: float):
    # Fact 2 with k = 2 ties: R ≥ log(n/k), or (n/k − 1)/2.
    losses = rows(2.0, -1.0, 2.0, 1.5, -3.0)
    for budget in ({"radius": radius}, {"radius": math.inf}, {"penalty": 0.0}):
        found = worst_case(losses, phi, **budget)
        torch.testing.assert_close(found.weights, rows(0.5, 0, 0.5, 0, 0))
        assert found.value == 2
    assert worst_case(losses, phi, radius=0.99 * radius).value < 2 - 1e-5


@pytest.mark.parametrize("phi", [KL(), ChiSquare()])
def test_value_is_between_mean_and_max_and_monotone(phi: Divergence):
    # Fact 3.
    losses = random(4, 9).expand(60, 4, 9)
    strength = torch.logspace(-6, 3, 60, dtype=torch.float64)[:, None]
    most = phi.phi(rows(9.0)) / 9 + phi.phi(rows(0.0)) * 8 / 9  # of all weight on one item
    for sign, value in (
        (-1, worst_case(losses, phi, penalty=strength).value),
        (+1, worst_case(losses, phi, radius=strength.clamp_max(min(float(most), 1e3))).value),
    ):
        assert (value >= losses.mean(-1) - 1e-12).all()
        assert (value <= losses.amax(-1) + 1e-12).all()
        assert (sign * value.diff(dim=0) >= -1e-12).all()


@every
def test_shift_and_scale(phi: Divergence, budget: dict[str, float]):
    # Fact 4, and homogeneity: the penalty scales with the losses, the radius does not.
    losses = random(3, 8)
    found = worst_case(losses, phi, **budget)
    check(found, losses, phi, **budget)
    shifted = worst_case(losses + 1000, phi, **budget)
    torch.testing.assert_close(shifted.value, found.value + 1000)
    torch.testing.assert_close(shifted.weights, found.weights, rtol=1e-9, atol=1e-12)
    scaled_budget = {key: 40 * x if key == "penalty" else x for key, x in budget.items()}
    scaled = worst_case(40 * losses, phi, **scaled_budget)
    torch.testing.assert_close(scaled.value, 40 * found.value)
    torch.testing.assert_close(scaled.weights, found.weights)
    torch.testing.assert_close(scaled.dual.tau, 40 * found.dual.tau)


@pytest.mark.parametrize("phi", [KL(), ChiSquare()])
def test_radius_is_spent_and_is_the_slope_of_the_dual(phi: Divergence):
    # Fact 5. First for any τ: d/dτ [penalty value + τ R] = R − D(p_τ), so D(p_τ) = −slope of the
    # penalty value.
    losses, tau, step = random(6, 10), 0.7, 1e-5
    rise = (
        worst_case(losses, phi, penalty=tau + step).value
        - worst_case(losses, phi, penalty=tau - step).value
    )
    spent = distance(worst_case(losses, phi, penalty=tau).weights, phi)
    torch.testing.assert_close(rise / (2 * step), -spent, rtol=1e-6, atol=1e-8)
    # Then at the optimum, where that slope is zero; its τ is the derivative of the value in R.
    for radius in (1e-6, 1e-2, 0.5, 1.5):
        found = worst_case(losses, phi, radius=radius)
        torch.testing.assert_close(
            distance(found.weights, phi), torch.full_like(found.value, radius), rtol=1e-10, atol=0
        )
        twin = worst_case(losses, phi, penalty=found.dual.tau)
        torch.testing.assert_close(twin.weights, found.weights, rtol=1e-9, atol=1e-12)
        step = 1e-4 * radius
        rise = (
            worst_case(losses, phi, radius=radius + step).value
            - worst_case(losses, phi, radius=radius - step).value
        )
        torch.testing.assert_close(rise / (2 * step), found.dual.tau, rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_cvar_is_the_mean_of_the_top_k(k: int):
    # Fact 6.
    losses = random(5, 10)
    top = losses.topk(k)
    found = worst_case(losses, CVaR(k / 10))
    torch.testing.assert_close(found.value, top.values.mean(-1))
    torch.testing.assert_close(
        found.weights, torch.zeros_like(losses).scatter(-1, top.indices, 1 / k)
    )
    torch.testing.assert_close(found.dual.nu, top.values[:, -1])
    check(found, losses, CVaR(k / 10))


def test_cvar_takes_a_fraction_of_an_item():
    # k = 0.5 · 5 = 2.5: (4 + 3 + 2/2)/2.5.
    found = worst_case(rows(0.0, 3.0, 1.0, 4.0, 2.0), CVaR(0.5))
    torch.testing.assert_close(found.value.item(), 3.2)
    torch.testing.assert_close(found.weights, rows(0, 0.4, 0, 0.4, 0.2))


def test_chi_square_closed_form_while_no_weight_is_zero():
    # Fact 7.
    losses = random(40, 12)
    mean, std = losses.mean(-1), losses.std(-1, correction=0)
    for radius in (1e-9, 1e-3, 0.02, 0.2, 1.0):
        found = worst_case(losses, ChiSquare(), radius=radius)
        lowest = 1 + math.sqrt(2 * radius) * (losses.amin(-1) - mean) / std
        inside = lowest >= 0
        closed = mean + math.sqrt(2 * radius) * std
        torch.testing.assert_close(found.value[inside], closed[inside])
        torch.testing.assert_close(
            found.dual.tau[inside], (std / math.sqrt(2 * radius))[inside], rtol=1e-6, atol=0
        )
        assert (found.value[~inside] < closed[~inside]).all()
        assert inside.any() or radius > 0.5
        assert not inside.all() or radius < 0.1


@every
def test_reference_that_says_nothing(phi: Divergence, budget: dict[str, float]):
    # Fact 8: a constant reference is plain DRO; a reference that copies the target leaves nothing
    # to reweight.
    losses = random(3, 8).requires_grad_()
    plain, shifted = worst_case(losses, phi, **budget), worst_case(losses - 5, phi, **budget)
    torch.testing.assert_close(shifted.value, plain.value - 5)
    gradients = [torch.autograd.grad(found.value.sum(), losses)[0] for found in (plain, shifted)]
    torch.testing.assert_close(*gradients)
    copied = worst_case(losses - losses.detach(), phi, **budget)
    torch.testing.assert_close(copied.weights, torch.full_like(plain.weights, 1 / 8))
    torch.testing.assert_close(copied.value, torch.zeros_like(plain.value))


# Naive twins


@pytest.mark.parametrize(
    "row", [(0.3, -1.2, 0.8, 2.0), (0.0, 0.0, 1.0), (5.0, 4.9, -3.0, -3.1, 0.2, 0.0)]
)
@pytest.mark.parametrize(
    ("phi", "budget"), [*HAND, (KL(), {"radius": 0.3}), (ChiSquare(), {"radius": 0.8})]
)
def test_dual_minimised_numerically(
    row: tuple[float, ...], phi: Divergence, budget: dict[str, float]
):
    expected = naive_value(rows(*row), phi, **budget)
    torch.testing.assert_close(
        worst_case(rows(*row), phi, **budget).value.item(), expected, rtol=0, atol=1e-6
    )


@every
def test_no_distribution_does_better(phi: Divergence, budget: dict[str, float]):
    # Dense grid on the simplex of three items.
    losses = rows(0.4, -1.0, 0.7)
    axis = torch.linspace(0, 1, 401, dtype=torch.float64)
    p = torch.cartesian_prod(axis, axis)
    p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
    p = p[p[:, 2] >= 0]
    spent = distance(p, phi)
    reached = (p * losses).sum(-1) - (budget["penalty"] * spent if "penalty" in budget else 0)
    best = reached[spent <= budget.get("radius", 1e9)].max().item()
    value = worst_case(losses, phi, **budget).value.item()
    assert best <= value + 1e-12
    assert value - best < 0.02


# A divergence from outside


class TwiceKL(Divergence):
    """φ = 2 φ_KL, so its ball of radius R is KL's of R/2. Counts how often a row is tilted."""

    name = "twice_kl"
    takes_budget = True

    def __init__(self) -> None:
        self.tilts = 0

    def phi(self, t: Tensor) -> Tensor:
        return 2 * KL().phi(t)

    def conjugate(self, s: Tensor) -> Tensor:
        return 2 * KL().conjugate(s / 2)

    def ratio(self, s: Tensor) -> Tensor:
        return KL().ratio(s / 2)

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.tilts += 1
        ratios, nu = KL().tilt(scores / 2, mask, prior)
        return ratios, 2 * nu


@pytest.mark.parametrize("radius", [1e-12, 1e-3, 0.5, 2.0, 5.9, 6.7])
def test_a_new_divergence_needs_no_line_in_the_solver(radius: float):
    losses, phi = 3 * random(50, 30), TwiceKL()
    found, expected = (
        worst_case(losses, phi, radius=radius),
        worst_case(losses, KL(), radius=radius / 2),
    )
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(found.gap, torch.zeros_like(found.gap), rtol=0, atol=1e-13)
    assert phi.tilts < 30  # bisection alone would take 50


# Rows, masks, order


@every
def test_rows_are_solved_one_by_one(phi: Divergence, budget: dict[str, float]):
    losses = random(2, 3, 6) * rows([1e-3, 1.0, 1e3])[0].view(3, 1)
    together = worst_case(losses, phi, **budget)
    for i in range(2):
        for j in range(3):
            alone = worst_case(losses[i, j], phi, **budget)
            for a, b in (
                (alone.value, together.value),
                (alone.weights, together.weights),
                (alone.dual.tau, together.dual.tau),
                (alone.dual.nu, together.dual.nu),
            ):
                torch.testing.assert_close(a, b[i, j], rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(alone.gap, together.gap[i, j], rtol=0, atol=1e-9)


@pytest.mark.parametrize("phi", [KL(), ChiSquare()])
def test_a_row_does_not_feel_its_neighbours(phi: Divergence):
    # Bit by bit, however long the neighbours keep the search going.
    row = random(9)
    neighbours = (
        row,
        torch.zeros(9).double(),
        1e-20 * random(9, seed=1).exp(),
        (20 * random(9, seed=2)).exp(),
    )
    answers = [
        worst_case(torch.stack([row, other]), phi, radius=rows(0.3, 1.3)[0]).weights[0]
        for other in neighbours
    ]
    for answer in answers:
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=0)


@every
def test_order_does_not_matter(phi: Divergence, budget: dict[str, float]):
    losses = rows(1.0, 3.0, 1.0, 1.0, 0.0, 2.5, 1.0, 2.5)  # ties, also at the quantiles
    order = torch.tensor([3, 7, 0, 5, 1, 6, 2, 4])
    found, turned = worst_case(losses, phi, **budget), worst_case(losses[order], phi, **budget)
    torch.testing.assert_close(turned.weights, found.weights[order])
    torch.testing.assert_close(turned.value, found.value)
    torch.testing.assert_close(found.weights[0], found.weights[2])


@every
def test_masked_items_do_not_exist(phi: Divergence, budget: dict[str, float]):
    losses, mask = random(4, 7), torch.rand(4, 7, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[:, 0] = True
    hidden = losses.masked_fill(~mask, math.nan).requires_grad_()
    found = worst_case(hidden, phi, mask=mask, **budget)
    check(found, hidden.detach(), phi, mask, **budget)
    found.value.sum().backward()
    torch.testing.assert_close(hidden.grad, found.weights)
    for i in range(4):
        alone = worst_case(losses[i, mask[i]], phi, **budget)
        torch.testing.assert_close(alone.weights, found.weights[i, mask[i]])
        torch.testing.assert_close(alone.value, found.value[i])


@pytest.mark.parametrize("strength", [0.0, math.inf])
@pytest.mark.parametrize("kind", ["radius", "penalty"])
def test_masked_items_do_not_exist_in_the_limits(kind: str, strength: float):
    losses, mask = rows(2.0, 1.0, 9.0, 2.0), torch.tensor([True, True, False, True])
    free = (kind == "radius") == (strength > 0)
    expected = rows(0.5, 0, 0, 0.5) if free else rows(1, 1, 0, 1) / 3
    torch.testing.assert_close(
        worst_case(losses, KL(), mask=mask, **{kind: strength}).weights, expected
    )


def test_mask_and_budget_broadcast():
    losses, mask = random(2, 3, 4), ~torch.eye(3, 4, dtype=torch.bool)
    radius = rows(0.1, 0.2, 0.3)
    found = worst_case(losses, KL(), radius=radius, mask=mask)
    for j in range(3):
        alone = worst_case(losses[1, j], KL(), radius=radius[j].item(), mask=mask[j])
        torch.testing.assert_close(alone.weights, found.weights[1, j])
    assert worst_case(losses[:0], KL(), radius=0.1).weights.shape == (0, 3, 4)


# Gradients


@every
def test_gradcheck(phi: Divergence, budget: dict[str, float]):
    losses = random(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: worst_case(h, phi, **budget).value, (losses,))
    found = worst_case(losses, phi, **budget)
    assert found.value.requires_grad
    for part in (found.weights, found.dual.tau, found.dual.nu, found.gap):
        assert not part.requires_grad


def test_gradient_does_not_depend_on_the_number_of_steps_of_the_search():
    # The graph holds one product, whatever the search did.
    losses = random(2, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(
        worst_case(losses, KL(), radius=0.3).value.sum(), losses, create_graph=True
    )
    torch.testing.assert_close(gradient, worst_case(losses, KL(), radius=0.3).weights)
