"""What of a method is worth searching: documented ranges, and which of them a section leaves open."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from steering.errors import ConfigError
from steering.methods import build_method, find_method, registered
from steering.methods.ranges import documented, in_words, searched
from steering.methods.selection import SELECTORS
from steering.studies.search_space import settings
from steering.typed import typed

EVERY = [
    (name, unit, key)
    for name, entry in registered().items()
    for unit in entry.units
    for key in documented(entry.options, unit)
]
TAU = {"low": 0.5, "high": 16.0, "log": True}
OFF = {"tau": math.inf, "strength": 0.0}


def options_of(name: str, section: dict[str, Any]) -> Any:
    def fail(path: str, message: str) -> None:
        raise AssertionError(f"{path}: {message}")

    return typed(find_method(name).options, section, "method", fail)


def section_with(key: str, value: Any) -> dict[str, Any]:
    above, dot, below = key.partition(".")
    return {above: section_with(below, value) if dot else value}


@pytest.mark.parametrize(("name", "unit", "key"), EVERY)
def test_what_is_drawn_is_what_the_method_takes(name, unit, key):
    given = documented(find_method(name).options, unit)[key]
    drawn = settings({key: given}, 3, 0, "here")[1:]
    ends = given if isinstance(given, list) else [given["low"], given["high"]]
    for value in [*ends, *(one[key] for one in drawn)]:
        options = options_of(name, section_with(key, value))
        build_method(name, options, 10, ("all",), unit)
        assert key in searched(options, unit) or key == "distill_temperature"


def test_every_method_but_plain_training_documents_some():
    assert {*registered()} - {name for name, _, _ in EVERY} == {"erm"}


@pytest.mark.parametrize(
    ("name", "unit", "section"),
    [
        ("drrho", "pair", {"tau": 0.01, "strength": 1.0}),  # arXiv 2505.06699, DFN-192M
        ("drrho", "example", {"strength": 1.0}),
        ("dro", "pair", {"tau": 0.07}),  # arXiv 2407.01445
        ("dro", "pair", {"tau": 0.03}),
        ("dro", "pair", {"radius": 6.5}),
        ("dro", "pair", {"radius": 11.0}),
        ("dro", "pair", {"radius": 16.0}),
        ("rho_loss", "example", {"share": 0.1}),  # arXiv 2206.07137
        ("soft_rho", "example", {"temperature": 0.25}),
        ("soft_rho", "example", {"share": 0.5}),  # arXiv 2312.05328
        ("jest", "pair", {"share": 0.2}),  # arXiv 2406.17711
        ("rho1", "token", {"share": 0.6}),  # arXiv 2404.07965
        ("rho1", "token", {"share": 0.7}),
        ("doremi", "token", {"step": 1.0}),  # arXiv 2305.10429
        ("group_dro", "example", {"step": 0.01}),  # arXiv 1911.08731
        ("distillation", "pair", {"temperature": 1.0}),  # arXiv 2311.17049
    ],
)
def test_published_settings_lie_inside(name, unit, section):
    assert {*section} <= {*searched(options_of(name, section), unit)}


@pytest.mark.parametrize(
    ("name", "unit", "section", "keys"),
    [
        ("erm", "pair", {}, ""),
        ("dro", "example", {}, "tau"),
        ("drrho", "example", {}, "tau strength"),
        ("drrho", "pair", {}, "tau strength"),
        ("drrho", "pair", {"tau": None}, "tau strength"),
        ("drrho", "token", {"tau": 4.0, "strength": 2.0}, "tau strength"),
        ("drrho", "token", {"tau": 4.0, "strength": 9.0}, "tau"),
        ("drrho", "token", {**OFF, "prior": 0.5}, "prior"),
        ("drrho", "token", {"tau": math.inf, "prior": 0.5}, "prior"),  # strength/tau is 0
        ("drrho", "pair", {"strength": {"name": "linear", "start": 0.2, "end": 0.8}}, "tau"),
        ("drrho", "pair", {"strength": "auto"}, "tau"),
        ("drrho", "example", {"radius": 0.5}, "radius strength"),
        ("drrho", "example", {"divergence": {"name": "cvar", "level": 0.5}}, "strength"),
        ("drrho", "example", {"distill": 1.0}, "tau strength distill distill_temperature"),
        ("drrho", "pair", {"distill": 1.0}, "tau strength distill"),
        ("nested", "pair", {}, "inner.tau outer.tau outer.prior"),
        (
            "nested",
            "pair",
            {"inner": {"strength": 0.5}, "outer": {"tau": math.inf}},
            "inner.tau inner.strength outer.prior",
        ),
        ("nested", "pair", {"inner": {"radius": 2.0}}, "inner.radius outer.tau outer.prior"),
        ("group_dro", "example", {}, "step"),
        ("group_dro", "example", {"penalty": 0.1, "strength": 1.0}, "step penalty strength"),
        ("doremi", "token", {}, "step"),
        ("distillation", "pair", {}, "weight temperature"),
        ("distillation", "pair", {"temperature": 1.5}, "weight"),  # not in the list
        ("rho1", "token", {"share": 1.0}, ""),
    ],
)
def test_what_a_section_fixes_is_not_searched(name, unit, section, keys):
    assert " ".join(searched(options_of(name, section), unit)) == keys


def test_the_range_depends_on_the_unit():
    options = options_of("dro", {})
    assert searched(options, "example") == {"tau": TAU}
    assert searched(options, "pair") == {"tau": {"low": 0.01, "high": 0.15, "log": True}}
    assert documented(find_method("distillation").options, "pair")["temperature"] == [1.0, 2.0]


def test_a_selector_documents_its_own():
    for part in SELECTORS.parts().values():
        assert "share" in searched(part(), "example"), part


@dataclass
class Outside:
    share: float = 0.5
    mode: str = "soft"
    on: bool = True
    depth: dict[str, int] = field(default_factory=dict)
    search: ClassVar = {
        "share": {"low": 0.2, "high": 0.9},
        "mode": ["soft", "hard"],
        "on": {"low": 0, "high": 2},
        "depth": {"low": 0, "high": 2},
    }


def test_a_method_from_outside_documents_them_the_same_way():
    assert [*searched(Outside(), "example")] == ["share", "mode"]
    assert [*searched(Outside(share=0.95, mode="other"), "example")] == []
    assert in_words(Outside.search["mode"]) == "soft, hard"

    class Wrong(Outside):
        search: ClassVar = {"shares": {"low": 0.2, "high": 0.9}}

    with pytest.raises(ConfigError, match=r"Wrong\.search: 'shares' is no key of Wrong"):
        searched(Wrong(), "example")

    class Odd(Outside):
        search: ClassVar = {"share": {"from": 0.2}}

    odd = searched(Odd(), "example")  # what cannot be a range is refused where it is drawn from
    with pytest.raises(ConfigError, match=r"here\.share: expected a list"):
        settings(odd, 2, 0, "here")


def test_one_without_a_search_has_none():
    @dataclass
    class Plain:
        share: float = 0.5

    assert documented(Plain, "example") == searched(Plain(), "example") == {}
