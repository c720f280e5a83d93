"""The sub-commands of `steering`: what each says in its help, and the function that does it.

Nothing here imports what the commands need, so that help, completion and a usage error come at
once.
"""

from __future__ import annotations

from dataclasses import dataclass

EXAMPLE = "configs/clip/glyphs.yaml"


@dataclass(frozen=True)
class Command:
    """A sub-command that takes a config."""

    summary: str
    function: str
    """MODULE:NAME, called with the words below, then the RunConfig."""
    example: str
    words: tuple[tuple[str, str], ...] = ()
    """Words before the config: name in the help, and what it is; the function's first arguments."""
    flags: tuple[tuple[str, str], ...] = ()
    """Switches: name, and what it does; keyword arguments of the function."""


@dataclass(frozen=True)
class Plain:
    """A sub-command without a config, whose module reads its own words."""

    summary: str
    function: str
    """MODULE:NAME, called with the words behind the command."""


COMMANDS = {
    "train": Command(
        "train the target of a config",
        "steering.commands.single:train",
        f"""  steering train {EXAMPLE} smoke=true
  steering train {EXAMPLE} method=drrho method.tau=0.05 seed=1
  torchrun --nproc-per-node 2 -m steering train {EXAMPLE} smoke=true""",
    ),
    "dry-run": Command(
        "say what a training will take, without data, weights or a GPU: shapes, FLOPs, bytes, hours",
        "steering.commands.dry_run:dry_run",
        f"""  steering dry-run {EXAMPLE}
  steering dry-run {EXAMPLE} dry_run.processes=8 dry_run.examples=1000000 train.precision=bf16
  steering dry-run {EXAMPLE} --json""",
        flags=(("json", "print one JSON object in the place of the table"),),
    ),
    "compare": Command(
        "train and compare the config's methods and seeds; a finished run is not trained again",
        "steering.commands.studies:compare",
        f"""  steering compare {EXAMPLE} smoke=true
  steering compare {EXAMPLE} 'compare.seeds=[0, 1, 2]'""",
    ),
    "evaluate": Command(
        "evaluate the target of a config: given weights, or those of its finished run",
        "steering.commands.single:evaluate",
        f"""  steering train {EXAMPLE} smoke=true
  steering evaluate {EXAMPLE} smoke=true""",
    ),
    "cache": Command(
        "compute the reference's outputs on the training data and keep them",
        "steering.commands.single:cache",
        f"  steering cache {EXAMPLE} smoke=true\n  steering cache {EXAMPLE} --estimate",
        flags=(("estimate", "only say how many bytes and seconds it will take"),),
    ),
    "study": Command(
        "do the runs that a study asks for, and write its report; a finished run is not done again",
        "steering.commands.studies:study",
        f"""  steering study compare {EXAMPLE} smoke=true
  steering study my_study.py:sweep {EXAMPLE} smoke=true studies.sweep.points=5""",
        words=(("NAME", "a study: compare, an installed one, or path/to/file.py:name"),),
    ),
}

PLAIN = {
    "init": Plain(
        "write a commented config of your own, or a task with its test",
        "steering.commands.init:main",
    ),
    "configs": Plain(
        "list the configs that come with the package", "steering.commands.configs:main"
    ),
    "methods": Plain(
        "every method and the tasks that it fits, or the keys of one",
        "steering.commands.methods:main",
    ),
    "report": Plain(
        "draw the studies of a folder again, from the records of their runs alone",
        "steering.commands.studies:report",
    ),
    "runs": Plain("list the runs below a folder", "steering.commands.studies:runs"),
    "export": Plain(
        "write a finished run's target as a state dict that its own library loads",
        "steering.commands.export:main",
    ),
    "benchmark": Plain(
        "time and memory of the contrastive losses here", "steering.commands.benchmark:main"
    ),
    "doctor": Plain(
        "versions, extras, devices, threads and folders of this installation",
        "steering.commands.doctor:main",
    ),
    "completion": Plain(
        "completion of these words for bash or zsh", "steering.commands.completion:main"
    ),
}

NAMES = (*COMMANDS, *PLAIN)
