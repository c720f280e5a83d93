"""The small contract of a method: what it must say, what it may leave out, how it is registered."""

from dataclasses import dataclass

import pytest
import torch

from steering.errors import ConfigError, SteeringError
from steering.items import Pairs, Units
from steering.methods import (
    Method,
    Needs,
    Step,
    build_method,
    check_options,
    find_method,
    register,
    registered,
    registry,
)


@dataclass
class Options:
    weight: float = 1.0


@dataclass
class Asking(Options):
    def needs(self) -> Needs:
        return Needs(reference=self.weight > 0, logits=self.weight > 1)


class Bare(Method):
    """Nothing but what a method must have, over
    two lines.

    Source: nobody
    """

    def __init__(self, options):
        super().__init__()
        if options.weight < 0:
            raise ValueError(f"weight must be ≥ 0, got {options.weight}")

    def forward(self, items):
        return Step(items.target.sum())


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", registered())


def test_all_but_forward_may_be_left_out():
    register("bare", Options)(Bare)
    method = build_method("bare", Options(), 5)
    assert method.needs == Needs()
    assert method.selector is None
    assert method.at(0.5) is None
    assert method.start_epoch(0) is None
    assert method.summary() == {}
    assert method.logit_scale() is None
    step = method(Units(torch.ones(2)))
    assert (step.loss, step.scalars(), step.weights) == (2, {}, None)
    with pytest.raises(NotImplementedError, match="Bare cannot leave groups out"):
        method.without_groups([0])


def test_a_selector_is_a_part_of_the_method():
    """Its memory is in the method's state."""
    method = Bare(Options())
    method.selector = torch.nn.Linear(1, 1)
    assert isinstance(method.selector, torch.nn.Linear)
    assert [*method.state_dict()] == ["selector.weight", "selector.bias"]


def test_the_first_paragraph_is_the_summary():
    register("bare", Options)(Bare)
    assert find_method("bare").summary == "Nothing but what a method must have, over two lines."

    @register("silent", Options)
    class Silent(Bare):
        pass

    assert find_method("silent").summary == ""  # not that of a class above


def test_metrics_may_wait_until_somebody_asks():
    asked = []

    def metrics():
        asked.append(1)
        return {"x": torch.tensor(3.0)}

    step = Step(torch.tensor(1.0), metrics)
    assert asked == []
    assert step.scalars() == {"x": torch.tensor(3.0)}
    assert asked == [1]
    assert Step(torch.tensor(1.0), {"x": torch.tensor(2.0)}).scalars() == {"x": torch.tensor(2.0)}


def test_needs_are_a_function_of_the_options():
    register("asking", Asking)(Bare)
    register("always", Options, needs=Needs(reference=True))(Bare)
    asks = find_method("asking").needs
    found = [asks(Asking(weight)) for weight in (0.0, 1.0, 2.0)]
    assert found == [Needs(), Needs(reference=True), Needs(True, True)]
    assert [one.outputs for one in found] == ["losses", "losses", "logits"]
    assert Needs(reference=True) | Needs(logits=True) == Needs(True, True)
    assert find_method("always").needs(Options()) == Needs(reference=True)
    assert build_method("asking", Asking(2.0), 5).needs == Needs(True, True)


@pytest.mark.parametrize(
    ("takes", "wanted"),
    [
        ("options", {}),
        ("options, num_examples", {"num_examples": 7}),
        ("o, unit, groups", {"unit": "token", "groups": ("a", "b")}),
    ],
)
def test_a_builder_gets_what_it_names(takes, wanted):
    given = {}
    names = ", ".join(f"{name}={name}" for name in wanted)
    scope = {"given": given, "Bare": Bare, "Options": Options}
    exec(f"def build({takes}):\n given.update({names})\n return Bare(Options())", scope)
    register("picky", Options, units=("token",))(scope["build"])
    build_method("picky", Options(), 7, ["a", "b"])
    assert given == wanted


def test_a_builder_that_wants_something_else_is_refused():
    with pytest.raises(
        ValueError, match="'odd': its builder takes weight; expected the options and some of num_ex"
    ):
        register("odd", Options)(lambda options, weight: Bare(options))  # noqa: ARG005
    assert "odd" not in registered()


def test_options_are_checked_without_a_run():
    register("bare", Options)(Bare)
    check_options("bare", Options())
    with pytest.raises(ConfigError, match=r"method \(bare\): weight must be ≥ 0, got -1"):
        check_options("bare", Options(-1.0))


@pytest.mark.parametrize("name", ["rho1", "group_dro", "doremi"])
def test_who_calls_a_method_with_pairs_it_cannot_weigh_is_told(name):
    method = build_method(name, find_method(name).options(), 5, ["a"])
    with pytest.raises(SteeringError, match="expected Units, one loss for each item, got Pairs"):
        method(Pairs(torch.eye(2), torch.eye(2), torch.arange(2)))


@pytest.mark.parametrize("name", ["rho_loss", "soft_rho"])
def test_who_lets_a_method_select_pairs_is_told(name):
    method = build_method(name, find_method(name).options(), 5)
    with pytest.raises(SteeringError, match="expected Units, one loss for each item, got Pairs"):
        method.selector.choose(Pairs(torch.eye(2), torch.eye(2), torch.arange(2)), 1)


def test_jest_selects_pairs_alone():
    method = build_method("jest", find_method("jest").options(), 5)
    with pytest.raises(SteeringError, match="expected Pairs, the features of pairs, got Units"):
        method.selector.choose(Units(torch.ones(3)), 1)
