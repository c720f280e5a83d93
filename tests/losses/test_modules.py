"""Every module of `steering.losses` against the method of the config that it belongs to, and against
its own formula."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steering
from steering import losses as modules
from steering.dro import CVaR
from steering.dro.online.specs import MovingAverage
from steering.items import Pairs, Units
from steering.losses import Estimate
from steering.methods import build_method, find_method
from steering.methods.jest import joint_selection
from steering.methods.nested import InnerAdversary, OuterAdversary
from steering.schedules import Linear

N, B, K = 40, 12, 3
ROW = torch.tensor(0)
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(seed: int, width: int = 5) -> Tensor:
    return F.normalize(noise(B, width, seed=seed), dim=-1)


@dataclass(frozen=True)
class Batch:
    """What one step may need; `target` is a leaf, the others are constants."""

    seed: int
    masked: bool = True

    @property
    def losses(self) -> Tensor:
        return noise(B, seed=self.seed).abs()

    @property
    def reference(self) -> Tensor:
        return noise(B, seed=self.seed + 100).abs()

    @property
    def mask(self) -> Tensor | None:
        return noise(B, seed=self.seed + 200) > -0.5 if self.masked else None

    @property
    def groups(self) -> Tensor:
        return torch.randint(K, (B,), generator=torch.Generator().manual_seed(self.seed))

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        return noise(B, 4, seed=self.seed + 300), noise(B, 4, seed=self.seed + 400)

    @property
    def index(self) -> Tensor:
        return torch.randperm(N, generator=torch.Generator().manual_seed(self.seed))[:B]

    @property
    def guide(self) -> tuple[Tensor, Tensor]:
        return features(self.seed + 500, 7), features(self.seed + 600, 7)


Call = Callable[[Any, Tensor, Batch], Any]
"""A module or a method, the leaf (losses, or image features), the batch → Estimate or Step."""


def units(leaf: Tensor, batch: Batch, **more: Any) -> Units:
    return Units(leaf, batch.reference, ROW, batch.mask, **more)


def pairs(leaf: Tensor, batch: Batch) -> Pairs:
    scale = torch.full((B,), 30.0)
    return Pairs(leaf, features(batch.seed + 1), batch.index, *batch.guide, scale)


@dataclass(frozen=True)
class Case:
    method: str
    options: dict[str, Any]
    make: Callable[[], nn.Module]
    module_call: Call
    method_call: Call
    kind: str = "example"


def with_logits(leaf: Tensor, batch: Batch) -> Units:
    return units(leaf, batch, logits=batch.logits[0], reference_logits=batch.logits[1])


CASES = {
    "DRRho": Case(
        "drrho",
        {},
        modules.DRRho,
        lambda m, x, b: m.estimate(x, b.reference, mask=b.mask),
        lambda m, x, b: m(units(x, b)),
    ),
    "DRRho, plain": Case(
        "dro",
        {"divergence": "chi2"},
        lambda: modules.DRRho(divergence="chi2"),
        lambda m, x, b: m.estimate(x, None, mask=b.mask),
        lambda m, x, b: m(Units(x, None, ROW, b.mask)),
    ),
    "DRRho on tokens": Case(
        "drrho",
        {"strength": 0.5},
        lambda: modules.DRRho(unit="token", strength=0.5),
        lambda m, x, b: m.estimate(x, b.reference, mask=b.mask),
        lambda m, x, b: m(units(x, b)),
        "token",
    ),
    "CVaR": Case(
        "drrho",
        {"divergence": CVaR(0.4)},
        lambda: modules.DRRho(divergence="cvar", level=0.4),
        lambda m, x, b: m.estimate(x, b.reference, mask=b.mask),
        lambda m, x, b: m(units(x, b)),
    ),
    "Rho1": Case(
        "rho1",
        {},
        modules.Rho1,
        lambda m, x, b: m.estimate(x, b.reference, b.mask),
        lambda m, x, b: m(units(x, b)),
        "token",
    ),
    "GroupDRO": Case(
        "group_dro",
        {},
        lambda: modules.GroupDRO(K),
        lambda m, x, b: m.estimate(x, None, b.groups, b.mask),
        lambda m, x, b: m(units(x, b, groups=b.groups)),
    ),
    "GroupDRO with a reference": Case(
        "group_dro",
        {"strength": 0.7, "penalty": 0.3, "step": 0.5},
        lambda: modules.GroupDRO(K, strength=0.7, penalty=0.3, step=0.5),
        lambda m, x, b: m.estimate(x, b.reference, b.groups, b.mask),
        lambda m, x, b: m(units(x, b, groups=b.groups)),
    ),
    "DoReMi": Case(
        "doremi",
        {},
        lambda: modules.DoReMi(K),
        lambda m, x, b: m.estimate(x, b.reference, b.groups, b.mask),
        lambda m, x, b: m(units(x, b, groups=b.groups)),
    ),
    "Distillation": Case(
        "distillation",
        {},
        modules.Distillation,
        lambda m, x, b: m.estimate(x, *b.logits, b.mask),
        lambda m, x, b: m(with_logits(x, b)),
    ),
    "ContrastiveDistillation": Case(
        "distillation",
        {},
        lambda: modules.ContrastiveDistillation(reference_scale=30.0),
        lambda m, x, b: m.estimate(x, features(b.seed + 1), *b.guide),
        lambda m, x, b: m(pairs(x, b)),
        "pair",
    ),
    "ClipLoss": Case(
        "erm",
        {},
        modules.ClipLoss,
        lambda m, x, b: m.estimate(x, features(b.seed + 1)),
        lambda m, x, b: m(pairs(x, b)),
        "pair",
    ),
    "GlobalContrastiveLoss": Case(
        "drrho",
        {},
        lambda: modules.GlobalContrastiveLoss(N),
        lambda m, x, b: m.estimate(x, features(b.seed + 1), b.index, *b.guide),
        lambda m, x, b: m(pairs(x, b)),
        "pair",
    ),
    "NestedContrastiveLoss": Case(
        "nested",
        {},
        lambda: modules.NestedContrastiveLoss(N),
        lambda m, x, b: m.estimate(x, features(b.seed + 1), b.index, *b.guide),
        lambda m, x, b: m(pairs(x, b)),
        "pair",
    ),
    "NestedContrastiveLoss with a strength": Case(
        "nested",
        {
            "inner": InnerAdversary(strength=0.5, estimator=MovingAverage(gamma=0.4)),
            "outer": OuterAdversary(tau=0.2, estimator=MovingAverage(gamma=0.5)),
        },
        lambda: modules.NestedContrastiveLoss(
            N, strength=0.5, outer_tau=0.2, outer_gamma=0.5, gamma=0.4
        ),
        lambda m, x, b: m.estimate(x, features(b.seed + 1), b.index, *b.guide),
        lambda m, x, b: m(pairs(x, b)),
        "pair",
    ),
}


def leaf_of(case: Case, seed: int) -> Tensor:
    leaf = features(seed) if case.kind == "pair" else Batch(seed).losses
    return leaf.requires_grad_()


def method_of(case: Case) -> nn.Module:
    options = find_method(case.method).options(**case.options)
    return build_method(case.method, options, N, ("a", "b", "c"), case.kind)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_module_is_the_method_of_the_config_with_its_defaults(name: str, masked: bool) -> None:
    case = CASES[name]
    module, method = case.make(), method_of(case)
    for seed in (1, 2, 3):  # the later steps read what the first has left
        batch, mine, theirs = Batch(seed, masked), leaf_of(case, seed), leaf_of(case, seed)
        found = case.module_call(module, mine, batch)
        expected = case.method_call(method, theirs, batch)
        torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
        found.loss.backward()
        expected.loss.backward()
        torch.testing.assert_close(mine.grad, theirs.grad, **CLOSE)
        pairs_of_parameters = zip(module.parameters(), method.parameters(), strict=False)
        for one, other in pairs_of_parameters:
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, **CLOSE)


WEIGHED = [name for name, case in CASES.items() if case.kind != "pair" and name != "Distillation"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", WEIGHED)
def test_weights_are_what_the_losses_feel(name: str, masked: bool) -> None:
    case, module = CASES[name], CASES[name].make()
    for seed in (1, 2):
        batch, leaf = Batch(seed, masked), leaf_of(case, seed)
        found = case.module_call(module, leaf, batch)
        found.loss.backward()
        torch.testing.assert_close(found.weights, leaf.grad, **CLOSE)
        assert not found.weights.requires_grad
        assert all(value.ndim == 0 for value in found.metrics.values())
        if batch.mask is not None:
            assert not found.weights[~batch.mask].any()


@pytest.mark.parametrize("name", CASES)
def test_forward_is_the_loss_of_estimate_and_a_saved_state_continues(name: str) -> None:
    case = CASES[name]
    first, second = case.make(), case.make()
    estimated = case.module_call(first, leaf_of(case, 1), Batch(1))
    # The same arguments go to `forward`: a recorder in the place of the module finds them.
    recorder = Recorder()
    case.module_call(recorder, leaf_of(case, 1), Batch(1))
    returned = second(*recorder.args, **recorder.kwargs)
    assert torch.equal(returned, estimated.loss)
    third = case.make()
    third.load_state_dict(first.state_dict())
    after = [case.module_call(m, leaf_of(case, 2), Batch(2)).loss for m in (first, second, third)]
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


class Recorder:
    def estimate(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


@pytest.mark.parametrize("name", CASES)
def test_validation_leaves_no_trace(name: str) -> None:
    case, module = CASES[name], CASES[name].make()
    case.module_call(module, leaf_of(case, 1), Batch(1))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.eval()
    looked = case.module_call(module, leaf_of(case, 2), Batch(2)).loss
    module.train()
    with torch.no_grad():
        again = case.module_call(module, leaf_of(case, 2), Batch(2)).loss
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    trained = case.module_call(module, leaf_of(case, 2), Batch(2)).loss
    torch.testing.assert_close(looked, trained, **CLOSE)
    torch.testing.assert_close(again, trained, **CLOSE)


# ---- weights of pairs


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.0},
        {"epsilon": 0.3, "gamma": 0.4, "strength": 0.6},
        {"radius": 0.2, "strength": "auto"},
        {"radius": 0.2, "individual_tau": True, "gamma": 0.5},
        {"divergence": "chi2", "step": 0.5},
        {"divergence": "cvar", "level": 0.4, "tau": None, "strength": "auto"},
        {"divergence": "chi2", "radius": 0.2, "individual_tau": True},
        {"prior": 2.0, "gamma": 0.5},
    ],
    ids=str,
)
def test_weights_of_negatives_are_what_the_similarities_feel(options: dict[str, Any]) -> None:
    """The gradient of the loss is that of Σ_j p_ij (S_ij − S_ii), mean over the 2b anchors, with
    these weights as constants."""
    criterion = modules.GlobalContrastiveLoss(N, **{"tau": 0.3, **options}).double()
    for seed in (1, 20):
        batch = Batch(seed)
        index = batch.index
        image, text = features(seed).double(), features(seed + 1).double()
        guide = tuple(one.double() for one in batch.guide)
        rotation = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
        turned = image @ (torch.eye(5, dtype=torch.float64) + rotation)
        found = criterion.estimate(turned, text, index, *guide)
        found.loss.backward()
        # By hand: Σ p_ij ∂(S_ij − S_ii) over both directions, mean over the 2b anchors.
        leaf = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
        cosines = (image @ (torch.eye(5, dtype=torch.float64) + leaf)) @ text.T
        sides = torch.stack([cosines, cosines.T])
        h = sides - sides.diagonal(dim1=1, dim2=2)[..., None]
        (found.weights * h).sum(-1).mean().backward()
        torch.testing.assert_close(rotation.grad, leaf.grad, rtol=1e-5, atol=1e-8)
        assert not found.weights.diagonal(dim1=1, dim2=2).any()
        if options == {"epsilon": 0.0}:
            torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, B).double(), **CLOSE)


def test_nested_weights_say_which_captions_are_trusted() -> None:
    criterion, batch = modules.NestedContrastiveLoss(N, outer_tau=1e6, outer_prior=4.0), Batch(1)
    target = features(1), features(2)
    guide = [target[0].clone(), target[0].clone()]  # a reference that agrees with every pair ...
    guide[1][:3] = -guide[1][:3]  # ... but the first three, whose captions it finds wrong
    weights = criterion.estimate(*target, batch.index, *guide).weights
    assert weights is not None
    torch.testing.assert_close(weights.sum(), torch.ones(()), **CLOSE)
    assert weights[:3].max() < weights[3:].min()


# ---- the soft filter and the prior: closed forms


@pytest.mark.parametrize("masked", [False, True])
def test_the_soft_filter_is_a_softmax_of_the_references_losses(masked: bool) -> None:
    batch, leaf = Batch(1, masked), leaf_of(CASES["DRRho"], 1)
    found = modules.SoftFilter(prior=2.0).estimate(leaf, batch.reference, batch.mask)
    found.loss.backward()
    counted = torch.ones(B, dtype=torch.bool) if batch.mask is None else batch.mask
    expected = torch.zeros(B)
    expected[counted] = (-2.0 * batch.reference[counted]).softmax(0)
    torch.testing.assert_close(found.weights, expected, **CLOSE)
    torch.testing.assert_close(leaf.grad, expected, **CLOSE)
    torch.testing.assert_close(found.loss.detach(), (expected * batch.losses).sum(), **CLOSE)


def test_a_filter_of_strength_zero_is_plain_training_and_a_strong_one_the_best_example() -> None:
    batch = Batch(1, masked=False)
    plain = modules.SoftFilter(prior=0.0)(batch.losses, batch.reference)
    torch.testing.assert_close(plain, batch.losses.mean(), **CLOSE)
    strong = modules.SoftFilter(prior=1e4)(batch.losses, batch.reference)
    torch.testing.assert_close(strong, batch.losses[batch.reference.argmin()], **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_drrho_with_a_prior_is_one_softmax(masked: bool) -> None:
    # p ∝ exp(ℓ/τ − (α/τ + κ)·ℓ_ref): the steering plane.
    batch, tau, alpha, kappa = Batch(3, masked), 0.7, 0.4, 1.5
    steer = modules.DRRho(tau=tau, strength=alpha, prior=kappa, gamma=1.0)
    found = steer.estimate(batch.losses, batch.reference, mask=batch.mask)
    counted = torch.ones(B, dtype=torch.bool) if batch.mask is None else batch.mask
    scores = batch.losses / tau - (alpha / tau + kappa) * batch.reference
    expected = scores.masked_fill(~counted, -math.inf).softmax(0)
    torch.testing.assert_close(found.weights, expected, **CLOSE)
    # The value is τ·log Σ q·exp(h/τ).
    h = batch.losses - alpha * batch.reference
    log_q = (-kappa * batch.reference).masked_fill(~counted, -math.inf).log_softmax(0)
    torch.testing.assert_close(found.loss, tau * (log_q + h / tau).logsumexp(0), **CLOSE)


def test_drrho_at_a_high_temperature_with_a_prior_is_the_soft_filter() -> None:
    batch = Batch(3)
    hot = modules.DRRho(tau=1e6, prior=1.5, gamma=1.0)
    found = hot.estimate(batch.losses, batch.reference, mask=batch.mask).weights
    expected = modules.SoftFilter(prior=1.5).estimate(batch.losses, batch.reference, batch.mask)
    torch.testing.assert_close(found, expected.weights, rtol=1e-4, atol=1e-5)


def test_schedules_move_with_at() -> None:
    batch = Batch(3, masked=False)
    steer = modules.DRRho(tau=Linear(2.0, 0.5), prior=Linear(0.0, 3.0), gamma=1.0)
    steer.at(0.5)
    found = steer.estimate(batch.losses, batch.reference).weights
    expected = (batch.losses / 1.25 - (1 / 1.25 + 1.5) * batch.reference).softmax(0)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_soft_filter_is_drrho_at_an_infinite_temperature() -> None:
    batch = Batch(3)
    found = modules.DRRho(tau=math.inf, prior=1.5).estimate(
        batch.losses, batch.reference, mask=batch.mask
    )
    expected = modules.SoftFilter(prior=1.5).estimate(batch.losses, batch.reference, batch.mask)
    torch.testing.assert_close(found.weights, expected.weights, **CLOSE)


# ---- selectors


def test_rho_loss_takes_the_share_of_the_largest_excess_losses() -> None:
    batch = Batch(1)
    chosen = modules.RhoLoss(share=0.25)(batch.losses, batch.reference)
    excess = (batch.losses - batch.reference).tolist()
    assert chosen.tolist() == sorted(range(B), key=lambda i: -excess[i])[:3]
    assert chosen.dtype == torch.int64
    assert len(modules.RhoLoss(share=0.01)(batch.losses, batch.reference)) == 1
    assert len(modules.RhoLoss()(batch.losses, batch.reference, count=7)) == 7


def test_a_cold_soft_rho_is_rho_loss_and_the_generator_decides_a_warm_one() -> None:
    batch = Batch(1)
    cold = modules.SoftRho(share=0.5, temperature=1e-6)(batch.losses, batch.reference)
    assert cold.tolist() == modules.RhoLoss(share=0.5)(batch.losses, batch.reference).tolist()
    warm, draws = modules.SoftRho(share=0.5, temperature=1e3), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(warm(batch.losses, batch.reference).tolist())
    assert draws[0] == draws[1] != draws[2]
    assert len({*draws[0]}) == 6


def test_jest_is_the_joint_selection_of_the_method() -> None:
    batch = Batch(1)
    target = features(1), features(2)
    select = modules.Jest(reference_scale=30.0, share=0.5, chunks=3, top=True)
    chosen = select(*target, *batch.guide, tau=torch.tensor(0.1))
    learner = target[0] @ target[1].T / 0.1
    expected = joint_selection(learner, 30.0 * batch.guide[0] @ batch.guide[1].T, 6, 3, top=True)
    assert chosen.tolist() == expected.tolist()


def test_a_selector_may_get_losses_that_have_a_gradient() -> None:
    batch, leaf = Batch(1), leaf_of(CASES["DRRho"], 1)
    chosen = modules.RhoLoss(share=0.5)(leaf, batch.reference)
    modules.DRRho()(leaf[chosen], batch.reference[chosen]).backward()  # select, then steer
    assert leaf.grad is not None
    assert (leaf.grad != 0).nonzero().flatten().tolist() == sorted(chosen.tolist())


# ---- defaults, shapes, messages


def test_token_losses_keep_their_shape() -> None:
    losses, reference = noise(3, 4).abs(), noise(3, 4, seed=1).abs()
    mask = noise(3, 4, seed=2) > -0.3
    for found in (
        modules.Rho1(share=0.5).estimate(losses, reference, mask),
        modules.DRRho(unit="token").estimate(losses, reference, mask=mask),
        modules.DoReMi(2).estimate(losses, reference, torch.ones(3, 4, dtype=torch.int64), mask),
    ):
        assert found.weights.shape == (3, 4)
        assert not found.weights[~mask].any()
        torch.testing.assert_close(found.weights.sum(), torch.ones(()), **CLOSE)


def test_doremis_mix_is_the_running_mean_of_its_weights() -> None:
    steer, seen = modules.DoReMi(2, step=0.7), []
    for seed in range(4):
        losses, reference = noise(8, seed=seed).abs() + 1, noise(8, seed=seed + 50).abs()
        found = steer.estimate(losses, reference, torch.tensor([0, 1] * 4))
        seen.append([found.metrics["weight/0"].item(), found.metrics["weight/1"].item()])
    torch.testing.assert_close(steer.mix, torch.tensor(seen, dtype=torch.float64).mean(0))


def test_a_group_without_examples_gets_no_weight() -> None:
    batch, steer = Batch(1, masked=False), modules.GroupDRO(K + 1)
    steer.without([K])
    steer(batch.losses, None, batch.groups)
    assert steer.mix[K] == 0


LOSSES, INDEX = torch.ones(4), torch.arange(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modules.DRRho(0.5), "num_examples must be a whole number, got 0.5"),
        (lambda: modules.DRRho(unit="pair"), "unit must be .* got 'pair'; for pairs use Global"),
        (lambda: modules.DRRho(prior=-1.0), "prior must be a number ≥ 0, got -1.0"),
        (lambda: modules.DRRho(divergence="tv", prior=1.0), "prior must be 0 for 'tv'.*got 1.0"),
        (lambda: modules.DRRho(prior=1.0)(LOSSES, None), "prior: needs reference_losses"),
        (lambda: modules.DRRho()([1.0, 2.0], None), "losses must be a tensor, got list"),
        (lambda: modules.DRRho()(LOSSES, LOSSES, LOSSES > 0), "got torch.bool; a mask is given by"),
        (lambda: modules.DRRho(divergence="cvar"), "level: 'cvar' needs it"),
        (lambda: modules.SoftFilter(prior=math.inf), "prior must be a number ≥ 0, got inf"),
        (lambda: modules.Rho1(share=0.0), r"share must lie in \(0, 1\], got 0.0"),
        (lambda: modules.Rho1()(LOSSES, None), "Rho1 needs reference_losses, got None"),
        (lambda: modules.RhoLoss()(LOSSES, None), "RhoLoss needs reference_losses, got None"),
        (lambda: modules.SoftRho()(LOSSES, None), "SoftRho needs reference_losses, got None"),
        (lambda: modules.DoReMi(4)(LOSSES, None, INDEX), "DoReMi needs reference_losses, got N"),
        (lambda: modules.RhoLoss(share=1.5), r"share must lie in \(0, 1\], got 1.5"),
        (lambda: modules.RhoLoss()(LOSSES, LOSSES, count=5), "count must be at most 4, .*got 5"),
        (lambda: modules.SoftRho(temperature=0.0), "temperature must be a number > 0, got 0.0"),
        (lambda: modules.Jest(reference_scale=0.0), "reference_scale must be a number > 0"),
        (lambda: modules.Jest(reference_scale=1.0, chunks=0), "chunks must be at least 1, got 0"),
        (lambda: modules.GroupDRO(0), "num_groups must be at least 1, got 0"),
        (lambda: modules.GroupDRO(2, strength=1.0)(LOSSES, None, INDEX % 2), "strength 1.0 needs"),
        (lambda: modules.GroupDRO(2)(LOSSES, None, INDEX), "groups: 2 at position 2, expected"),
        (lambda: modules.GroupDRO(2)(LOSSES, None, LOSSES), "groups must be int64, .*float32"),
        (lambda: modules.DoReMi(2, smoothing=1.0), r"smoothing must be in \[0, 1\), got 1.0"),
        (lambda: modules.Distillation(weight=1.5), r"weight must be in \[0, 1\], got 1.5"),
        (
            lambda: modules.Distillation()(LOSSES, torch.ones(4, 3), torch.ones(4, 2)),
            r"reference_logits must be \(4, 3\), got \(4, 2\)",
        ),
        (
            lambda: modules.Distillation()(LOSSES, torch.ones(3, 3), torch.ones(3, 3)),
            r"logits must be \(4, 'C'\), got \(3, 3\)",
        ),
        (lambda: modules.NestedContrastiveLoss(5, outer_tau=0.0), "outer_tau must be a number > 0"),
        (lambda: modules.NestedContrastiveLoss(5, outer_prior=-1.0), "outer_prior must be a numb"),
        (lambda: modules.ClipLoss(tau=0.001), "0.001"),
        (
            lambda: modules.Rho1()(LOSSES, LOSSES, torch.zeros(4, dtype=torch.bool)),
            "mask: row 0 of the losses has no items",
        ),
        (lambda: modules.Rho1()(LOSSES, LOSSES, LOSSES), r"mask must be bool, \(4,\), got .*float"),
        (lambda: modules.Rho1()(LOSSES, LOSSES / 0), "reference_losses: not finite at position 0"),
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_a_mask_leaves_out_may_be_anything() -> None:
    mask = torch.tensor([True, False, True, True])
    hole = torch.tensor([0.0, math.nan, 0.0, 0.0])
    logits = noise(4, 3)
    for steer in (modules.DRRho(prior=1.0), modules.SoftFilter(), modules.Rho1()):
        leaf = (LOSSES + hole).requires_grad_()
        loss = steer(leaf, LOSSES + hole, mask=mask)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.nan_to_num(7.0)[1] == 0
    groups = torch.zeros(4, dtype=torch.int64)
    assert modules.GroupDRO(1)(LOSSES + hole, None, groups, mask).isfinite()
    assert modules.DoReMi(1)(LOSSES + hole, LOSSES + hole, groups, mask).isfinite()
    assert modules.Distillation()(LOSSES + hole, logits, logits, mask).isfinite()


@pytest.mark.parametrize("name", modules.__all__)
def test_every_argument_is_by_name_and_documented(name: str) -> None:
    """No `**options`, and a line for each argument in the docstring."""
    import inspect

    cls = getattr(modules, name)
    if cls is Estimate:
        assert [field.name for field in fields(cls)] == ["loss", "weights", "metrics"]
        return
    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
    assert not [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for parameter in parameters:
        assert f"{parameter.name}" in (cls.__doc__ or "").partition("Args:")[2], parameter.name
        assert parameter.kind == parameter.KEYWORD_ONLY or parameter.name.startswith("num_")


def test_the_top_level_names_are_these() -> None:
    assert steering.DRRho is modules.DRRho
    assert steering.GlobalContrastiveLoss is modules.GlobalContrastiveLoss
