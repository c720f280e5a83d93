"""One contract for every registered method, over examples, masked rows and pairs; and a method from
outside."""

import math
from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steering.contrastive import Pairs, negatives
from steering.errors import SteeringError
from steering.items import LossItems, Units, rows_of
from steering.methods import (
    UNITS,
    Method,
    Needs,
    Step,
    build_method,
    find_method,
    register,
    registered,
    registry,
)

ALL, BATCH = 10, 5
INDEX = torch.tensor([3, 0, 9, 4, 6])
KINDS = ["examples", "masked rows", "pairs"]
DTYPES = [torch.float32, torch.float64]
UNIT = {"examples": "example", "masked rows": "token", "pairs": "pair"}
GROUPS = ("plain", "rare", "never seen")
every_method = pytest.mark.parametrize("name", registered())
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

Leaves = dict[str, Tensor]


def batch(
    kind: str, dtype: torch.dtype, seed: int, guided: bool = True, logits: bool = False
) -> tuple[Units | Pairs, Leaves, Leaves]:
    """Loss items, the leaves of the target and those of the reference. All require a gradient: the
    method must choose."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, unit: bool = False) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (F.normalize(x, dim=-1) if unit else x.abs()).to(dtype).requires_grad_()

    if kind == "pairs":
        target = {name: leaf(BATCH, 4, unit=True) for name in ("image", "text")}
        reference = {
            name: leaf(BATCH, 3, unit=True) for name in ("reference_image", "reference_text")
        }
        guide = {**reference, "reference_scale": torch.full((BATCH,), 20.0)} if guided else {}
        return Pairs(**target, index=INDEX, **guide), target, reference if guided else {}
    shape = (BATCH,) if kind == "examples" else (3, BATCH)
    target, reference = {"target": leaf(*shape)}, {"reference": leaf(*shape)}
    rows = torch.tensor(0) if kind == "examples" else torch.arange(3)
    mask = None
    if kind == "masked rows":
        mask = torch.rand(shape, generator=generator) < 0.6
        mask[:, 0] = True
    groups = torch.arange(BATCH).remainder(2).expand(shape)
    more = {}
    if logits:
        target["logits"] = more["logits"] = leaf(*shape, 7)
        if guided:
            reference["logits"] = more["reference_logits"] = leaf(*shape, 7)
    guide = reference["reference"] if guided else None
    units = Units(target["target"], guide, rows, mask, groups=groups, unit=UNIT[kind], **more)
    return units, target, reference if guided else {}


def build(name: str, kind: str | None = None) -> Method:
    unit = None if kind is None else UNIT[kind]
    return build_method(name, find_method(name).options(), ALL, GROUPS, unit)


def fits(name: str, kind: str) -> bool:
    return find_method(name).objection(UNIT[kind], has_groups=True) is None


def gradients(leaves: Leaves) -> dict[str, Tensor | None]:
    return {name: leaf.grad for name, leaf in leaves.items()}


def check_step(name: str, kind: str, dtype: torch.dtype, guided: bool) -> None:
    method = build(name, kind)
    method.start_epoch(0)
    losses, target, reference = batch(
        kind, dtype, seed=1, guided=guided, logits=method.needs.logits
    )
    made = method(losses)
    assert made.loss.shape == ()
    assert made.loss.dtype == dtype
    assert made.loss.isfinite()
    for metric, value in made.scalars().items():
        assert isinstance(metric, str)
        assert value.shape == ()
        assert value.isfinite()
        assert not value.requires_grad
    made.loss.backward()
    for gradient in gradients(target).values():
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()
    assert all(gradient is None for gradient in gradients(reference).values())
    if isinstance(losses, Units):
        gradient = gradients(target)["target"]
        assert gradient is not None
        assert (gradient >= 0).all()  # weights
        if losses.mask is not None:
            assert not gradient[~losses.mask].any()


def check_buffers(found: Method, expected: Method) -> None:
    """Also those that a state dict leaves out."""
    for (_, x), (_, y) in zip(found.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.equal(x, y)


def check_state(name: str, kind: str, dtype: torch.dtype) -> None:
    """A method loaded from the state of another goes on as the other does, to the bit."""

    def step(method: Method, seed: int) -> list[Tensor]:
        method.zero_grad()
        losses, target, _ = batch(kind, dtype, seed, logits=method.needs.logits)
        made = method(losses)
        made.loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        return [
            made.loss.detach(),
            *(g for g in gradients(target).values() if g is not None),
            *made.scalars().values(),
        ]

    first = build(name, kind)
    for seed in range(2):
        first.start_epoch(seed)
        step(first, seed)
    second = build(name, kind)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    check_buffers(second, first)
    for method in (first, second):
        method.start_epoch(2)
    for seed in range(2, 4):
        for x, y in zip(step(first, seed), step(second, seed), strict=True):
            assert torch.equal(x, y)
    check_buffers(second, first)


@every_method
@every_kind
@every_dtype
@pytest.mark.parametrize("guided", [True, False])
def test_one_step(name, kind, dtype, guided):
    if not fits(name, kind):
        pytest.skip("says so by name, before a run: test_what_fits_what")
    method = build(name, kind)
    if method.needs.logits and not guided:
        losses = batch(kind, dtype, seed=1, guided=False, logits=True)[0]
        with pytest.raises(SteeringError, match="needs the"):
            method(losses)
    else:
        check_step(name, kind, dtype, guided)


@every_method
@every_kind
@every_dtype
def test_state_round_trip(name, kind, dtype):
    if fits(name, kind):
        check_state(name, kind, dtype)


@every_method
@every_kind
@every_dtype
def test_selection(name, kind, dtype):
    """A selector names so many different ones of the drawn examples."""
    method = build(name, kind)
    if not fits(name, kind) or method.selector is None:
        return
    losses = batch(kind, dtype, seed=3)[0]
    for count in (1, 3, BATCH):
        chosen = method.selector.choose(losses, count)
        assert chosen.dtype == torch.int64
        assert len(set(chosen.tolist())) == count
        assert not chosen.requires_grad
        assert {*chosen.tolist()} <= {*range(BATCH)}


@pytest.mark.parametrize("name", [name for name in registered() if fits(name, "pairs")])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_a_reference_in_half_precision_is_the_same_numbers_widened(name, half):
    losses = batch("pairs", torch.float32, seed=4)[0]
    assert isinstance(losses, Pairs)
    reference = {
        key: getattr(losses, key).detach().to(half) for key in ("reference_image", "reference_text")
    }
    found = []
    for widen in (False, True):
        image, text = (side.detach().requires_grad_() for side in (losses.image, losses.text))
        guide = {key: side.float() if widen else side for key, side in reference.items()}
        pairs, method = (
            Pairs(image, text, INDEX, **guide, reference_scale=losses.reference_scale),
            build(name, "pairs"),
        )
        step = method(pairs)
        step.loss.backward()
        torch.manual_seed(0)
        selector = method.selector
        chosen = torch.arange(BATCH) if selector is None else selector.choose(pairs, 3)
        found.append([step.loss, image.grad, text.grad, chosen, *step.scalars().values()])
    for x, y in zip(*found, strict=True):
        assert torch.equal(x, y)


def test_what_fits_what():
    valid = {
        unit: {name for name in registered() if find_method(name).objection(unit, True) is None}
        for unit in UNITS
    }
    anywhere, grouped, whole = (
        {"erm", "dro", "drrho"},
        {"group_dro", "doremi"},
        {"rho_loss", "soft_rho"},
    )
    assert valid["example"] == anywhere | grouped | whole | {"distillation"}
    assert (
        valid["sequence"] == anywhere | grouped | whole
    )  # no one distribution belongs to a sequence
    assert valid["token"] == anywhere | grouped | {"rho1", "distillation"}
    assert valid["pair"] == anywhere | {"jest", "nested", "distillation"}
    assert (
        find_method("rho1").objection("pair", False) == "works on losses of a token, not of a pair"
    )
    assert find_method("doremi").objection("token", False) == "weights groups, and there are none"


@every_method
def test_entry(name):
    entry = find_method(name)
    assert entry.name == name
    assert entry.summary.endswith(".")
    assert isinstance(build(name), Method)
    assert all(f.default is not None or "None" in str(f.type) for f in fields(entry.options))


SIGNED = {"log_alpha"}
NUMBERS = [
    (name, f.name, value)
    for name, entry in registered().items()
    for f in fields(entry.options)
    if f.init and ("float" in str(f.type) or "Schedule" in str(f.type))
    for value in ([math.nan] if f.name in SIGNED else [math.nan, -1.0])
]


@pytest.mark.parametrize(("name", "option", "value"), NUMBERS)
def test_an_option_out_of_range_names_the_method(name, option, value):
    # No number among the options may be NaN, and but for logarithms none negative.
    with pytest.raises(
        SteeringError, match=rf"method \({name}\): {option}:? (must|belongs) .*, got {value}"
    ):
        build_method(name, find_method(name).options(**{option: value}), ALL, GROUPS)


def test_an_unknown_divergence_is_named():
    with pytest.raises(
        ValueError, match=r"divergence: expected one of chi2, .*, got 'wasserstein'"
    ):
        find_method("dro").options(divergence="wasserstein")


def test_an_unknown_method_lists_the_known_ones():
    for look_up in (find_method, lambda name: build_method(name, None, ALL)):
        with pytest.raises(
            SteeringError, match=r"method.name: no method 'drro'; known: .*dro, drrho, erm"
        ):
            look_up("drro")


def test_a_name_is_registered_once():
    before = registered()
    with pytest.raises(ValueError, match="a method named 'erm' is registered already"):
        register("erm", object)(build_method)
    assert registered() == before


# ---- a method from outside
# --------------------------------------------------------------------------------------------


@dataclass
class HalfOptions:
    keep: float = 0.5
    """Share of the items of each row that train."""


class LargestHalf(Method):
    """The mean of the largest excess losses of each row, and how often it was asked."""

    def __init__(self, options: HalfOptions) -> None:
        super().__init__()
        if not 0 < options.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {options.keep}")
        self.keep = options.keep
        self.asked: Tensor
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))

    def forward(self, items: LossItems) -> Step:
        units = negatives(items) if isinstance(items, Pairs) else rows_of(items)
        excess = units.excess()
        hidden = (
            excess.detach()
            if units.mask is None
            else excess.detach().masked_fill(~units.mask, -torch.inf)
        )
        rank = hidden.argsort(-1, descending=True).argsort(-1)
        chosen = rank < (self.keep * units.counts()).ceil()[..., None]
        self.asked += 1
        return Step((excess * chosen).sum() / chosen.sum(), {"asked": self.asked.clone()})


@pytest.fixture
def largest_half(monkeypatch):
    """Registers the method for one test."""
    monkeypatch.setattr(registry, "_REGISTRY", registered())

    @register("largest_half", HalfOptions, needs=Needs(reference=True))
    def build_half(options: HalfOptions, num_examples: int) -> Method:
        """Train on the larger half.

        The rest of this is no part of the summary.
        """
        assert num_examples == ALL
        return LargestHalf(options)

    return "largest_half"


@every_kind
@every_dtype
def test_a_method_from_outside_keeps_the_contract(largest_half, kind, dtype):
    check_step(largest_half, kind, dtype, guided=True)
    check_step(largest_half, kind, dtype, guided=False)
    check_state(largest_half, kind, dtype)


def test_a_method_from_outside_is_found_and_listed(largest_half):
    assert find_method(largest_half).summary == "Train on the larger half."
    assert list(registered()) == sorted(registered())
    assert largest_half in registered()
    with pytest.raises(
        SteeringError, match=r"method \(largest_half\): keep must lie in \(0, 1\], got 2"
    ):
        build_method(largest_half, HalfOptions(keep=2.0), ALL)


def test_a_method_from_outside_by_hand(largest_half):
    units = Units(
        torch.tensor([5.0, 1.0, 3.0, 2.0]), torch.tensor([5.0, 0.5, 0.0, 1.0]), torch.tensor(0)
    )
    assert build(largest_half)(units).loss == 2  # excess 0, ½, 3, 1: the mean of 3 and 1


def test_the_registry_is_as_before():
    assert "largest_half" not in registered()
