"""`steering configs`: the configs that come with the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from steering.console import CONSOLE, in_columns, print_lines
from steering.errors import ConfigError
from steering.packaged import config_hint, find_config, packaged_configs, packaged_folder


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The words behind `steering configs`."""
    parser = argparse.ArgumentParser(
        prog="steering configs",
        description="List the configs that come with the package: their names, which every command takes in the place of "
        "a file; or, with NAME, print one, to be changed and kept as a file of your own.",
        epilog="examples:\n  steering configs\n  steering configs clip/glyphs > my.yaml\n"
        "  steering compare clip/glyphs smoke=true",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one: its file")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Print the list, or the file of one config.

    Raises:
        ConfigError: no config of that name.
    """
    name = parsed(words).name
    if name is None:
        _list()
        return 0
    file = find_config(name)
    if file is None:
        raise ConfigError(f"no config {name!r} in the package; {config_hint(name)}")
    print(file.read_text(encoding="utf-8"), end="")
    return 0


def _list() -> None:
    found = packaged_configs()
    if not found:
        raise ConfigError("this installation has no configs")
    lines = [["config", "task", "takes", "what it is"]]
    lines += [[one.name, one.task, one.takes or "–", one.about] for one in found]
    print_lines(CONSOLE, in_columns(lines), clip=True)
    folder = packaged_folder("configs")
    CONSOLE.print(f"in {folder}; `steering configs NAME` prints one", soft_wrap=True)
