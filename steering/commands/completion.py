"""`steering completion`: the shell's completion of commands, packaged configs and flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from steering.commands.table import COMMANDS, NAMES
from steering.packaged import packaged_configs

# Where nothing of ours fits, `-o default` completes the names of files.
_BASH = """\
_steering() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" known=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        known="{commands}"
    else
        case "$command" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _steering steering
"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def script(shell: str) -> str:
    """What a shell reads to complete our words.

    Args:
        shell: "bash" or "zsh".
    """
    configs = " ".join(one.name for one in packaged_configs())
    cases = [
        f'            {name}) known="{configs} {" ".join(f"--{flag}" for flag, _ in command.flags)}" ;;'
        for name, command in COMMANDS.items()
    ]
    cases.append(f'            configs) known="{configs}" ;;')
    bash = _BASH.format(commands=" ".join([*NAMES, "--help", "--version"]), cases="\n".join(cases))
    return (_ZSH if shell == "zsh" else "") + bash


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The words behind `steering completion`."""
    parser = argparse.ArgumentParser(
        prog="steering completion",
        description="Print what a shell needs to complete commands, flags and the names of packaged configs.",
        epilog='examples:\n  eval "$(steering completion bash)"     # in ~/.bashrc\n'
        '  eval "$(steering completion zsh)"      # in ~/.zshrc',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=["bash", "zsh"])
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """The command."""
    print(script(parsed(words).shell), end="")
    return 0
