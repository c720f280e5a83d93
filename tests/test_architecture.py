"""The arrows between the rooms run one way: docs/contributing.md, "One way down"."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a room may never import, directly.
FORBIDDEN = {
    "steering": ["tasks"],
    "steering/dro": [
        f"steering.{room}" for room in ("contrastive", "methods", "reference", "training", "protocols", "config")
    ],
    "steering/contrastive": [
        f"steering.{room}" for room in ("methods", "reference", "training", "protocols", "config")
    ],
    "steering/methods": [f"steering.{room}" for room in ("reference", "training", "protocols", "config", "task")],
    "steering/reference": [f"steering.{room}" for room in ("methods", "training", "protocols", "config")],
    "steering/training": ["steering.protocols", "steering.analysis", "steering.config", "omegaconf"],
    "tasks": ["steering.protocols", "steering.config", "steering.cli", "steering.dro", "steering.methods"],
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs; what stands under `if TYPE_CHECKING` does not count."""
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


@pytest.mark.parametrize("package", ["steering", "tasks"])
def test_modules_fit_on_their_pages(package):
    longest = max((len(path.read_text(encoding="utf-8").splitlines()), path) for path in (ROOT / package).rglob("*.py"))
    assert longest[0] <= 300, longest
