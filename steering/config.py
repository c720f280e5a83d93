"""A run's config: one YAML file and `a.b=c` overrides, turned into checked dataclasses.

The rest of the package sees those dataclasses only. Every mistake is a `ConfigError` that names the
key, and the file or "command line" that set it. A value replaces what it overrides; of two
overrides the deeper key wins, else the later.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steering.config_tree import Tree, merged, spelled_out, split_key
from steering.errors import SteeringError
from steering.methods import find_method, registered
from steering.packaged import find_config, packaged_name
from steering.ranges import problems
from steering.reading import user_path
from steering.schema import (  # noqa: F401  (the dataclasses are for the callers)
    MISSING,
    CompareConfig,
    ConfigError,
    MethodConfig,
    ReferenceConfig,
    RunConfig,
    TrainConfig,
    check_dotted,
    check_keys,
    literal,
    nearest,
    plain,
    typed,
)
from steering.task import ModelSpec, find_task  # noqa: F401
from steering.values import quote_it, shown
from steering.yaml_text import read_sections, read_value


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a config file.

    Args:
        path: YAML, or the name of a config that comes with the package, such as "clip/glyphs"; a
            file of that name wins. Interpolations such as ${seed} are resolved after the overrides.
        overrides: "a.b=c" with c in YAML. `method=drrho` changes to that method with its own
            defaults, or keeps the section when it names the method already; so do `task=`,
            `target=` and `reference=`.

    Returns:
        The run. When `smoke` is true, `smoke_overrides` are applied below `overrides`, and then
        empty.

    Raises:
        ConfigError: names the key, what was expected, and the file (or "command line").
    """
    file = user_path(path)
    if not file.is_file():
        file = find_config(str(path)) or file
    return _finish(_read(file), _parse(overrides), "command line")


def config_of(text: str, where: str) -> RunConfig:
    """The config that `to_yaml` has written; `where` names it in messages."""
    values: Any = OmegaConf.to_container(OmegaConf.create(text))
    return _finish(Tree(spelled_out(values), where), (), where)


def with_overrides(
    config: RunConfig, overrides: Mapping[str, Any], source: str = "overrides"
) -> RunConfig:
    """The same run with other values, checked anew.

    Args:
        overrides: dotted key → value, which replaces the old one; a dataclass such as a ModelSpec
            serves as a section.
        source: who asks, for messages: "reference.train of glyphs.yaml".
    """
    tree = Tree(literal(plain(config)), f"config {config.name!r}")
    return _finish(
        tree, {key: literal(plain(value)) for key, value in overrides.items()}.items(), source
    )


def with_method(config: RunConfig, section: Mapping[str, Any], source: str) -> RunConfig:
    """The same run with another method; nothing else is checked anew, as a study asks for many of
    them.

    Args:
        section: a whole `method:` section, such as one of `compare.methods`.
        source: the section's dotted key, for messages.
    """
    return replace(
        config, method=_method(Tree({}, f"config {config.name!r}"), dict(section), source)
    )


def to_yaml(config: RunConfig) -> str:
    """A file that `load_config` reads back as an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(plain(config))))


def _finish(tree: Tree, overrides: Iterable[tuple[str, Any]], by: str) -> RunConfig:
    """Apply the overrides, below them the smoke ones if they are asked for, and build the
    config."""
    overrides = [*overrides]
    changed = _overridden(tree, overrides, by)
    raw = _resolved(changed)
    smoke, smoke_overrides = raw.get("smoke", False), raw.get("smoke_overrides")
    if not isinstance(smoke, bool):
        changed.fail("smoke", f"smoke: expected true or false, got {smoke!r}")
    if smoke and isinstance(smoke_overrides, dict) and smoke_overrides:
        check_dotted(RunConfig, smoke_overrides, "smoke_overrides", changed.fail)
        small = _overridden(
            tree, literal(smoke_overrides).items(), f"smoke_overrides of {tree.where}"
        )
        changed = _overridden(small, overrides, by)
        changed.values["smoke_overrides"] = {}
        raw = _resolved(changed)
    return _built(changed, raw)


def _overridden(tree: Tree, overrides: Iterable[tuple[str, Any]], by: str) -> Tree:
    changed = copy.deepcopy(tree)
    for key, value in sorted(
        overrides, key=lambda pair: len(split_key(pair[0]))
    ):  # sections first, else in order
        changed.set(key, value, by)
    return changed


def _resolved(tree: Tree) -> dict[str, Any]:
    """The values with their interpolations resolved, and names in the place of sections written
    out."""
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.create(tree.values), resolve=True)
    except OmegaConfBaseException as error:
        tree.fail(
            error.full_key or "",
            f"{error.full_key or 'interpolation'}: {str(error).splitlines()[0]}",
        )
    return spelled_out(raw)


def _built(tree: Tree, raw: dict[str, Any]) -> RunConfig:
    check_keys(RunConfig, raw, "", tree.fail)
    if isinstance(raw.get("dry_run"), bool):
        said = f"dry_run: expected a section, got {shown(raw['dry_run'])}"
        tree.fail("dry_run", f"{said}; a dry run is a command: steering dry-run CONFIG")
    raw = raw | {"reference": _chosen_reference(tree, raw)}
    given = {
        "task": _task(tree, raw.get("task")),
        "method": _method(tree, raw.get("method"), "method"),
    }
    config: RunConfig = typed(RunConfig, raw, "", tree.fail, given)
    for label, section in config.compare.methods.items():
        path = f"compare.methods.{label}"
        chosen = section.get("reference") if isinstance(section, dict) else None
        if chosen is not None and chosen not in config.references:
            known = nearest(str(chosen), [*config.references], keys=False)
            tree.fail(path, f"{path}.reference: no reference {chosen!r} in references; {known}")
        _method(tree, method_section(section), path)
    check_dotted(RunConfig, config.smoke_overrides, "smoke_overrides", tree.fail)
    if config.reference is not None:
        check_dotted(RunConfig, config.reference.train or {}, "reference.train", tree.fail)
    for path, message in problems(config):
        tree.fail(path, message)
    return config


def method_section(section: Any) -> Any:
    """A method of `compare.methods` without the name of its reference."""
    return (
        {key: value for key, value in section.items() if key != "reference"}
        if isinstance(section, dict)
        else section
    )


def _chosen_reference(tree: Tree, raw: dict[str, Any]) -> Any:
    """The reference's section; where it is no more than the name of one of `references`, that
    one."""
    section, named = raw.get("reference"), raw.get("references")
    if not isinstance(named, dict):
        return section
    for label, one in named.items():
        if not isinstance(one, dict):
            tree.fail(
                f"references.{label}", f"references.{label}: expected a section such as reference:"
            )
        typed(ReferenceConfig, one, f"references.{label}", tree.fail)
        check_dotted(RunConfig, one.get("train") or {}, f"references.{label}.train", tree.fail)
    if isinstance(section, dict) and section.keys() == {"name"} and section["name"] in named:
        return {"label": section["name"], **named[section["name"]]}
    return section


def _task(tree: Tree, section: Any) -> Any:
    name = _name(tree, section, "task")
    try:
        options = find_task(name).Options
    except SteeringError as error:
        tree.fail("task.name", str(error))
    return typed(options, section, "task", tree.fail)


def _method(tree: Tree, section: Any, path: str) -> MethodConfig:
    name = _name(tree, section, path)
    try:
        entry = find_method(name)
    except SteeringError as error:
        known = f"{path}.name: no method {name!r}; {nearest(name, [*registered()], keys=False)}"
        tree.fail(
            f"{path}.name",
            str(error).replace("method.name", f"{path}.name", 1) if ":" in name else known,
        )
    options = {key: value for key, value in section.items() if key not in ("name", "select")}
    own = {option.name for option in fields(entry.options)}
    for key in (key for key in options if key not in own):
        others = [
            other
            for other, found in registered().items()
            if key in {f.name for f in fields(found.options)}
        ]
        if others:
            tree.fail(
                f"{path}.{key}", f"{path}.{key} is a key of {', '.join(others)}, not of {name}"
            )
    given = {"name": name, "options": typed(entry.options, options, path, tree.fail)}
    select = {key: section[key] for key in ("select",) if key in section}
    found: MethodConfig = typed(MethodConfig, select, path, tree.fail, given)
    return found


def _name(tree: Tree, section: Any, path: str) -> str:
    """The `name` of a section that chooses a plug-in."""
    name = section.get("name") if isinstance(section, dict) else None
    if isinstance(section, bool | int | float):  # such as `method: no`
        tree.fail(
            path, f"{path}: expected a section or a name, got {shown(section)}{quote_it(section)}"
        )
    if not isinstance(name, str) or name == MISSING:
        got = (
            " is missing; expected str"
            if name in (None, MISSING)
            else f": expected str, got {name!r}{quote_it(name)}"
        )
        tree.fail(f"{path}.name", f"{path}.name{got}")
    return name


def _read(path: Path, above: tuple[Path, ...] = ()) -> Tree:
    """The file's values over those of its `base:` file, interpolations unresolved."""
    own = spelled_out(read_sections(path))
    base = own.pop("base", None)
    where = packaged_name(path) or str(path)
    if base is None:
        return Tree(own, where)
    if not isinstance(base, str) or path.resolve() in above:
        raise ConfigError(
            f"{where}: base: expected another config file, relative to this one, "
            f"or one that comes with the package, got {base!r}"
        )
    file = path.parent / user_path(base)
    if not file.is_file():
        file = find_config(base) or file
    return Tree(merged(_read(file, (*above, path.resolve())).values, own, ""), where)


def _parse(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() == part != "" for part in key.split(".")):
            raise ConfigError(
                f"command line: {text!r} is no override; write key=value, such as train.batch_size=64"
            )
        yield key, read_value(value, key)
