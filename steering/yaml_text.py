"""YAML as text: a config file, and the value of a `key=value`. Every mistake is a `ConfigError`
that says where it is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steering.errors import ConfigError
from steering.packaged import config_hint

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")


def read_sections(path: Path) -> dict[Any, Any]:
    """The content of a file that holds a mapping, interpolations unresolved."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if odd := _odd_number(text):
            raise ConfigError(f"{path}, line {odd[0]}: {odd[1]}")
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except FileNotFoundError as error:
        hint = config_hint(str(path))
        raise ConfigError(f"cannot read the config {path}: {error.strerror}; {hint}") from error
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected sections such as 'task:', got a list or a single value"
        )
    return values


def read_value(text: str, key: str) -> Any:
    """The value that was given for a key on the command line."""
    try:
        if odd := _odd_number(text):
            raise ConfigError(f"command line: {key}: {odd[1]}")
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"command line: {key}: cannot read the value {text!r}; quote it as in YAML"
        ) from error


def _odd_number(text: str) -> tuple[int, str] | None:
    """The first bare number of a YAML text that is not the one it looks like: its line, from 1, and
    what to write instead.

    YAML 1.1 reads 0123 as octal and 12:30 as minutes and seconds.

    Raises:
        yaml.YAMLError: not valid YAML.
    """
    for node in _scalars(yaml.compose(text, Loader=_LOADER)):
        kind = node.tag.rpartition(":")[2]
        odd = (kind == "int" and not _PLAIN_INT.fullmatch(node.value)) or ":" in node.value
        if node.style or kind not in ("int", "float") or not odd:  # a plain scalar has no style
            continue
        value, line = yaml.safe_load(node.value), node.start_mark.line + 1
        base = "base 60" if ":" in node.value else "octal"
        plain = node.value.replace("_", "").lstrip("+-").lstrip("0") or "0"
        number = f"write {plain}, or " if base == "octal" else ""
        return line, f"{node.value} is {base} in YAML, {value}; {number}quote it: '{node.value}'"
    return None


def _scalars(node: Any) -> Iterator[Any]:
    """All scalar nodes, keys included; each alias once."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield node
        elif isinstance(node, yaml.MappingNode):
            todo += [part for pair in reversed(node.value) for part in reversed(pair)]
        else:
            todo += reversed(node.value)
