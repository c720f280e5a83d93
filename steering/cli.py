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
from collections.abc import Callable, Sequence
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
    words: tuple[tuple[str, str], ...] = ()
    """Words before the config: name in the help, and what it is; the function's first arguments."""
    flags: tuple[tuple[str, str], ...] = ()
    """Switches: name, and what it does; keyword arguments of the function."""


_EXAMPLE = "configs/clip/glyphs.yaml"
_COMMANDS = {
    "train": _Command(
        "train the target of a config",
        "steering.commands.single:train",
        f"""  steering train {_EXAMPLE} smoke=true
  steering train {_EXAMPLE} method=drrho method.tau=0.05 seed=1
  torchrun --nproc-per-node 2 -m steering train {_EXAMPLE} smoke=true""",
    ),
    "compare": _Command(
        "train and compare the config's methods and seeds; a finished run is not trained again",
        "steering.commands.studies:compare",
        f"""  steering compare {_EXAMPLE} smoke=true
  steering compare {_EXAMPLE} 'compare.seeds=[0, 1, 2]'""",
    ),
    "evaluate": _Command(
        "evaluate the target of a config: given weights, or those of its finished run",
        "steering.commands.single:evaluate",
        f"""  steering train {_EXAMPLE} smoke=true
  steering evaluate {_EXAMPLE} smoke=true""",
    ),
    "cache": _Command(
        "compute the reference's outputs on the training data and keep them",
        "steering.commands.single:cache",
        f"  steering cache {_EXAMPLE} smoke=true\n  steering cache {_EXAMPLE} --estimate",
        flags=(("estimate", "only say how many bytes and seconds it will take"),),
    ),
    "study": _Command(
        "do the runs that a study asks for, and write its report; a finished run is not done again",
        "steering.commands.studies:study",
        f"""  steering study compare {_EXAMPLE} smoke=true
  steering study my_study.py:sweep {_EXAMPLE} smoke=true studies.sweep.points=5""",
        words=(("NAME", "a study: compare, an installed one, or path/to/file.py:name"),),
    ),
}


_WITHOUT_CONFIG = {
    "methods": "every method and the tasks that it fits, or the keys of one",
    "benchmark": "time and memory of the contrastive losses here",
    "report": "draw the studies of a folder again, from the records of their runs alone",
    "runs": "list the runs below a folder",
}
_HOME = {
    "report": "studies",
    "runs": "studies",
}  # the module of commands/ that has it; of others it has their name
_KNOWN = (*_COMMANDS, *_WITHOUT_CONFIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises.

    Args:
        argv: the words after `steering`; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in _WITHOUT_CONFIG:
        return _told(lambda: _without_config(words[0], words[1:]))
    try:
        with contextlib.nullcontext() if _first() else contextlib.redirect_stderr(io.StringIO()):
            arguments = _parsed(argv)
    except SystemExit as stop:  # argparse has printed the help or the mistake
        return stop.code if isinstance(stop.code, int) else 2
    return _told(lambda: _execute(arguments))


def _told(act: Callable[[], object]) -> int:
    """Do something and return the exit code; what went wrong is one line, but for a bug."""
    try:
        found = act()
    except SystemExit as stop:  # argparse of a command without a config
        return stop.code if isinstance(stop.code, int) else 2
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
    return found if isinstance(found, int) else 0


def _without_config(command: str, words: list[str]) -> int:
    """The commands that take no config: their modules read their own options."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    module = importlib.import_module(f"steering.commands.{_HOME.get(command, command)}")
    return module.main([command, *words] if command in _HOME else words)


def _execute(arguments: argparse.Namespace) -> None:
    """Imports late, so that --help and a usage error need no torch."""
    # An idle thread that spins for long takes the core from whoever else is on the machine, and one
    # that sleeps at once wakes too late (docs/log.md, "Threads that spin"). OpenMP reads these when
    # torch loads it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from steering.config import load_config

    run = load_config(arguments.config, arguments.overrides)
    command = _COMMANDS[arguments.command]
    module, _, function = command.function.partition(":")
    first = [getattr(arguments, name) for name, _ in command.words]
    switched = {name: True for name, _ in command.flags if getattr(arguments, name)}
    getattr(importlib.import_module(module), function)(*first, run, **switched)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Sub-command, its words and flags, config file and overrides."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in _KNOWN:
        near = difflib.get_close_matches(words[0], _KNOWN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(_KNOWN)}"
        parser.error(f"argument COMMAND: invalid choice: {words[0]!r}; {hint}")
    if (
        words and words[0] in _COMMANDS
    ):  # argparse takes no flag between positional words, and people write them anywhere
        flags = [
            word
            for word in words[1:]
            if word in {f"--{flag}" for flag, _ in _COMMANDS[words[0]].flags}
        ]
        words = [words[0], *flags, *(word for word in words[1:] if word not in flags)]
    arguments, dashed = parser.parse_known_args(words)
    if dashed:
        hint = "overrides have no dashes" if "=" in dashed[0] else _only_help(arguments.command)
        parser.error(
            f"unknown option {dashed[0]!r}; {hint}: steering {arguments.command} CONFIG.yaml key=value ..."
        )
    for word in arguments.overrides:
        if "=" not in word.lstrip("="):
            parser.error(
                f"{word!r} is no override; write key=value without spaces, such as train.batch_size=64"
            )
    return arguments


def _only_help(command: str) -> str:
    flags = [f"--{flag}" for flag, _ in _COMMANDS[command].flags]
    return (
        f"the options are {', '.join(flags)} and --help" if flags else "the only option is --help"
    )


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
        for word, meaning in command.words:
            sub.add_argument(word, help=meaning)
        for flag, meaning in command.flags:
            sub.add_argument(f"--{flag}", action="store_true", help=meaning)
        sub.add_argument("config", metavar="CONFIG.yaml", help="the run's config file")
        sub.add_argument(
            "overrides",
            metavar="key=value",
            nargs="*",
            default=[],
            help="override of a config value, dotted: a.b=c",
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
    """Under torchrun leave the text where its summary shows it: the rank that failed may be one
    that stays quiet."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": details}}))
