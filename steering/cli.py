"""The command line: a sub-command, a config, and `key=value` overrides.

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
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steering.commands.table import COMMANDS, EXAMPLE, NAMES, PLAIN
from steering.errors import ConfigError, SteeringError
from steering.extras import MissingExtraError, explained


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises.

    Args:
        argv: the words after `steering`; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with explained(words[0] if words else "steering"):
            found = _call(words)
    except SystemExit as stop:  # argparse has printed the help or the mistake
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


def _call(words: list[str]) -> object:
    """Do what the words say."""
    if words and words[0] in PLAIN:
        _be_passive()
        return _function(PLAIN[words[0]].function)(words[1:])
    with contextlib.nullcontext() if _first() else contextlib.redirect_stderr(io.StringIO()):
        arguments = _parsed(words)
    _be_passive()
    from steering.config import load_config  # here, as it loads torch, and --help needs none
    from steering.console import WORDS

    run = load_config(arguments.config, arguments.overrides)
    spoken = WORDS.set(shlex.join(["steering", *words]))
    command = COMMANDS[arguments.command]
    first = [getattr(arguments, name) for name, _ in command.words]
    switched = {name: True for name, _ in command.flags if getattr(arguments, name)}
    try:
        return _function(command.function)(*first, run, **switched)
    except MissingExtraError as error:  # found where it is used, which knows no config
        raise SteeringError(f"{arguments.config}: {error}") from error
    finally:
        WORDS.reset(spoken)


def _function(where: str) -> Callable[..., object]:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def _be_passive() -> None:
    """How idle threads wait; OpenMP reads it when torch loads it.

    One that spins for long takes the core from whoever else is on the machine, and one that sleeps
    at once wakes too late (docs/log.md, "Threads that spin").
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Sub-command, its words and flags, config and overrides."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in NAMES:
        near = difflib.get_close_matches(words[0], NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(NAMES)}"
        parser.error(f"argument COMMAND: invalid choice: {words[0]!r}; {hint}")
    if not words:
        parser.error("the following arguments are required: COMMAND; `steering --help` lists them")
    if words[0] in COMMANDS:
        # argparse takes no flag between positional words, and people write them anywhere.
        flags = {f"--{flag}" for flag, _ in COMMANDS[words[0]].flags}
        words[1:] = sorted(words[1:], key=lambda word: word not in flags)
    arguments, dashed = parser.parse_known_args(words)
    if dashed:
        parser.error(f"unknown option {dashed[0]!r}; {_instead(dashed[0], arguments)}")
    for word in arguments.overrides:
        if "=" not in word.lstrip("="):
            parser.error(
                f"{word!r} is no override; write key=value without spaces, such as train.batch_size=64"
            )
    return arguments


def _instead(option: str, arguments: argparse.Namespace) -> str:
    """What to write in the place of an option that is none."""
    command = COMMANDS[arguments.command]
    words = [name for name, _ in command.words]
    usage = " ".join(["steering", arguments.command, *words, "CONFIG key=value ..."])
    if (other := option.lstrip("-").replace("_", "-")) in COMMANDS:
        return f"{other} is a command: steering {other} CONFIG key=value ..."
    if arguments.command == "study":
        key, _, value = option.lstrip("-").partition("=")
        name = getattr(arguments, words[0]).rpartition(":")[2]
        place = "compare" if name == "compare" else f"studies.{name}"
        hint = f"a study's options are keys: {place}.{key.replace('-', '_')}={value or 'VALUE'}"
    elif "=" in option:
        hint = "overrides have no dashes"
    elif command.flags:
        flags = ", ".join(f"--{flag}" for flag, _ in command.flags)
        hint = f"the options are {flags} and --help"
    else:
        hint = "the only option is --help"
    return f"{hint}: {usage}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steering",
        description="Train a target model under the guidance of a frozen, possibly weaker, reference model.",
        epilog=f"example:\n  steering compare {EXAMPLE} smoke=true",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"steering {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
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
        sub.add_argument(
            "config",
            metavar="CONFIG.yaml",
            help="the run's config file, or the name of one of `steering configs`",
        )
        sub.add_argument(
            "overrides",
            metavar="key=value",
            nargs="*",
            default=[],
            help="override of a config value, dotted: a.b=c",
        )
    for name, plain in PLAIN.items():
        commands.add_parser(name, help=f"{plain.summary}: `steering {name} --help`")
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
