"""The configs and examples that come with the package, from any folder.

A checkout has them in `configs/` and `examples/` beside the package, an installation in
`steering_configs/` and `steering_examples/`. A file of the user's own always wins.
"""

from __future__ import annotations

import difflib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

_ROOT = Path(__file__).parents[1]
_FOLDERS = ("configs", "examples")


@dataclass(frozen=True)
class PackagedConfig:
    """One of the configs that come with the package.

    Attributes:
        name: what to type, such as "clip/glyphs".
        file: where it is.
    """

    name: str
    file: Path

    @property
    def about(self) -> str:
        """The first sentence of the file's comment."""
        lines = []
        for line in self._comment():
            if not line:
                break
            lines.append(line)
        sentence, _, _ = " ".join(lines).partition(". ")
        return sentence.rstrip(".")

    @property
    def takes(self) -> str | None:
        """How long it takes, from a line "Takes ..." of that comment; None if it does not say."""
        found = [line for line in self._comment() if line.startswith("Takes ")]
        return found[0].removeprefix("Takes ").rstrip(".") if found else None

    @property
    def task(self) -> str:
        """The name of its task, without the file of one from outside the package."""
        values = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        name = values.get("task", {}).get("name")
        if name is None:  # its base says it
            return PackagedConfig("", self.file.parent / values["base"]).task
        return str(name).rpartition(":")[2]

    def _comment(self) -> list[str]:
        """The comment at the start of the file, without its marks."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return [line.strip("# ") for line in itertools.takewhile(_is_comment, lines)]


def packaged_folder(name: str) -> Path | None:
    """Where the packaged "configs" or "examples" are; None if this installation has none."""
    for folder in (_ROOT / f"steering_{name}", _ROOT / name):
        if folder.is_dir():
            return folder
    return None


def packaged_file(path: Path) -> Path:
    """The packaged file for a path such as configs/clip/models/glyph-target.json, where there is no
    file of that name here; else the path as it is."""
    if path.is_absolute() or not path.parts or path.parts[0] not in _FOLDERS or path.exists():
        return path
    folder = packaged_folder(path.parts[0])
    found = path if folder is None else Path(os.path.normpath(folder.joinpath(*path.parts[1:])))
    # A path with ".." must not lead out of the folder.
    return found if folder is not None and folder in found.parents and found.is_file() else path


def packaged_configs() -> list[PackagedConfig]:
    """All of them, by name."""
    folder = packaged_folder("configs")
    if folder is None:
        return []
    files = sorted(folder.glob("*/*.yaml"))
    return [
        PackagedConfig(file.relative_to(folder).with_suffix("").as_posix(), file) for file in files
    ]


def find_config(name: str) -> Path | None:
    """The packaged config of a name such as "clip/glyphs" or "clip/glyphs.yaml"; None if there is
    none."""
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    return next((one.file for one in packaged_configs() if one.name == wanted), None)


def packaged_name(file: Path) -> str | None:
    """The name of a packaged config that the working folder has no file for; None for any other
    file."""
    if not file.is_absolute():
        return None
    return next((one.name for one in packaged_configs() if one.file == file), None)


def config_hint(name: str) -> str:
    """What to write instead of a name that is no config: the nearest ones, else where they are
    listed."""
    known = [one.name for one in packaged_configs()]
    wanted = name.removesuffix(".yaml")
    last = {one: one.rpartition("/")[2] for one in known}
    near = [one for one in known if last[one] == wanted.rpartition("/")[2]]
    near += [
        one for one in difflib.get_close_matches(wanted, known, n=2, cutoff=0.8) if one not in near
    ]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return "`steering configs` lists those that come with the package"


def _is_comment(line: str) -> bool:
    return line.startswith("#")
