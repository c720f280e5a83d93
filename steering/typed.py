"""Plain values into checked dataclasses, and back.

OmegaConf converts the leaves, so `lr: 1e-3` or a quoted number mean what they say in YAML; it is
not seen below this module and `steering.config`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from steering.errors import SteeringError
from steering.registry import Registry, registry_of, takes_several
from steering.values import Fail, described, fitted, quote_it, section_of, shown

MISSING: Any = "???"
KEYS: dict[str, str] = {}
"""Key → where it stands in a run's config, for hints; `steering.schema` fills it, and each method
adds its own."""


def typed(
    cls: type, raw: Mapping[str, Any], path: str, fail: Fail, given: Mapping[str, Any] | None = None
) -> Any:
    """Build a dataclass, and those nested in it, from plain values.

    Args:
        cls: any dataclass whose field types OmegaConf knows.
        raw: key → plain value; "???" is a value still missing.
        path: dotted path of the section, for messages; "" at the top.
        fail: raises the error of an unknown key, a missing value or a value of another type.
        given: fields that are built already.
    """
    check_keys(cls, raw, path, fail)
    return _build(cls, raw, path, fail, None, given or {})


def check_keys(cls: type, raw: Mapping[str, Any], path: str, fail: Fail) -> None:
    """Refuse, through `fail`, a key that is no field of the dataclass, and name the nearest one
    that is."""
    for key in raw:
        if not isinstance(key, str):
            fail(
                path,
                f"unknown key {f'{path}.' if path else ''}{str(key)!r} ({type(key).__name__}){quote_it(key)}",
            )
        if message := unknown_key(cls, key, path):
            fail(f"{path}.{key}" if path else key, message)


def plain(value: Any) -> Any:
    """Dataclasses, tuples, enums and paths as what YAML can write.

    A chosen part (`steering.registry`) becomes a section with its name, a dataclass with a method
    `section()` what that returns.
    """
    if hasattr(value, "section") and not isinstance(value, type):
        return value.section()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_field(f, getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return str(value)


def plain_field(f: Field[Any], value: Any) -> Any:
    """A dataclass's field as what YAML can write: a chosen part by its name, number or section."""
    registry = registry_of(f.metadata)
    if registry is None or value is None or isinstance(value, str | Mapping):
        return plain(value)
    if takes_several(f.metadata):
        return [{"name": registry.name_of(part), **plain(part)} for part in value]
    number = registry.as_number(value)
    return {"name": registry.name_of(value), **plain(value)} if number is None else number


def differences(value: Any, base: Any = None) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, as plain values; those of a dataclass
    inside it likewise.

    A field without a default always counts, and so does the name of a chosen part that differs. A
    dataclass inside it that has a method `identity()` counts by what that returns: a folder, say,
    by what is in it.

    Args:
        base: an instance of the same class whose values are the defaults; None: the class's own.
    """
    found: dict[str, Any] = {}
    for f in fields(value):
        mine = getattr(value, f.name)
        default = default_of(f) if base is None else getattr(base, f.name)
        same_class = type(mine) is type(default)
        if plain_field(f, mine) == plain_field(f, default) and (
            same_class or not is_dataclass(mine)
        ):
            continue
        inner = default if same_class else None
        registry = registry_of(f.metadata)
        if registry is not None and takes_several(f.metadata):
            found[f.name] = [{"name": registry.name_of(one), **differences(one)} for one in mine]
        elif registry is not None and mine is not None and registry.as_number(mine) is None:
            found[f.name] = {"name": registry.name_of(mine), **differences(mine, inner)}
        elif registry is None and is_dataclass(mine) and not hasattr(mine, "section"):
            identity = getattr(mine, "identity", None)
            if changed := identity() if identity else differences(mine, inner):
                found[f.name] = changed
        else:
            found[f.name] = plain_field(f, mine)
    return found


def literal(value: Any) -> Any:
    """The same plain value with every "${" escaped, so that OmegaConf reads it as text and not as
    an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {key: literal(entry) for key, entry in value.items()}
    return [literal(entry) for entry in value] if isinstance(value, list) else value


def _build(
    cls: type, raw: Mapping[str, Any], path: str, fail: Fail, base: Any, given: Mapping[str, Any]
) -> Any:
    """`typed` without the check of this level's keys; `base` is the default instance that `raw`
    changes, or None."""
    hints, template, values = hints_of(cls), _template(cls), dict(given)
    for f in fields(cls):
        if not f.init or f.name in given:
            continue
        here = f"{path}.{f.name}" if path else f.name
        default = default_of(f) if base is None else getattr(base, f.name)
        value, section = raw.get(f.name, default), section_of(hints[f.name])
        registry = registry_of(f.metadata)
        if registry is not None and takes_several(f.metadata):
            values[f.name] = _parts(registry, value, here, fail)
        elif registry is not None and value is not default and value is not None:
            values[f.name] = _part(registry, value, default, here, fail)
        elif registry is not None:
            if value is None and type(None) not in get_args(hints[f.name]):
                fail(here, f"{here}: expected the name of {registry.a_kind} or a section, got null")
            values[f.name] = value
        elif section is not None and value is not None:
            entries = {} if value is default or value == MISSING else value
            if not isinstance(entries, Mapping):
                fail(here, f"{here}: expected a section, got {shown(value)}")
            check_keys(section, entries, here, fail)
            values[f.name] = _build(
                section, entries, here, fail, default if is_dataclass(default) else None, {}
            )
        elif isinstance(value, str) and value == MISSING:
            fail(here, f"{here} is missing; expected {described(hints[f.name])}")
        else:
            values[f.name] = (
                default
                if value is default
                else _leaf(template, f.name, value, here, hints[f.name], fail)
            )
    try:
        return cls(**values)
    except (ValueError, SteeringError) as error:  # the dataclass's own checks, in __post_init__
        fail(path, f"{path}: {error}")


def _part(registry: Registry[Any], value: Any, default: Any, path: str, fail: Fail) -> Any:
    """A part that is chosen by a name, or by a section with a `name` and the part's own keys.

    A section without a name, or with that of the default, changes the default's fields.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and registry.number:
        return registry.number(float(value))
    if not isinstance(value, str | Mapping):
        if any(type(value) is part for part in registry.parts().values()):
            return value
        fail(
            path,
            f"{path}: expected the name of {registry.a_kind} or a section, "
            f"got {shown(value)}{quote_it(value)}",
        )
    entries = {} if isinstance(value, str) else {k: v for k, v in value.items() if k != "name"}
    usual = None if default is None or default == MISSING else registry.name_of(default)
    name = value if isinstance(value, str) else value.get("name", usual)
    if not isinstance(name, str) or name == MISSING:
        fail(path, f"{path}.name is missing; expected one of {', '.join(registry.names())}")
    try:
        part = registry.find(name, path)
    except SteeringError as error:
        fail(path, str(error))
    check_keys(part, entries, path, fail)
    return _build(part, entries, path, fail, default if name == usual else None, {})


def _parts(registry: Registry[Any], value: Any, path: str, fail: Fail) -> tuple[Any, ...]:
    """Parts that a list chooses, each by a name or a section."""
    if not isinstance(value, list | tuple):
        fail(path, f"{path}: expected a list of {registry.kind}s, got {shown(value)}")
    return tuple(
        _part(registry, entry, None, f"{path}[{number}]", fail)
        for number, entry in enumerate(value)
    )


@cache
def hints_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _template(cls: type) -> Any:
    """OmegaConf's form of a dataclass's leaves, to convert one value at a time: a study builds
    hundreds of configs. Sections and chosen parts are built here, field by field."""
    hints = hints_of(cls)
    leaves = [
        (f.name, hints[f.name], field(default=MISSING))
        for f in fields(cls)
        if f.init and registry_of(f.metadata) is None and section_of(hints[f.name]) is None
    ]
    return OmegaConf.structured(make_dataclass(cls.__name__, leaves))


def _leaf(template: Any, key: str, value: Any, path: str, hint: Any, fail: Fail) -> Any:
    """The value as the field's type, converted by OmegaConf."""
    value = fitted(value, hint, path, fail)
    try:
        OmegaConf.update(template, key, literal(value), merge=False)
        found = template[key]
        return OmegaConf.to_object(found) if OmegaConf.is_config(found) else found
    except MissingMandatoryValue:
        fail(path, f"{path} is missing a value in {shown(value)}; expected {described(hint)}")
    except OmegaConfBaseException:
        fail(path, f"{path}: expected {described(hint)}, got {shown(value)}")


def default_of(f: Field[Any]) -> Any:
    """The default of a field; `MISSING` if it has none."""
    if f.default_factory is not NO_DEFAULT:
        return f.default_factory()
    return MISSING if f.default is NO_DEFAULT else f.default


def unknown_key(cls: type, key: str, path: str) -> str | None:
    """Why a dataclass has no such key, with a hint; None if it has."""
    known, prefix = [f.name for f in fields(cls) if f.init], f"{path}." if path else ""
    return None if key in known else f"unknown key {prefix + key!r}; {nearest(key, known, prefix)}"


def nearest(key: str, known: list[str], prefix: str = "", *, keys: bool = True) -> str:
    """A hint for a message: where else, of `keys`, this very name stands; else the nearest known name
    beside this one, else of another section, else all known."""
    elsewhere = KEYS if keys else {}
    if elsewhere.get(key, prefix + key) != prefix + key:
        return f"did you mean {elsewhere[key]!r}?"
    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {prefix + near[0]!r}?"
    near = difflib.get_close_matches(key, elsewhere, n=1)
    if near and elsewhere[near[0]] != prefix + key:  # another part of this section has that key
        return f"did you mean {elsewhere[near[0]]!r}?"
    return f"known: {', '.join(prefix + name for name in known)}"
