"""What each method is: erm, dro and drrho on rows of losses and on pairs, against closed forms and
each other."""

import math

import pytest
import torch
import torch.nn.functional as F
from adversaries import flat, stochastic
from torch import Tensor

import steering
from steering.contrastive import Pairs, info_nce, negatives
from steering.dro.online.specs import MovingAverage
from steering.dro.online.stochastic import StochasticRisk
from steering.errors import SteeringError
from steering.items import Units
from steering.methods import Method, Needs, build_method, find_method, registered
from steering.methods.drrho import DroOptions, DrrhoOptions
from steering.methods.erm import ErmOptions
from steering.schedules import Constant

ALL = 8
INDEX = torch.tensor([6, 1, 0, 4, 7])
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(seed: int, width: int = 4) -> Tensor:
    return F.normalize(random(len(INDEX), width, seed=seed), dim=-1)


def units(seed: int = 0, guided: bool = True, mask: Tensor | None = None) -> Units:
    """One row of five examples, target requiring a gradient."""
    reference = random(5, seed=seed + 100) if guided else None
    return Units(random(5, seed=seed).requires_grad_(), reference, torch.tensor(0), mask)


def pairs(seed: int = 0, guided: bool = True) -> Pairs:
    guide = (features(seed + 3, 6), features(seed + 4, 6)) if guided else (None, None)
    return Pairs(
        features(seed + 1).requires_grad_(), features(seed + 2).requires_grad_(), INDEX, *guide
    )


def leaf(losses: Units | Pairs) -> Tensor:
    return losses.target if isinstance(losses, Units) else losses.image


def step(method: Method, losses: Units | Pairs) -> tuple[Tensor, Tensor]:
    """Loss and gradient with respect to the target."""
    loss = method(losses).loss
    (gradient,) = torch.autograd.grad(loss, leaf(losses))
    return loss.detach(), gradient


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


# ---- erm
# ------------------------------------------------------------------------------------------------------------


def test_erm_is_the_mean():
    losses = units()
    loss, gradient = step(build_method("erm", ErmOptions(), ALL), losses)
    torch.testing.assert_close(loss, losses.target.detach().mean(), **EXACT)
    torch.testing.assert_close(gradient, torch.full((5,), 0.2, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("garbage", [1e30, math.nan, math.inf])
def test_erm_counts_what_the_mask_keeps(garbage):
    target = torch.tensor([[1.0, garbage, 3.0], [garbage, garbage, 8.0]], requires_grad=True)
    losses = Units(
        target, None, torch.arange(2), torch.tensor([[True, False, True], [False, False, True]])
    )
    loss, gradient = step(build_method("erm", ErmOptions(), ALL), losses)
    assert loss == 4
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0, 1], [0, 0, 1]]) / 3)


def test_erm_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="has no items"):
        build_method("erm", ErmOptions(), ALL)(units(mask=torch.zeros(5, dtype=torch.bool)))


def test_erm_on_pairs_is_clip():
    # Cross-entropy of the matching pair in both directions, averaged, logits divided by τ.
    losses = pairs()
    loss, gradient = step(
        build_method("erm", ErmOptions(tau=0.5), ALL, unit="pair").double(), losses
    )
    logits, diagonal = losses.image @ losses.text.T / 0.5, torch.arange(5)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, losses.image)[0], rtol=1e-6, atol=1e-9
    )


def test_erm_learns_its_temperature():
    method, losses, at = (
        build_method("erm", ErmOptions(tau=0.5), ALL, unit="pair").double(),
        pairs(),
        1e-5,
    )
    method(losses).loss.backward()
    log_tau = method.get_parameter("temperature.log_tau")
    up, down = (
        info_nce(losses.image, losses.text, math.exp(log_tau.item() + s)).mean() for s in (at, -at)
    )
    assert log_tau.grad is not None
    assert log_tau.grad.item() == pytest.approx(((up - down) / (2 * at)).item(), rel=1e-7)
    assert method(losses).metrics["tau"].item() == pytest.approx(0.5, rel=1e-6)
    log_tau.data.fill_(5.0)
    assert method(losses).metrics["tau"] == 1  # open_clip's logit scale stays at or above 1 ...
    log_tau.data.fill_(-9.0)
    assert method(losses).metrics["tau"].item() == pytest.approx(0.01)  # ... and at or below 100


@pytest.mark.parametrize("make", [units, pairs])
def test_erm_ignores_a_reference(make):
    method = build_method("erm", ErmOptions(), ALL, unit=make().unit)
    same(step(method, make(guided=True)), step(method, make(guided=False)))


@pytest.mark.parametrize("name", ["erm", "distillation"])
def test_a_temperature_is_learned_of_pairs_alone(name):
    made = {
        unit: build_method(name, find_method(name).options(), ALL, unit=unit)
        for unit in ("example", "token", "pair")
    }
    assert [[*one.state_dict()] for one in made.values()] == [[], [], ["temperature.log_tau"]]
    assert made["example"].logit_scale() is None
    assert made["pair"].logit_scale() == pytest.approx(1 / 0.07)
    with pytest.raises(SteeringError, match='got pairs; build it with unit="pair"'):
        made["example"](pairs())


# ---- dro and drrho
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [units, pairs])
def test_dro_ignores_a_reference(make):
    # The no-reference switch reproduces the unguided method exactly.
    options = {"tau": 0.3, "gamma": 0.4, "epsilon": 0.1}
    dro = build_method("dro", DroOptions(**flat(**options)), ALL)
    same(
        step(dro, make(guided=True)),
        step(build_method("drrho", DrrhoOptions(**flat(**options)), ALL), make(0, guided=False)),
    )
    switched_off = build_method("drrho", DrrhoOptions(**flat(**options, strength=0.0)), ALL)
    same(
        step(build_method("dro", DroOptions(**flat(**options)), ALL), make()),
        step(switched_off, make()),
    )


def test_who_uses_a_reference():
    needs = {name: entry.needs(entry.options()) for name, entry in registered().items()}
    without = {name for name, asked in needs.items() if not asked.reference}
    assert without == {"erm", "dro", "group_dro"}
    drrho = find_method("drrho")
    assert drrho.needs(DrrhoOptions(**flat(strength=0.0))) == Needs()
    assert drrho.needs(DrrhoOptions(**flat(strength="auto"))) == Needs(reference=True)
    assert drrho.needs(DrrhoOptions(**flat(strength=0.0, distill=0.5))) == Needs(True, logits=True)


@pytest.mark.parametrize("radius", [None, 0.2])
def test_drrho_on_examples_is_the_function_of_the_same_name(radius):
    options = {"tau": 0.7, "radius": radius, "strength": 0.6, "gamma": 0.4, "epsilon": 0.05}
    method, steer = (
        build_method("drrho", DrrhoOptions(**flat(**options)), ALL),
        steering.DRRho(ALL, **options),
    )
    for seed in (
        (1, 2) if radius is None else (1,)
    ):  # the function moves its temperature itself, for the method a loop does
        losses = units(seed)
        other = losses.target.detach().clone().requires_grad_()
        loss = steer(other, losses.reference, INDEX)
        same(step(method, losses), (loss.detach(), torch.autograd.grad(loss, other)[0]))


@pytest.mark.parametrize("radius", [None, 0.2])
def test_drrho_on_pairs_is_the_function_of_the_same_name(radius):
    options = {"tau": 0.3, "radius": radius, "strength": 0.6, "gamma": 0.4, "epsilon": 0.05}
    method, criterion = (
        build_method("drrho", DrrhoOptions(**flat(**options)), ALL),
        steering.GlobalContrastiveLoss(ALL, **options),
    )
    for seed in (1, 20) if radius is None else (1,):
        p = pairs(seed)
        image = p.image.detach().clone().requires_grad_()
        loss = criterion(image, p.text, INDEX, p.reference_image, p.reference_text)
        same(step(method, p), (loss.detach(), torch.autograd.grad(loss, image)[0]))


OTHER = {
    "tau": 0.3,
    "radius": 0.4,
    "epsilon": 0.5,
    "gamma": 0.2,
    "gamma_decay_epochs": 3,
    "strength": 0.4,
    "tau_min": 0.04,
}


@pytest.mark.parametrize("option", OTHER)
def test_every_option_arrives(option):
    """Each option alone changes the outcome, and to what the risk with that option gives."""
    base = {"tau": 0.05, "gamma": 0.6, "epsilon": 0.01, "tau_min": 0.01}
    if option == "tau_min":
        base |= {"radius": 0.4}
    changed = base | {option: OTHER[option]}

    def outcome(risk: StochasticRisk, method: Method | None = None) -> list[Tensor]:
        found = []
        for epoch, seed in enumerate((1, 20, 40)):
            (method or risk).start_epoch(epoch)
            p = pairs(seed)
            loss = method(p).loss if method else risk(negatives(p)).loss
            found += [loss.detach(), torch.autograd.grad(loss, p.image)[0]]
            risk.temperature.log_tau.data -= 1.0  # a learned temperature would run into its bound
        return found

    def through_method(options: dict[str, float]) -> list[Tensor]:
        method = build_method("drrho", DrrhoOptions(**flat(**options)), ALL)
        return outcome(method.get_submodule("risk"), method)

    found, expected = through_method(changed), outcome(stochastic(2 * ALL, **changed))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    for x, y in zip(found, through_method(base), strict=True):
        if not torch.allclose(x, y, rtol=1e-4, atol=1e-6):
            break
    else:
        pytest.fail("the option changes nothing")


def test_default_options_are_the_documented_ones():
    # The paper's headline run: fixed temperature, no moving average.
    options = find_method("drrho").options().for_unit("pair")
    assert (options.radius, options.estimator, options.strength) == (
        None,
        MovingAverage(gamma=1.0, decay_epochs=0),
        Constant(1.0),
    )


def test_high_temperature_is_erm():
    # Fact 1.
    even = step(build_method("dro", DroOptions(**flat(tau=1e8, epsilon=0.0)), ALL), units())
    mean = step(build_method("erm", ErmOptions(), ALL), units())
    torch.testing.assert_close(even[1], mean[1], rtol=1e-6, atol=0)


def test_examples_without_a_number_of_pairs_share_one_estimate():
    # A batch of examples is one row of key 0, whatever examples it holds; pairs have a row each.
    method = build_method("dro", DroOptions(**flat(gamma=0.5)), ALL)
    method(units())
    assert method.get_buffer("risk.estimator.visited").nonzero().tolist() == [[0]]
    method = build_method("dro", DroOptions(**flat(gamma=0.5)), ALL)
    method(pairs())
    expected = sorted([*(2 * INDEX).tolist(), *(2 * INDEX + 1).tolist()])
    assert method.get_buffer("risk.estimator.visited").nonzero().flatten().tolist() == expected
