"""What the optional packages are, by extra, and the one line that names the extra that is missing.

The core of the package needs few others. A task's libraries come with an extra,
`pip install "model-steering[vision]"`, and are imported where they are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import ModuleType

from steering.errors import SteeringError

DISTRIBUTION = "model-steering"
_COLLECTIONS = ("all", "dev")  # extras that only name other extras, and the tools of our own tests
# Modules whose package has another name.
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "open_clip": "open_clip_torch"}
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?([^;]*)(?:;.*extra == ['\"]([\w-]+)['\"])?")


class MissingExtraError(SteeringError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""


def require(extra: str, module: str, by: str) -> ModuleType:
    """Import an optional module where it is used.

    Args:
        extra: that brings it, such as "vision".
        module: dotted name, such as "torchvision.models".
        by: who needs it, at the start of the message: "task.data.source: digits".

    Raises:
        MissingExtraError: it, or something that it imports, is not installed.
    """
    try:
        with explained(by, extra):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(_message(by, extra, missing), name=missing) from error


def package_folder(extra: str, module: str, by: str) -> Path:
    """Where an optional package is, without importing it: for a file that it brings. As `require`
    otherwise."""
    with explained(by, extra):
        spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(_message(by, extra, module), name=module)
    return Path(next(iter(spec.submodule_search_locations)))


@contextmanager
def explained(by: str, prefer: str | None = None) -> Iterator[None]:
    """Turn the ModuleNotFoundError of an optional package into one that names its extra.

    Args:
        by: who needs it, at the start of the message.
        prefer: the extra to name where several bring the package.

    Raises:
        MissingExtraError: in place of a ModuleNotFoundError; one of a package that no extra brings
            passes as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "", prefer)
        if extra is None:
            raise
        raise MissingExtraError(_message(by, extra, error.name or ""), name=error.name) from error


def _message(by: str, extra: str, module: str) -> str:
    install = f'pip install "{DISTRIBUTION}[{extra}]"'
    return (
        f'{by} needs the extra "{extra}": {install} ({module.partition(".")[0]} is not installed)'
    )


def extra_of(module: str, prefer: str | None = None) -> str | None:
    """The extra that brings a module, the preferred one where several do; None if none does."""
    top = module.partition(".")[0]
    package = _normal(_PACKAGES.get(top, top))
    found = [extra for extra, packages in extras().items() if package in packages]
    if prefer in found:
        return prefer
    return found[0] if found else None


def extras() -> dict[str, dict[str, str]]:
    """Extra -> its packages -> the versions that it takes, such as "torchvision" -> ">=0.26,<0.27".

    Empty where neither a checkout nor an installation says what they are.
    """
    return {name: packages for name, packages in _packages().items() if name}


def core() -> dict[str, str]:
    """What every installation has: package -> versions."""
    return _packages().get("", {})


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _packages() -> dict[str, dict[str, str]]:
    """Extra -> packages -> versions; the core under "". One place says what they are."""
    found: dict[str, dict[str, str]] = {}
    for text in _requirements():
        match = _REQUIREMENT.match(text)
        if match and match[3] not in _COLLECTIONS:
            found.setdefault(match[3] or "", {})[_normal(match[1])] = match[2].strip()
    return found


def _requirements() -> Iterable[str]:
    """As the metadata of a package has them: 'timm>=1.0; extra == "vision"'.

    From pyproject.toml in a checkout, whose metadata may be older, else of what is installed.
    """
    file = Path(__file__).parents[1] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        optional = project["optional-dependencies"].items()
        extra = [f'{one}; extra == "{name}"' for name, many in optional for one in many]
        return [*project["dependencies"], *extra]
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
