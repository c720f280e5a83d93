"""The command line: a sub-command, a config file, and `key=value` overrides.

Exit codes: 0 done, 1 failed while running, 2 wrong usage or a wrong config, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steering.errors import ConfigError, SteeringError


@dataclass(frozen=True)
class _Command:
    """What a sub-command says in its help, and the function of one RunConfig that it calls."""

    summary: str
    function: str
    example: str


_EXAMPLE = "configs/clip/glyphs.yaml"
_COMMANDS = {
    "train": _Command(
        "train the target of a config",
        "steering.protocols.single:train",
        f"""  steering train {_EXAMPLE} smoke=true
  steering train {_EXAMPLE} method=drrho method.tau=0.05 seed=1
  torchrun --nproc-per-node 2 -m steering train {_EXAMPLE} smoke=true""",
    ),
    "compare": _Command(
        "train and compare the config's methods and seeds; a finished run is not trained again",
        "steering.protocols.compare:compare",
        f"""  steering compare {_EXAMPLE} smoke=true
  steering compare {_EXAMPLE} 'compare.seeds=[0, 1, 2]'""",
    ),
    "evaluate": _Command(
        "evaluate the target of a config: given weights, or those of its finished run",
        "steering.protocols.single:evaluate",
        f"""  steering train {_EXAMPLE} smoke=true
  steering evaluate {_EXAMPLE} smoke=true""",
    ),
    "cache": _Command(
        "compute the reference's outputs on the training data and keep them",
        "steering.protocols.single:cache",
        f"  steering cache {_EXAMPLE} smoke=true",
    ),
}


_WITHOUT_CONFIG = {
    "methods": "every method and the tasks that it fits, or the keys of one",
    "benchmark": "time and memory of the contrastive losses here",
}
_KNOWN = (*_COMMANDS, *_WITHOUT_CONFIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises.

    Args:
        argv: the words after `steering`; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in _WITHOUT_CONFIG:
        return _without_config(words[0], words[1:])
    try:
        with contextlib.nullcontext() if _first() else contextlib.redirect_stderr(io.StringIO()):
            command, config, overrides = _parsed(argv)
    except SystemExit as stop:  # argparse has printed the help or the mistake
        return stop.code if isinstance(stop.code, int) else 2
    try:
        _execute(command, config, overrides)
    except KeyboardInterrupt:
        _report("steering: interrupted")
        return 130
    except SteeringError as error:
        _report(f"steering: error: {error}")
        _tell_torchrun(f"steering: error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except Exception:
        traceback.print_exc()
        _tell_torchrun(traceback.format_exc())
        return 1
    return 0


def _without_config(command: str, words: list[str]) -> int:
    """The commands that take no config: their modules read their own options."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        found = importlib.import_module(f"steering.protocols.{command}").main(words)
        return found if isinstance(found, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _report("steering: interrupted")
        return 130


def _execute(command: str, config: str, overrides: list[str]) -> None:
    """Imports late, so that --help and a usage error need no torch."""
    # An idle thread that spins for long takes the core from whoever else is on the machine, and one that sleeps at once wakes
    # too late (docs/log.md, "Threads that spin"). OpenMP reads these when torch loads it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from steering.config import load_config

    run = load_config(config, overrides)
    module, _, function = _COMMANDS[command].function.partition(":")
    getattr(importlib.import_module(module), function)(run)


def _parsed(argv: Sequence[str] | None) -> tuple[str, str, list[str]]:
    """Sub-command, config file and overrides."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in _KNOWN:
        near = difflib.get_close_matches(words[0], _KNOWN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(_KNOWN)}"
        parser.error(f"argument COMMAND: invalid choice: {words[0]!r}; {hint}")
    arguments, dashed = parser.parse_known_args(argv)
    if dashed:
        hint = "overrides have no dashes" if "=" in dashed[0] else "the only option is --help"
        parser.error(f"unknown option {dashed[0]!r}; {hint}: steering {arguments.command} CONFIG.yaml key=value ...")
    for word in arguments.overrides:
        if "=" not in word.lstrip("="):
            parser.error(f"{word!r} is no override; write key=value without spaces, such as train.batch_size=64")
    return arguments.command, arguments.config, arguments.overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steering",
        description="Train a target model under the guidance of a frozen, possibly weaker, reference model.",
        epilog=f"example:\n  steering compare {_EXAMPLE} smoke=true",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"steering {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"examples:\n{command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument("config", metavar="CONFIG.yaml", help="the run's config file")
        sub.add_argument(
            "overrides", metavar="key=value", nargs="*", default=[], help="override of a config value, dotted: a.b=c"
        )
    for name, summary in _WITHOUT_CONFIG.items():
        commands.add_parser(name, help=f"{summary}: `steering {name} --help`")
    return parser


def _version() -> str:
    try:
        return version("model-steering")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _report(message: str) -> None:
    """One line on stderr, from the first process only."""
    if _first():
        print(" ".join(message.splitlines()), file=sys.stderr)


def _first() -> bool:
    """False in a process that torchrun started beside another one that speaks for both."""
    return os.environ.get("RANK", "0") == "0"


def _tell_torchrun(text: str) -> None:
    """Under torchrun leave the text where its summary shows it: the rank that failed may be one that stays quiet."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": details}}))
