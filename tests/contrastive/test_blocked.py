"""The blocked contrastive risk against the dense one, in every way that decides its path."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from adversaries import stochastic
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from steering.contrastive import Pairs, blocked, info_nce, negatives, problem
from steering.contrastive import risk as risk_of
from steering.contrastive.gradients import Entries, gradients
from steering.contrastive.problem import LOG2E
from steering.contrastive.risk import anchor_risks, info_nce_losses, reference_risks
from steering.dro.online.individual_temperatures import IndividualTemperatures
from steering.dro.online.stochastic import StochasticRisk

B, D = 70, 16
Outcome = tuple[Tensor, ...]


def features(dtype: torch.dtype, common: float = 1.0) -> list[Tensor]:
    """Image, text, and the reference's; `common` is how much all of them share, which raises all
    cosines alike."""
    generator = torch.Generator().manual_seed(0)
    shared = common * torch.randn(4, 1, D, generator=generator, dtype=torch.float64)
    made = F.normalize(
        torch.randn(4, B, D, generator=generator, dtype=torch.float64) + shared, dim=-1
    )
    return [*made.to(dtype)]


def planted(dtype: torch.dtype, **options) -> StochasticRisk:
    """A risk with a history of three quarters of the anchors."""
    risk = stochastic(2 * B, **options).to(dtype)
    generator = torch.Generator().manual_seed(1)
    risk.estimator.log_u.copy_(torch.randn(2 * B, generator=generator))
    risk.estimator.visited.copy_(torch.rand(2 * B, generator=generator) < 0.75)
    return risk


def outcome(
    risk: StochasticRisk, sides: list[Tensor], weights: Tensor, dense: bool, budget: int = 0
) -> Outcome:
    """Risks, gradients of their weighted sum by features and temperature, and the running
    estimates."""
    risk = copy.deepcopy(risk)
    image, text = (side.clone().requires_grad_() for side in sides[:2])
    pairs = Pairs(image, text, torch.arange(B), *sides[2:])
    risks = risk.per_row(negatives(pairs))[0] if dense else anchor_risks(risk, pairs, budget)[0]
    (risks * weights).sum().backward()
    if isinstance(risk.temperature, IndividualTemperatures):
        learned: Tensor | None = risk.temperature.duals.table
    else:
        learned = risk.temperature.log_tau.grad
    return (
        risks.detach(),
        image.grad,
        text.grad,
        risk.estimator.log_u,
        torch.zeros(()) if learned is None else learned,
    )


def same(found: Outcome, expected: Outcome, tolerance: float) -> None:
    for x, y in zip(found, expected, strict=True):
        assert (x - y).norm() <= tolerance * y.norm() + 1e-30


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(problem, "BLOCK_BYTES", 1)  # blocks of 64 rows and of what is left


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize("scale", [14.0, 100.0])
@pytest.mark.parametrize("epsilon", [1e-14, 1e-4])
@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("guided", [True, False])
def test_the_dense_path(dtype, tolerance, scale, epsilon, gamma, guided):
    risk = planted(
        dtype, tau=1 / scale, epsilon=epsilon, gamma=gamma, strength=0.8 if guided else 0.0
    )
    sides, weights = features(dtype), torch.full((2, B), 1 / (2 * B), dtype=dtype)
    expected = outcome(risk, sides, weights, dense=True)
    for budget in (0, 64 * B * 8, 1 << 30):  # none, the first block, or all are kept
        same(outcome(risk, sides, weights, dense=False, budget=budget), expected, tolerance)


@pytest.mark.parametrize("tau", [0.5, 0.002])
def test_both_exponential_paths_are_taken(tau, monkeypatch):
    # At τ = 0.002 logits span a thousand nats: one constant for a whole block cannot serve.
    taken = []
    exact = blocked._two_exponentials
    monkeypatch.setattr(blocked, "_two_exponentials", lambda *a: taken.append(1) or exact(*a))
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-8)):
        risk = planted(dtype, tau=tau, epsilon=1e-4, gamma=0.8, tau_min=1e-4)
        sides, weights = features(dtype, common=0.0), torch.full((2, B), 1 / (2 * B), dtype=dtype)
        same(
            outcome(risk, sides, weights, dense=False),
            outcome(risk, sides, weights, dense=True),
            tolerance,
        )
    assert len(taken) == (0 if tau == 0.5 else 2)


@pytest.mark.parametrize("tau", [0.2, 0.003])
@pytest.mark.parametrize("estimator", ["moving_average", "mirror_descent", "batch"])
def test_a_learned_temperature_and_every_estimator(tau, estimator):
    sides = features(torch.float64, common=0.3)
    weights = torch.rand(
        2, B, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )  # of an outer adversary
    results = []
    for dense in (True, False):
        risk = stochastic(
            2 * B, tau=tau, radius=0.3, estimator=estimator, gamma=0.5, tau_min=1e-3
        ).double()
        pairs = [side.clone().requires_grad_() for side in sides[:2]]
        for _ in range(2):  # the second visit reads history
            batch = Pairs(*pairs, torch.arange(B), *sides[2:])
            risks = risk.per_row(negatives(batch))[0] if dense else anchor_risks(risk, batch, 0)[0]
        (risks * weights).sum().backward()
        results.append(
            (risks.detach(), pairs[0].grad, pairs[1].grad, risk.temperature.log_tau.grad)
        )
    same(results[1], results[0], 1e-6)  # the estimates pass through float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize("scale", [14.0, 100.0])
@pytest.mark.parametrize("epsilon", [1e-14, 1e-4])
@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("guided", [True, False])
def test_a_temperature_for_every_anchor(dtype, tolerance, scale, epsilon, gamma, guided):
    strength = 0.8 if guided else 0.0
    risk = planted(
        dtype,
        tau=1 / scale,
        radius=2.0,
        epsilon=epsilon,
        gamma=gamma,
        strength=strength,
        individual_tau=True,
    )
    generator = torch.Generator().manual_seed(4)
    some = torch.randperm(2 * B, generator=generator)[: 3 * B // 2]  # a quarter has never been seen
    state = torch.rand(len(some), 4, generator=generator).to(dtype)
    risk.temperature.duals.write(
        some, torch.cat([(1 + state[:, :1]) / scale, state[:, 1:]], 1), False
    )
    sides = features(dtype)
    weights = (
        torch.rand(2, B, generator=generator, dtype=torch.float64).to(dtype) / B
    )  # of an outer adversary
    expected = outcome(risk, sides, weights, dense=True)
    assert not torch.equal(expected[-1], risk.temperature.duals.table)
    for budget in (0, 64 * B * 8, 1 << 30):
        found = outcome(risk, sides, weights, dense=False, budget=budget)
        same(found[:-1], expected[:-1], tolerance)
        # Adam divides by the root of a mean square: where that is small, rounding of a slope counts
        # more.
        torch.testing.assert_close(
            found[-1], expected[-1], rtol=1e3 * tolerance, atol=10 * tolerance
        )


def test_metrics_with_a_temperature_for_every_anchor():
    sides = features(torch.float64)
    risk, twin = (
        stochastic(2 * B, tau=0.2, radius=1.0, strength=0.5, individual_tau=True).double()
        for _ in range(2)
    )
    for some in (risk, twin):
        some.temperature.duals.values[: 2 * B, 0] = torch.linspace(0.1, 0.9, 2 * B)
    pairs = Pairs(sides[0], sides[1], torch.arange(B), *sides[2:])
    units = negatives(pairs)
    found, (_, weights, expected) = anchor_risks(risk, pairs)[1], twin.per_row(units)
    assert found.keys() == expected.keys()
    h = units.excess(0.5)[0, :64][units.mask[0, :64]]
    torch.testing.assert_close(found["excess_mean"], h.mean())
    torch.testing.assert_close(found["excess_variance"], h.var(correction=0))
    ess = weights[0, :64].sum(-1).square() / weights[0, :64].square().sum(-1) / (B - 1)
    torch.testing.assert_close(found["effective_sample_share"], ess.mean())
    for name in ("weight_sum", "tau", "tau_deviation", "strength"):
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize(
    "options",
    [{"tau": 0.1}, {"tau": 0.002}, {"tau": 0.05, "radius": 2.0, "individual_tau": True}],
    ids=str,
)
def test_weights_of_either_sign_and_of_zero(options):
    risk = planted(torch.float64, epsilon=1e-4, gamma=0.8, tau_min=1e-3, **options)
    sides, weights = (
        features(torch.float64),
        torch.randn(2, B, generator=torch.Generator().manual_seed(3)).double(),
    )
    weights[:, ::3] = 0
    found, expected = (outcome(risk, sides, weights, dense=dense) for dense in (False, True))
    same(found[:4], expected[:4], 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("individual", "radius"), [(True, 2.0), (False, 2.0), (False, None)])
def test_a_last_block_of_a_single_row(individual, radius, dtype, monkeypatch):
    # In the column of its own positive that row has nothing at all.
    n = 65
    slices = [slice(0, n - 1), slice(n - 1, n)]
    monkeypatch.setattr(problem.Problem, "slices", slices)
    # two exponentials, whatever the numbers
    monkeypatch.setattr(blocked, "_one_exponential", lambda *_: None)
    for seed in range(4):
        sides = [
            *F.normalize(
                torch.randn(4, n, D, generator=torch.Generator().manual_seed(seed)).to(dtype),
                dim=-1,
            )
        ]
        results = []
        for dense in (True, False):
            risk = stochastic(2 * n, tau=0.07, radius=radius, individual_tau=individual).to(dtype)
            if individual:
                state = torch.rand(2 * n, 4, generator=torch.Generator().manual_seed(seed)).to(
                    dtype
                )
                risk.temperature.duals.write(torch.arange(2 * n), state.clamp_min(0.05), False)
            image, text = (side.clone().requires_grad_() for side in sides[:2])
            pairs = Pairs(image, text, torch.arange(n), *sides[2:])
            risks = risk.per_row(negatives(pairs))[0] if dense else anchor_risks(risk, pairs, 0)[0]
            risks.mean().backward()
            learned = (
                risk.temperature.duals.table if individual else risk.temperature.log_tau.detach()
            )
            results.append((risks.detach(), image.grad, text.grad, learned))
        same(results[1], results[0], 1e-4 if dtype == torch.float32 else 1e-8)


def test_gradient_by_finite_differences():
    sides = features(torch.float64)
    image, text = (side[:6].clone().requires_grad_() for side in sides[:2])

    def total(image: Tensor, text: Tensor) -> Tensor:
        risk = stochastic(
            12, tau=0.3, epsilon=1e-2
        ).double()  # γ = 1: the weights are the exact gradient
        return anchor_risks(
            risk, Pairs(image, text, torch.arange(6), *(side[:6] for side in sides[2:]))
        )[0].sum()

    assert torch.autograd.gradcheck(total, (image, text), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_widened(dtype):
    import steering

    sides = [
        side.to(dtype).requires_grad_(number < 2)
        for number, side in enumerate(features(torch.float32))
    ]
    loss = steering.GlobalContrastiveLoss(B, tau=0.07)(
        sides[0], sides[1], torch.arange(B), *sides[2:]
    )
    loss.backward()
    assert loss.dtype == torch.float32
    wide = [side.detach().float().requires_grad_(number < 2) for number, side in enumerate(sides)]
    expected = steering.GlobalContrastiveLoss(B, tau=0.07)(
        wide[0], wide[1], torch.arange(B), *wide[2:]
    )
    torch.testing.assert_close(loss, expected)


def test_reference_risks_against_the_definition():
    risk = stochastic(2 * B, tau=0.2, epsilon=1e-3).double()
    _, _, image, text = features(torch.float64)
    found = reference_risks(risk, Pairs(image, text, torch.arange(B), image, text))
    s = image @ text.T
    for direction, matrix in enumerate((s, s.T)):
        h = (matrix - s.diagonal()[:, None]) / risk.temperature().detach()
        u = (h.exp().sum(1) - 1) / (B - 1)
        torch.testing.assert_close(found[direction], risk.temperature().detach() * (1e-3 + u).log())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-8)])
@pytest.mark.parametrize("tau", [0.5, 0.07, 0.002])  # the last takes two exponentials
def test_info_nce(dtype, tolerance, tau):
    sides, weights = (
        features(dtype, common=0.3)[:2],
        torch.rand(2, B, generator=torch.Generator().manual_seed(3)),
    )
    found = []
    for dense in (True, False):
        image, text, temperature = (
            x.clone().requires_grad_() for x in (*sides, torch.tensor(tau, dtype=dtype))
        )
        losses = (
            info_nce(image, text, temperature)
            if dense
            else info_nce_losses(
                Pairs(image, text, torch.arange(B)), temperature, budget=64 * B * 4
            )
        )
        (losses * weights.to(dtype)).sum().backward()
        found.append((losses.detach(), image.grad, text.grad, temperature.grad))
    same(found[1], found[0], tolerance)


def test_info_nce_of_one_pair_is_zero_and_a_fixed_temperature_needs_no_slope():
    image, text = (x[:1].requires_grad_() for x in features(torch.float64)[:2])
    assert not info_nce_losses(Pairs(image, text, torch.arange(1)), torch.tensor(0.1)).any()
    image, text = (x[:5].requires_grad_() for x in features(torch.float64)[:2])
    found = info_nce_losses(Pairs(image, text, torch.arange(5)), torch.tensor(0.1))
    torch.testing.assert_close(found, info_nce(image, text, torch.tensor(0.1)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize(
    "common", [0.0, 1.0, 5.0]
)  # how large the mean of the cosines is beside their spread
def test_strength_auto(dtype, tolerance, common):
    risks = [stochastic(2 * B, tau=0.1, epsilon=1e-4, strength="auto").to(dtype) for _ in range(2)]
    weights = torch.full((2, B), 1 / (2 * B), dtype=dtype)
    sides = features(dtype, common)
    guides = (
        sides[2:],
        [F.normalize(sides[0] + 0.3 * sides[2], dim=-1), sides[3]],
        [x.flip(0) for x in sides[2:]],
    )
    for guide in guides:  # moments of the batches before count too
        for dense, risk in enumerate(risks):
            risk(negatives(Pairs(*sides[:2], torch.arange(B), *guide))) if dense else anchor_risks(
                risk, Pairs(*sides[:2], torch.arange(B), *guide)
            )
        for name in ("covariance", "variance"):
            found, expected = (getattr(risk.strength, name) for risk in risks)
            assert (found - expected).abs() <= tolerance * risks[1].strength.variance
    found, expected = (
        outcome(risk, sides, weights, dense=bool(dense), budget=0)
        for dense, risk in enumerate(risks)
    )
    same(found, expected, tolerance)


def test_strength_auto_ignores_a_reference_that_is_the_same_for_all():
    risk, sides = stochastic(2 * B, tau=0.1, strength="auto"), features(torch.float32)
    one = F.normalize(torch.ones(1, D), dim=-1).expand(B, -1) * (1 + 1e-7 * torch.randn(B, 1))
    _, metrics = anchor_risks(risk, Pairs(*sides[:2], torch.arange(B), one, one))
    assert metrics["strength"] == 0
    _, metrics = anchor_risks(risk, Pairs(*sides[:2], torch.arange(B)))  # nor does it need one
    assert metrics["strength"] == 0


def test_metrics_are_those_of_the_first_image_anchors():
    sides = features(torch.float64)
    risk, twin = (stochastic(2 * B, tau=0.2, strength=0.5).double() for _ in range(2))
    pairs = Pairs(sides[0], sides[1], torch.arange(B), *sides[2:])
    found = anchor_risks(risk, pairs)[1]
    units = negatives(pairs)
    expected = twin.per_row(units)[2]
    assert found.keys() == expected.keys()
    h = units.excess(0.5)[0, :64][units.mask[0, :64]]
    torch.testing.assert_close(found["excess_mean"], h.mean())
    torch.testing.assert_close(found["excess_variance"], h.var(correction=0))
    for name in ("weight_sum", "tau", "strength"):
        torch.testing.assert_close(found[name], expected[name])


def test_reference_risks_at_a_temperature_for_every_anchor():
    risk = stochastic(2 * B, tau=0.2, radius=1.0, epsilon=1e-3, individual_tau=True).double()
    tau = torch.rand(2 * B, generator=torch.Generator().manual_seed(5)).double() + 0.1
    risk.temperature.duals.values[: 2 * B, 0] = tau
    _, _, image, text = features(torch.float64)
    found = reference_risks(risk, Pairs(image, text, torch.arange(B), image, text))
    s = image @ text.T
    for direction, matrix in enumerate((s, s.T)):
        own = tau[direction::2]
        h = (matrix - s.diagonal()[:, None]) / own[:, None]
        u = (h.exp().sum(1) - 1) / (B - 1)
        torch.testing.assert_close(found[direction], own * (1e-3 + u).log())


def test_a_single_pair_is_refused():
    one = [side[:1] for side in features(torch.float64)]
    with pytest.raises(ValueError, match="at least 2 pairs over all ranks, got 1"):
        anchor_risks(stochastic(2, tau=0.1), Pairs(one[0], one[1], torch.arange(1)))


class Largest(TorchDispatchMode):
    """The number of items of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize(
    "options",
    [{}, {"tau": 0.002, "tau_min": 1e-4}, {"radius": 0.3, "individual_tau": True}],
    ids=str,
)
def test_memory_is_linear_in_the_batch(options, monkeypatch):
    # With nothing kept, the largest tensors made are one block of logits and features: counted, not
    # believed.
    monkeypatch.setattr(problem, "BLOCK_BYTES", 1 << 16)
    largest = {}
    for n in (256, 1024):
        image, text = F.normalize(
            torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0)), dim=-1
        )
        risk = stochastic(2 * n, **{"tau": 0.1, **options})
        with Largest() as made:
            risks, _ = anchor_risks(risk, Pairs(image.requires_grad_(), text, torch.arange(n)), 0)
            risks.mean().backward()
        largest[n] = made.numel
    assert largest == {256: 64 * 256, 1024: 64 * 1024}


def test_nothing_is_kept_for_a_backward_pass_that_cannot_come(monkeypatch):
    kept, of = [], risk_of.sums

    def noted(asked):
        found = of(asked)
        kept.append(len(found.kept.blocks))
        return found

    monkeypatch.setattr(risk_of, "sums", noted)
    image, text = features(torch.float32)[:2]
    pairs = Pairs(image.clone().requires_grad_(), text, torch.arange(B))
    with torch.no_grad():
        anchor_risks(stochastic(2 * B, tau=0.1), pairs)
    anchor_risks(stochastic(2 * B, tau=0.1), Pairs(image, text, torch.arange(B)))
    anchor_risks(stochastic(2 * B, tau=0.1), pairs)
    assert kept == [0, 0, 2]


def test_a_loss_that_is_over_holds_neither_features_nor_blocks(monkeypatch):
    # Loops keep their last loss for a while; what belongs to its backward pass must not stay with
    # it.
    # The reference is float64 and the target float32, so every feature of the problem is a tensor
    # of its own, and a weak reference tells whether anybody holds it.
    held, kept, of = [], [], risk_of.sums

    def noted(asked):
        found = of(asked)
        held.extend(weakref.ref(x) for x in asked.features)
        kept.append(found.kept)
        return found

    monkeypatch.setattr(risk_of, "sums", noted)
    image, text = features(torch.float32)[:2]
    guide = features(torch.float64)[2:]
    pairs = Pairs(image.requires_grad_(), text, torch.arange(B), *guide)
    loss = anchor_risks(stochastic(2 * B, tau=0.1), pairs)[0].mean()
    assert len(held) == 4
    assert all(x() is not None for x in held)  # autograd holds them, and knows when to let go
    assert kept[0].blocks
    loss.backward()
    assert loss.grad_fn is not None
    assert all(x() is None for x in held)
    assert not kept[0].blocks


@pytest.mark.parametrize("tau", [0.1, 0.002])
def test_a_problem_is_not_changed_and_may_be_solved_again(tau):
    # Pass 1 reads, and pass 2 writes into nothing but the blocks that were kept for it.
    image, text, *guide = features(torch.float64)
    asked = problem.Problem(
        problem.Features(image, text, *guide),
        problem.Scales(torch.tensor(tau).double(), torch.tensor(tau).double(), 0.8),
        budget=64 * B * 8,
        with_means=True,
    )
    before = [x.clone() for x in asked.features]
    results = []
    for _ in range(2):
        found = blocked.sums(asked)
        assert (found.kept.shifts is None) == (tau == 0.002)
        log_a = -LOG2E * found.log_means - found.kept.positives
        entries = Entries(log_a[0], log_a[1])
        results.append((found, gradients(asked, found.kept, entries, (True, True))))
        assert not found.kept.blocks
        # What was used up is computed again.
        results.append((found, gradients(asked, found.kept, entries, (True, True))))
    first, grads = results[0]
    for found, again in results[1:]:
        assert torch.equal(found.log_means, first.log_means)
        assert torch.equal(found.means, first.means)
        for x, y in zip(again, grads, strict=True):
            assert torch.equal(x, y)
    for x, y in zip(asked.features, before, strict=True):
        assert torch.equal(x, y)


def test_the_proximal_point_takes_the_dense_path():
    sides, weights = features(torch.float64), torch.full((2, B), 1 / (2 * B), dtype=torch.float64)
    results = []
    for dense in (True, False):
        risk = stochastic(2 * B, tau=0.1, estimator="proximal").double()
        image, text = (side.clone().requires_grad_() for side in sides[:2])
        pairs = Pairs(image, text, torch.arange(B), *sides[2:])
        risks = risk.per_row(negatives(pairs))[0] if dense else anchor_risks(risk, pairs)[0]
        (risks * weights).sum().backward()
        results.append((risks.detach(), image.grad, text.grad))
    same(results[1], results[0], 1e-12)


def test_metrics_of_temperatures_above_one():
    risk = stochastic(2 * B, tau=3.0, tau_max=5.0, radius=0.3, individual_tau=True).double()
    image, text = features(torch.float64)[:2]
    metrics = anchor_risks(risk, Pairs(image, text, torch.arange(B)))[1]
    s = image @ text.T
    h = (s - s.diagonal()[:, None])[:64]
    torch.testing.assert_close(metrics["excess_mean"], h.sum() / (64 * (B - 1)))
