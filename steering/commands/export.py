"""`steering export`: a finished run's target as a file that its own library loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from steering.console import CONSOLE
from steering.errors import ConfigError, SteeringError
from steering.finished import load_run
from steering.reading import user_path

SAFE, PICKLED = (".safetensors",), (".pt", ".pth", ".bin")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The words behind `steering export`."""
    parser = argparse.ArgumentParser(
        prog="steering export",
        description="Write the target of a finished run as a bare state dict, under the names of its own library: for CLIP "
        "one that open_clip loads, with the temperature that the run has learned.",
        epilog="example:\n  steering export runs/glyphs/drrho-seed0 target.safetensors\n"
        "  steering export runs/glyphs/drrho-seed0 target.pt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("file", metavar="FILE", help="NAME.safetensors, or NAME.pt of torch.save")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Write the file.

    Raises:
        ConfigError: a suffix that says no format.
        SteeringError: no finished run there, or the file cannot be written.
    """
    arguments = parsed(words)
    file = user_path(arguments.file)
    if file.suffix not in (*SAFE, *PICKLED):
        known = ", ".join([*SAFE, *PICKLED])
        raise ConfigError(f"FILE: expected a name that ends in one of {known}, got {file.name!r}")
    if not file.absolute().parent.is_dir():
        raise SteeringError(f"{file}: there is no folder {file.parent}")
    export(user_path(arguments.run), file)
    return 0


def export(run: Path, file: Path) -> None:
    """Write the weights of the finished run in a folder to a file; its suffix says the format."""
    import torch
    from safetensors.torch import save_file

    from steering.storage import write_atomically

    found = load_run(run)
    weights = found.weights
    try:
        if file.suffix in SAFE:
            write_atomically(file, lambda path: save_file(weights, path))
        else:
            write_atomically(file, lambda path: torch.save(weights, path))
    except OSError as error:
        raise SteeringError(f"{file}: cannot be written: {error.strerror}") from error
    name = found.record.config()["target"]["name"]
    numbers = sum(value.numel() for value in weights.values())
    CONSOLE.print(f"{file}: {len(weights)} tensors, {numbers:,} numbers of {name}", soft_wrap=True)
