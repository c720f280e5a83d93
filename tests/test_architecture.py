"""The arrows between the rooms run one way: docs/contributing.md, "One way down"."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a room may never import, directly. Later rooms stand higher.
ABOVE_RUNS = ["steering.studies", "steering.commands", "steering.cli"]
ABOVE_TRAINING = [*ABOVE_RUNS, "steering.analysis", "steering.config", "omegaconf"]
# The record side of `runs` stands near the ground; the other modules of that room stand above the
# trainer.
RECORDS = ("record", "store", "sources")
DOERS = [
    f"steering.runs.{path.stem}"
    for path in sorted((ROOT / "steering" / "runs").glob("*.py"))
    if path.stem not in (*RECORDS, "__init__")
]
FORBIDDEN = {
    "steering": ["tasks"],
    "steering/dro": [
        *ABOVE_TRAINING,
        *DOERS,
        *(
            f"steering.{room}"
            for room in ("contrastive", "methods", "reference", "outputs", "training", "runs")
        ),
    ],
    "steering/activation": [
        *ABOVE_TRAINING,
        *DOERS,
        *(
            f"steering.{room}"
            for room in (
                *("dro", "contrastive", "methods", "reference", "outputs", "training", "runs"),
                "task",
            )
        ),
    ],
    "steering/contrastive": [
        *ABOVE_TRAINING,
        *DOERS,
        *(f"steering.{room}" for room in ("methods", "reference", "outputs", "training", "runs")),
    ],
    "steering/methods": [
        *ABOVE_TRAINING,
        *DOERS,
        *(f"steering.{room}" for room in ("reference", "outputs", "training", "task", "runs")),
    ],
    "steering/reference": [
        *ABOVE_TRAINING,
        *DOERS,
        "steering.methods",
        "steering.training",
        "steering.outputs",
    ],
    "steering/outputs": [
        *ABOVE_TRAINING,
        *DOERS,
        "steering.methods",
        "steering.training",
        "steering.reference",
    ],
    "steering/training": [*ABOVE_TRAINING, *DOERS],
    "steering/population": [
        *ABOVE_TRAINING,
        *DOERS,
        "steering.methods",
        "steering.outputs",
        "steering.task",
        "steering.training",
    ],
    "steering/analysis": [
        *ABOVE_RUNS,
        *DOERS,
        "torch",
        "steering.task",
        "steering.training",
        "steering.config",
        "tasks",
    ],
    "steering/runs": ABOVE_RUNS,
    "steering/studies": ["steering.commands", "steering.cli"],
    "tasks": [
        *ABOVE_RUNS,
        *DOERS,
        "steering.config",
        "steering.dro",
        "steering.methods",
        "steering.outputs",
        "steering.training",
    ],
}
NEEDS_NO_TORCH = [
    "runs/record.py",
    "runs/store.py",
    "runs/sources.py",
    "studies/audit.py",
    "studies/calibration.py",
    "studies/compare.py",
    "studies/gallery.py",
    "studies/plane.py",
    "studies/population.py",
    "studies/population_arms.py",
    "studies/population_asks.py",
    "studies/scaling.py",
    "studies/activation.py",
    "studies/self_improvement/options.py",
    "studies/self_improvement/tables.py",
    "studies/tuned.py",
    "studies/tuned_page.py",
    "studies/tuned_ranges.py",
    "studies/tuned_shares.py",
    "studies/contestants.py",
    "commands/studies.py",
]


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs; what stands under `if TYPE_CHECKING` does not
    count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_run_downwards(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        for banned in FORBIDDEN[room]
        if name == banned or name.startswith(f"{banned}.")
    }
    assert not wrong


@pytest.mark.parametrize("file", NEEDS_NO_TORCH)
def test_the_record_side_needs_no_torch(file):
    """At the top of a module; a study imports what it needs for `wanted` there.
    tests/runs/test_record.py tries it."""
    tree = ast.parse((ROOT / "steering" / file).read_text(encoding="utf-8"))
    top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    top |= {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    bad = {
        name
        for name in top
        for banned in ("torch", "steering.task", "steering.config", "steering.schema")
        if name == banned
    }
    assert not bad


@pytest.mark.parametrize("package", ["steering", "tasks"])
def test_modules_fit_on_their_pages(package):
    longest = max(
        (len(path.read_text(encoding="utf-8").splitlines()), path)
        for path in (ROOT / package).rglob("*.py")
    )
    assert longest[0] <= 300, longest
