"""`steering init`: a commented config of your own, or a task of your own with its test."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
from collections.abc import Sequence
from pathlib import Path

from steering.console import CONSOLE
from steering.errors import ConfigError, SteeringError

KINDS = ("clip", "classification", "language", "own")
_SKELETONS = Path(__file__).parent / "skeletons"
_TASK = "own_task"  # the name in the skeletons


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The words behind `steering init`."""
    parser = argparse.ArgumentParser(
        prog="steering init",
        description="Write a config with a comment for each choice; or, with own, a task in one file, its config and its "
        "test. All run as they are, but for clip, which needs your pairs. Nothing is overwritten.",
        epilog="examples:\n  steering init classification              # classification.yaml\n"
        "  steering init language my.yaml\n  steering init own waves                   # waves.py, waves.yaml, test_waves.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=KINDS, help="the task of the config, or own")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="the config's file; with own the name of the task"
    )
    return parser.parse_args(words)


def written(kind: str, name: str | None) -> dict[Path, str]:
    """File -> its text.

    Args:
        kind: one of `KINDS`.
        name: of the config's file; for "own" of the task, a Python name. None: that of the kind.

    Raises:
        ConfigError: a task cannot have that name.
    """
    if kind != "own":
        file = Path(name or kind)
        text = (_SKELETONS / f"{kind}.yaml").read_text(encoding="utf-8")
        file = file if file.suffix in (".yaml", ".yml") else file.with_name(f"{file.name}.yaml")
        return {file: text.replace("FILE", file.as_posix())}
    name = name or _TASK
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot name a task; expected small letters, digits and _, such as my_task"
        )
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(
            f"{name!r} cannot name a task: {name}.py would stand in the way of the module of that name"
        )
    title = "".join(part.capitalize() for part in name.split("_"))
    files = [f"{_TASK}.py", f"{_TASK}.yaml", f"test_{_TASK}.py"]
    texts = {file: (_SKELETONS / file).read_text(encoding="utf-8") for file in files}
    return {
        Path(file.replace(_TASK, name)): text.replace(_TASK, name).replace("OwnTask", title)
        for file, text in texts.items()
    }


def main(words: Sequence[str]) -> int:
    """Write the files and say what to do next.

    Raises:
        ConfigError: a task cannot have that name.
        SteeringError: a file is there already.
    """
    arguments = parsed(words)
    files = written(arguments.kind, arguments.name)
    for file in files:
        if file.exists():
            raise SteeringError(f"{file} is there already; give another NAME, or delete it")
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        CONSOLE.print(f"wrote {file}", soft_wrap=True)
    (config,) = (file for file in files if file.suffix != ".py")
    first = f"name your pairs in {config}, then: " if arguments.kind == "clip" else ""
    CONSOLE.print(f"next: {first}steering train {config} smoke=true", soft_wrap=True)
    return 0
