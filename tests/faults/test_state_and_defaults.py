"""State moves in training calls alone; a radius is met by itself; defaults follow the unit; a
collapse is told."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from adversaries import built, options_of, stochastic
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import steering
from steering.contrastive import Pairs
from steering.data import IndexedData
from steering.dro import worst_case
from steering.dro.defaults import default_tau, defaults
from steering.dro.divergences import divergence as find
from steering.dro.online.groups import GroupWeights
from steering.dro.online.individual_temperatures import IndividualTemperatures
from steering.dro.online.row_table import Layout
from steering.dro.online.strength import Strength
from steering.dro.online.temperature import Temperature
from steering.dro.online.watch import LONG
from steering.errors import SteeringError
from steering.items import Units
from steering.methods import Method, build_method, find_method, registered
from steering.outputs import Fingerprint, WithOutputs, build
from steering.reference import STORED, LiveReference, StoredReference
from steering.runs.record import read_curves
from steering.training.log import RunLog
from steering.training.loop import run
from steering.weights import load_weights
from steering_tasks.clip.risk import ClipRisk

ALL, BATCH = 12, 6
INDEX = torch.tensor([3, 0, 9, 4, 6, 11])
GROUPS = ("plain", "rare")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def items(unit: str, seed: int) -> Units | Pairs:
    """One batch of a unit; with logits, groups and a logit scale, for whoever asks."""
    if unit == "pair":
        sides = [F.normalize(noise(BATCH, 4, seed=10 * seed + k), dim=-1) for k in range(4)]
        image, text = (side.requires_grad_() for side in sides[:2])
        return Pairs(image, text, INDEX, *sides[2:], torch.full((BATCH,), 20.0))
    losses, guide = (
        noise(BATCH, seed=seed).abs().requires_grad_(),
        noise(BATCH, seed=seed + 50).abs(),
    )
    mask = torch.tensor([1, 1, 0, 1, 1, 1]).bool() if unit == "token" else None
    logits = [noise(BATCH, 5, seed=seed + k) for k in (70, 90)]
    groups = torch.arange(BATCH).remainder(2)
    return Units(
        losses, guide, torch.tensor(0), mask, False, groups, logits[0].requires_grad_(), logits[1]
    )


def tables(module: nn.Module) -> dict[str, Tensor]:
    """Everything that a module keeps: its state dict, and buffers that are not in it."""
    return {name: x.clone() for name, x in (*module.state_dict().items(), *module.named_buffers())}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(x, other[name]) for name, x in one.items()
    )


STILL: dict[str, Callable[[], AbstractContextManager]] = {
    "eval": nullcontext,
    "no_grad": torch.no_grad,
    "eval, no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def check_still(module: nn.Module, call: Callable[[int], Any], moves: bool) -> None:
    """Still calls change nothing, before and after training calls; those do, if the module has a
    memory."""
    for before in range(2):
        kept = tables(module)
        for how, context in STILL.items():
            module.train("eval" not in how)
            with context():
                first, again = call(31), call(31)
            assert same(tables(module), kept), how
            assert torch.equal(first, again)
        module.train()
        with torch.no_grad():
            expected = call(40 + before)
        found = call(40 + before)
        torch.testing.assert_close(found.detach(), expected)  # the value that training gets
        assert same(tables(module), kept) != moves


VARIANTS: dict[str, list[dict[str, Any]]] = {
    "erm": [{}],
    "dro": [
        {"gamma": 0.5},
        {"estimator": "mirror_descent"},
        {"estimator": "proximal"},
        {"divergence": "chi2"},
        {"divergence": "cvar", "level": 0.4},
        {"duals": "float16", "gamma": 0.5},
        {"radius": 0.2, "individual_tau": True, "gamma": 0.5, "tau": 0.5},
    ],
    "drrho": [
        {"gamma": 0.5},
        {"strength": "auto", "gamma": 0.5},
        {"radius": 0.2, "gamma": 0.5, "tau": 0.5},
        {"distill": 0.5, "gamma": 0.5},
    ],
    "nested": [{"gamma": 0.5, "outer_gamma": 0.5}, {"strength": "auto", "outer_strength": "auto"}],
    "soft_rho": [{}],
    "group_dro": [{}, {"penalty": 0.3, "strength": 1.0}],
}
STATELESS = {"erm", "rho_loss", "soft_rho", "jest", "rho1", "distillation"}
CASES = [
    (name, unit, options)
    for name, entry in registered().items()
    for unit in entry.units
    for options in VARIANTS.get(name, [{}])
]


@pytest.mark.parametrize(("name", "unit", "options"), CASES, ids=str)
def test_no_method_moves_outside_of_training(name: str, unit: str, options: dict[str, Any]) -> None:
    made = build_method(name, options_of(name, **options), ALL, GROUPS, unit)
    assert isinstance(made, Method)
    made.start_epoch(0)
    check_still(made, lambda seed: made(items(unit, seed)).loss, moves=name not in STATELESS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"radius": 0.3},
        {"strength": "auto"},
        {"divergence": "chi2"},
        {"divergence": "cvar", "level": 0.4},
        {"divergence": "cressie-read", "order": 1.5, "radius": 0.1},
        {"estimator": "mirror_descent"},
    ],
    ids=str,
)
def test_drrho_does_not_learn_from_validation(options: dict[str, Any]) -> None:
    steer = steering.DRRho(ALL, **options)

    def call(seed: int) -> Tensor:
        losses, guide = (
            noise(BATCH, seed=seed).abs().requires_grad_(),
            noise(BATCH, seed=seed + 50).abs(),
        )
        return steer(losses, guide, INDEX)

    check_still(steer, call, moves=True)


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.5},
        {"radius": 0.3, "gamma": 0.5},
        {"radius": 0.3, "individual_tau": True},
        {"strength": "auto"},
        {"layout": Layout("float16")},
    ],
    ids=str,
)
def test_the_contrastive_loss_does_not_learn_from_validation(options: dict[str, Any]) -> None:
    criterion = steering.GlobalContrastiveLoss(ALL, **options)

    def call(seed: int) -> Tensor:
        p = items("pair", seed)
        assert isinstance(p, Pairs)
        return criterion(p.image, p.text, p.index, p.reference_image, p.reference_text)

    check_still(criterion, call, moves=True)


@pytest.mark.parametrize("name", ["moving_average", "mirror_descent", "proximal"])
def test_an_estimator_by_itself(name: str) -> None:
    estimator = built(name, find("kl"), 3, gamma=0.5)
    rows, mask = torch.tensor([0, 2]), torch.ones(2, 5, dtype=torch.bool)
    check_still(
        estimator, lambda seed: estimator(rows, noise(2, 5, seed=seed), mask)[1], moves=True
    )


def test_strength_groups_and_temperatures_by_themselves() -> None:
    strength, groups = Strength("auto"), GroupWeights(2, step=0.3, smoothing=0.1)
    check_still(strength, lambda seed: strength(items("example", seed)), moves=True)
    check_still(
        groups, lambda seed: groups(noise(2, seed=seed), torch.tensor([2.0, 1.0])), moves=True
    )
    single = IndividualTemperatures(3, 0.5, 0.01)
    rows = torch.tensor([0, 2])
    check_still(single, lambda seed: single.visit(rows, False)[1](noise(2, seed=seed)), moves=True)


def test_a_temperature_beyond_its_bounds_is_clamped_in_training_alone() -> None:
    tau = Temperature(0.5, learned=True, minimum=0.1)
    tau.log_tau.data.fill_(-9.0)
    for mode, context in ((False, nullcontext()), (True, torch.no_grad())):
        tau.train(mode)
        with context:
            assert tau().item() == pytest.approx(0.1)
        assert tau.log_tau.item() == -9.0
    assert tau.train()().item() == pytest.approx(0.1)
    assert tau.log_tau.item() == pytest.approx(math.log(0.1))


def test_a_validation_value_against_a_loop() -> None:
    # log(ε + u) with u that a visit would leave, γ = 0.5, τ = 2; three validations in between
    # change nothing.
    steer, u = steering.DRRho(ALL, tau=2.0, gamma=0.5), None
    for seed in range(3):
        losses = noise(BATCH, seed=seed).abs()
        fresh = (losses / 2).exp().mean().item()
        u = fresh if u is None else 0.5 * u + 0.5 * fresh
        assert steer(losses, None, INDEX).item() == pytest.approx(2 * math.log(u), rel=1e-5)
        steer.eval()
        other = noise(BATCH, seed=seed + 9)
        peek = 0.5 * u + 0.5 * (other / 2).exp().mean().item()
        for _ in range(3):
            assert steer(other, None, INDEX).item() == pytest.approx(2 * math.log(peek), rel=1e-5)
        steer.train()


# ---- a radius in anybody's loop
# --------------------------------------------------------------------------------------


def trained(steer: steering.DRRho, losses: Tensor, calls: int = 200) -> float:
    for _ in range(calls):
        steer(losses.clone().requires_grad_(), None, torch.arange(len(losses)))
    return steer.risk.temperature.log_tau.exp().item()


LOSSES = {
    "normal": noise(64),
    "far from zero": 1000 + 50 * noise(64),
    "small": 0.05 * noise(64),
    "one outlier": torch.cat([noise(500), torch.tensor([20.0])]),
}


@pytest.mark.parametrize("losses", LOSSES.values(), ids=[*LOSSES])
@pytest.mark.parametrize("radius", [0.02, 0.3, 1.5])
def test_the_temperature_comes_to_the_exact_one(losses: Tensor, radius: float) -> None:
    exact = worst_case(losses.double(), "kl", radius=radius).dual.tau.item()
    assert trained(steering.DRRho(len(losses), radius=radius), losses) == pytest.approx(
        exact, rel=0.05
    )


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "chi2"},
        {"divergence": "cressie-read", "order": 1.5},
        {"tau": 100.0},
        {"tau": 0.01},
        {"gamma": 0.1},
        {"estimator": "batch"},
    ],
    ids=str,
)
def test_of_any_divergence_start_and_memory(options: dict[str, Any]) -> None:
    losses, shape = (
        noise(12) + 1,
        {k: v for k, v in options.items() if k in ("divergence", "order")},
    )
    exact = worst_case(
        losses.double(), **({"divergence": "kl"} | shape), radius=0.3
    ).dual.tau.item()
    calls = 60 if shape else 200
    assert trained(steering.DRRho(12, radius=0.3, **options), losses, calls) == pytest.approx(
        exact, rel=0.05
    )


def test_over_batches_the_divergence_averages_to_the_radius() -> None:
    steer, generator, spent = steering.DRRho(1000, radius=0.2), torch.Generator().manual_seed(0), []
    losses = noise(1000)
    for step in range(700):
        index = torch.randint(1000, (32,), generator=generator)
        tau = steer.risk.temperature.log_tau.exp()
        p = (losses[index] / tau).softmax(0)
        spent.append((p * (32 * p).log()).sum().item() if step >= 200 else math.nan)
        steer(losses[index], None, index)
    assert sum(spent[200:]) / 500 == pytest.approx(0.2, rel=0.05)


def test_there_is_nothing_to_optimise_and_all_is_in_the_state() -> None:
    losses = noise(8)
    for make in (steering.DRRho, steering.GlobalContrastiveLoss):
        assert not [*make(8, radius=0.3).parameters()]
    whole, resumed = steering.DRRho(8, radius=0.3), steering.DRRho(8, radius=0.3)
    trained(whole, losses, 5)
    model = nn.Linear(2, 2)
    groups = [{"params": model.parameters()}, {"params": whole.parameters(), "lr": 0.01}]
    torch.optim.AdamW(
        groups, lr=0.1
    ).step()  # what users were told to do, and what may still stand in their loops
    torch.optim.SGD([*model.parameters(), *whole.parameters()], lr=0.1).step()
    resumed.load_state_dict(whole.state_dict())
    assert trained(resumed, losses, 3) == trained(whole, losses, 3)
    old = {name: x for name, x in whole.state_dict().items() if not name.endswith("visits")}
    steering.DRRho(8, radius=0.3).load_state_dict(
        old
    )  # of a version whose temperature was a parameter


def test_autocast_and_a_broken_batch_do_not_lead_astray() -> None:
    losses = noise(16)
    plain, cast, risk = (steering.DRRho(16, radius=0.3) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trained(cast, losses, 20) == pytest.approx(trained(plain, losses, 20), rel=1e-5)
    before = risk.risk.temperature.log_tau.clone()
    risk.risk(Units(torch.full((4,), torch.inf), None, torch.tensor(0)))
    assert torch.equal(risk.risk.temperature.log_tau, before)


def test_the_contrastive_loss_meets_its_radius() -> None:
    criterion, radius = steering.GlobalContrastiveLoss(ALL, tau=0.5, radius=0.3, epsilon=0.0), 0.3
    pairs = items("pair", 1)
    assert isinstance(pairs, Pairs)
    for _ in range(150):
        criterion(pairs.image, pairs.text, pairs.index)
    tau, cosines, spent = (
        criterion.risk.temperature.log_tau.exp(),
        pairs.image.detach() @ pairs.text.detach().T,
        [],
    )
    for side in (cosines, cosines.T):
        for i in range(BATCH):
            p = (torch.cat([side[i, :i], side[i, i + 1 :]]) / tau).softmax(0)
            spent.append((p * (p * (BATCH - 1)).log()).sum().item())
    assert sum(spent) / len(spent) == pytest.approx(radius, rel=0.05)


# ---- defaults by unit
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "tau", "epsilon", "gamma"),
    [
        ("example", 1.0, 0.0, 0.9),
        ("sequence", 1.0, 0.0, 0.9),
        ("token", 1.0, 0.0, 1.0),
        ("pair", 0.07, 1e-4, 1.0),
    ],
)
@pytest.mark.parametrize("name", ["dro", "drrho"])
def test_null_means_what_fits_the_unit(
    name: str, unit: str, tau: float, epsilon: float, gamma: float
) -> None:
    def outcome(**options: Any) -> list[Tensor]:
        method = build_method(name, options_of(name, **options), ALL, unit=unit)
        return [method(items(unit, seed)).loss.detach() for seed in (1, 2)]

    named = outcome(tau=tau, epsilon=epsilon, gamma=gamma)
    assert outcome() == named
    assert outcome(tau=tau * 1.5) == outcome(tau=tau * 1.5, epsilon=epsilon, gamma=gamma) != named
    assert outcome(divergence="chi2") == outcome(divergence="chi2", tau=tau)
    assert default_tau(unit) == tau


def test_the_functions_have_the_same_defaults() -> None:
    losses, guide = noise(BATCH).abs(), noise(BATCH, seed=1).abs()
    steer, method = (
        steering.DRRho(ALL),
        build_method("drrho", find_method("drrho").options(), ALL, unit="example"),
    )
    for _ in range(2):
        assert steer(losses, guide, INDEX) == method(Units(losses, guide, torch.tensor(0))).loss
    pairs = items("pair", 1)
    assert isinstance(pairs, Pairs)
    criterion, method = (
        steering.GlobalContrastiveLoss(ALL),
        build_method("drrho", find_method("drrho").options(), ALL, unit="pair"),
    )
    found = criterion(pairs.image, pairs.text, INDEX, pairs.reference_image, pairs.reference_text)
    assert found == method(pairs).loss
    nested = build_method("nested", find_method("nested").options(), ALL)
    assert nested.get_parameter("inner.temperature.log_tau").exp().item() == pytest.approx(0.07)


def test_a_task_tells_the_unit(tmp_path: Path) -> None:
    for kind, tau in (("units", 1.0), ("pairs", 0.07)):
        run(toys.make_job(tmp_path / kind, kind=kind, method="drrho", samples=32))
        rows = [row for row in read_curves(tmp_path / kind / "metrics.jsonl") if "train/tau" in row]
        assert [row["train/tau"] for row in rows] == pytest.approx([tau] * len(rows))


def test_an_unknown_unit_has_nats() -> None:
    assert defaults("molecule") == defaults("example")


# ---- what is told
# ----------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="steering"):
        yield lambda: [
            record.getMessage() for record in caplog.records if record.name == "steering"
        ]


def collapsed(n: int = 32) -> Tensor:
    return torch.cat([torch.tensor([9.0]), 0.1 * noise(n - 1)])


def test_collapsed_weights_are_told_once_and_only_when_they_last(
    heard: Callable[[], list[str]],
) -> None:
    steer = steering.DRRho(32, tau=0.07)
    for _ in range(LONG - 1):
        steer(collapsed(), None, torch.arange(32))
    steer(torch.full((32,), 9.0), None, torch.arange(32))  # one healthy step in between
    for _ in range(LONG - 1):
        steer(collapsed(), None, torch.arange(32))
    assert heard() == []
    for _ in range(3 * LONG):
        steer(collapsed(), None, torch.arange(32))
    (text,) = heard()
    assert "all weight lies on one or two examples of each batch" in text
    assert "effective sample share 0.031 for 50 steps, B = 32" in text
    assert "raise tau" in text


def test_validation_and_healthy_weights_are_not_counted(heard: Callable[[], list[str]]) -> None:
    steer = steering.DRRho(32, tau=0.07).eval()
    for _ in range(2 * LONG):
        steer(collapsed(), None, torch.arange(32))
    steer = steering.DRRho(32, tau=1.0)
    for _ in range(2 * LONG):
        steer(noise(32), None, torch.arange(32))
    cvar = steering.DRRho(32, divergence="cvar", level=1 / 32)  # as asked for
    for _ in range(2 * LONG):
        cvar(noise(32), None, torch.arange(32))
    tiny = steering.DRRho(2, tau=0.07)  # one of two is no collapse
    for _ in range(2 * LONG):
        tiny(torch.tensor([0.0, 5.0]), None, torch.arange(2))
    assert heard() == []


def test_pairs_tell_by_their_negatives(heard: Callable[[], list[str]]) -> None:
    criterion = steering.GlobalContrastiveLoss(ALL, tau=0.001)
    pairs = items("pair", 1)
    assert isinstance(pairs, Pairs)
    for _ in range(2 * LONG):
        criterion(pairs.image, pairs.text, pairs.index)
    (text,) = heard()
    assert "one or two negatives of each anchor" in text
    assert f"B = {BATCH - 1}" in text


def test_a_run_tells_in_its_log_its_metrics_and_tensorboard(
    tmp_path: Path, heard: Callable[[], list[str]]
) -> None:
    run(toys.make_job(tmp_path, kind="units", method="dro", tau=1e-3, samples=1600, lr=1e-4))
    (text,) = heard()
    rows = [row for row in read_curves(tmp_path / "metrics.jsonl") if "warning/weights" in row]
    assert len(rows) == 1
    assert rows[0]["warning/weights"] in text
    assert "B = 16" in text
    assert LONG <= rows[0]["step"] <= LONG + 5
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "warning/weights/text_summary" in events.Tags()["tensors"]


def test_a_resumed_run_does_not_tell_again(tmp_path: Path, heard: Callable[[], list[str]]) -> None:
    for start in (0, 20, 100):
        log = RunLog(tmp_path, start, 100)
        log.scalars(20, {"train/loss": 1.0})
        log.warn(20, {"weights": "all of it on one"})
        log.scalars(100, {"eval/seen": 1.0})
        log.close()
    assert len(heard()) == 1
    assert sum("warning/weights" in row for row in read_curves(tmp_path / "metrics.jsonl")) == 1


# ---- a radius beyond reach
# -------------------------------------------------------------------------------------------


MOST = {"kl": math.log(5), "chi2": (5 - 1) / 2, "tv": 1 - 1 / 5}


@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("factor", [1.0, 1.0001, 3.0, 1e6, math.inf])
def test_a_radius_that_cannot_be_spent_frees_the_adversary(name: str, factor: float) -> None:
    losses = torch.tensor(
        [[0.0, 3.0, 1.0, 2.0, -1.0], [2.0, 2.0, 0.0, 1.0, 1.0]], dtype=torch.float64
    )
    found = worst_case(losses, name, radius=factor * MOST[name])
    torch.testing.assert_close(found.value, losses.amax(-1))
    expected = torch.tensor([[0.0, 1, 0, 0, 0], [0.5, 0.5, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(found.weights, expected)
    assert found.dual.tau.tolist() == [0.0, 0.0]
    assert found.gap.tolist() == [0.0, 0.0]


def test_ragged_rows_and_priors_each_for_itself() -> None:
    losses, radius = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 2).double(), 1.0  # log 4 > 1 > log 2
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    found = worst_case(losses, "kl", radius=radius, mask=mask)
    assert found.value[1] == 1.0
    assert found.dual.tau[1] == 0.0
    assert found.dual.tau[0] > 0
    p = found.weights[0]
    assert (p * (4 * p).log()).sum().item() == pytest.approx(radius)
    assert worst_case(torch.tensor([0.0, 1.0]), "kl", rho=99.0).value == 1.0
    prior = torch.tensor([0.9, 0.1]).double()
    assert worst_case(torch.tensor([0.0, 1.0]).double(), "kl", radius=5.0, prior=prior).value == 1.0
    assert worst_case(torch.tensor([7.0]), "kl", radius=5.0).value == 7.0


def test_training_with_it_goes_to_the_worst_and_says_so(
    tmp_path: Path, heard: Callable[[], list[str]]
) -> None:
    losses = noise(8)
    assert trained(steering.DRRho(8, radius=99.0, tau=0.1), losses, 150) == pytest.approx(
        1e-4, rel=1e-3
    )
    radius, *_ = (text for text in heard() if "radius 99" in text)
    assert "8 items can spend (2.079)" in radius
    assert sum("radius 99" in text for text in heard()) == 1
    run(toys.make_job(tmp_path, method="drrho", radius=99.0))
    (row,) = [row for row in read_curves(tmp_path / "metrics.jsonl") if "warning/radius" in row]
    assert "15 items can spend (2.708)" in row["warning/radius"]


def test_a_radius_within_reach_is_no_news(heard: Callable[[], list[str]]) -> None:
    trained(steering.DRRho(8, radius=2.0), noise(8), 10)
    assert heard() == []


# ---- the reference's own logit scale
# ---------------------------------------------------------------------------------


def kl_of_pairs(pairs: Pairs, tau: float, scale: float) -> float:
    """Mean KL(reference ‖ target) over rows and columns, by loops."""
    assert pairs.reference_image is not None
    assert pairs.reference_text is not None
    s = (pairs.image @ pairs.text.T).detach() / tau
    t = scale * pairs.reference_image @ pairs.reference_text.T
    total = 0.0
    for one, other in ((s, t), (s.T, t.T)):
        for i in range(len(s)):
            p, q = other[i].softmax(0), one[i].softmax(0)
            total += (p * (p / q).log()).sum().item() / len(s) / 2
    return total


@pytest.mark.parametrize(
    ("name", "own"), [("distillation", {"weight": 1.0}), ("drrho", {"distill": 1.0, "tau": 0.07})]
)
def test_distillation_takes_the_scale_that_comes_with_the_reference(
    name: str, own: dict[str, Any]
) -> None:
    key = "reference_scale" if name == "distillation" else "distill_scale"
    temperature = {"temperature": 1.0} if name == "distillation" else {}
    pairs = items("pair", 3)
    assert isinstance(pairs, Pairs)

    def term(of: Pairs, **options: Any) -> float:
        options = own | temperature | options
        method = build_method(name, options_of(name, **options), ALL, unit="pair")
        return method(of).metrics["distillation"].item()

    assert term(pairs) == pytest.approx(kl_of_pairs(pairs, 0.07, 20.0), rel=1e-4)
    assert term(pairs, **{key: 5.0}) == pytest.approx(kl_of_pairs(pairs, 0.07, 5.0), rel=1e-4)
    bare = Pairs(pairs.image, pairs.text, pairs.index, pairs.reference_image, pairs.reference_text)
    assert term(bare, **{key: 5.0}) == pytest.approx(kl_of_pairs(pairs, 0.07, 5.0), rel=1e-4)
    with pytest.raises(
        SteeringError, match=rf"method \({name}\): .* logit scale .*; set method.{key}"
    ):
        term(bare)


def test_jest_scores_with_it_too() -> None:
    pairs = items("pair", 3)
    assert isinstance(pairs, Pairs)
    bare = Pairs(pairs.image, pairs.text, pairs.index, pairs.reference_image, pairs.reference_text)

    def chosen(of: Pairs, **options: Any) -> list[int]:
        method = build_method(
            "jest", find_method("jest").options(top=True, chunks=3, **options), ALL
        )
        assert method.selector is not None
        return method.selector.choose(of, 4).tolist()

    assert chosen(pairs) == chosen(bare, reference_scale=20.0)
    with pytest.raises(SteeringError, match=r"method \(jest\): .* set method.reference_scale"):
        chosen(bare)


class Tower(nn.Module):
    """As open_clip's models answer: features of any length, and the scale, not its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(17.0)))

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {
            "image_features": 2 * image,
            "text_features": text,
            "logit_scale": self.logit_scale.exp(),
        }


def test_clip_tells_its_scale_live_and_cached(tmp_path: Path) -> None:
    class Two(IndexedData):
        def __len__(self) -> int:
            return 2

        def batch(self, index: Any, epoch: int) -> dict[str, Tensor]:  # noqa: ARG002
            rows = torch.as_tensor(index)
            return {"image": noise(2, 4)[rows], "text": noise(2, 4, seed=1)[rows], "index": rows}

        def fingerprint(self) -> str:
            return "d"

    data, tower, mark = Two(), Tower(), Fingerprint("w", "i", "d")
    batch = data.batch([0, 1], 0)
    live = LiveReference(tower, ClipRisk()).outputs(batch)
    kept = build(
        tmp_path / "kept",
        mark,
        "losses",
        ClipRisk(),
        tower,
        lambda at: iter([batch][at:]),
        2,
        torch.device("cpu"),
    )
    cached = StoredReference().outputs(WithOutputs(data, kept, STORED).batch(np.array([0, 1]), 0))
    for found in (live, cached):
        pairs = ClipRisk().losses(ClipRisk().outputs(tower, batch), found, batch)
        assert pairs.reference_scale is not None
        torch.testing.assert_close(pairs.reference_scale, torch.tensor([17.0, 17.0]))
        assert not pairs.reference_scale.requires_grad


def test_a_trained_model_of_pairs_keeps_its_temperature(tmp_path: Path) -> None:
    job = toys.make_job(tmp_path, method="erm", guided=False)
    run(job)
    again = toys.Towers(0.0, torch.float32)
    load_weights(tmp_path / "model.safetensors", again)
    (row,) = [
        row
        for row in read_curves(tmp_path / "metrics.jsonl")
        if row["step"] == 20 and "train/tau" in row
    ]
    learned = job.method.get_parameter("temperature.log_tau").exp().item()
    assert again.logit_scale.exp().item() == pytest.approx(1 / learned, rel=1e-5)
    assert row["train/tau"] != pytest.approx(0.07)


def test_individual_temperatures_stand_for_one_by_their_mean() -> None:
    table = IndividualTemperatures(4, 0.5, 0.1)
    assert table.typical().item() == pytest.approx(0.5)
    table.visit(torch.tensor([0, 2]), False)[1](
        torch.tensor([1.0, -1.0])
    )  # Adam's first step is its rate
    table.visit(torch.tensor([0]), False)[1](torch.tensor([1.0]))
    assert table.typical().item() == pytest.approx((0.3 + 0.6) / 2, rel=1e-3)


def test_the_risk_of_validation_keeps_its_radius() -> None:
    # The same risk, solved or learned by an optimiser, has the same value before anything has
    # moved.
    for solve in (False, True):
        risk = stochastic(1, tau=2.0, radius=0.3, solve_tau=solve).eval()
        losses = noise(6)
        expected = 2 * ((losses / 2).exp().mean().log() + 0.3)
        torch.testing.assert_close(
            risk(Units(losses, None, torch.tensor(0))).loss.detach(), expected
        )
