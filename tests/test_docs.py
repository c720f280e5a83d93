"""The documentation is run: its Python, its links, its commands, its names, and its table of config keys.

Three HTML comments, on the line before a fenced block, steer this file: `<!-- no-test -->` leaves a block alone,
`<!-- file: NAME -->` writes it to NAME for the blocks below it, anything else is a comment.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from steering.protocols import benchmark

import steering
import tasks
from steering import schema
from steering.cli import _parsed
from steering.config import load_config
from steering.dro.stochastic import StochasticRisk
from steering.methods import registry
from steering.risk import Units
from tasks.classification import ClassificationOptions
from tasks.clip import ClipOptions
from tasks.language import LanguageOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.is_file()]
GUIDE = ROOT / "docs" / "guide-clip.md"
FENCE = re.compile(r"^ *(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *(?P=fence)[ \t]*$", re.M | re.S)
ABOVE = re.compile(r"<!-- (?:(?P<skip>no-test)|file: (?P<file>[\w.-]+)) -->\s*\Z")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    line: int
    skipped: bool
    file: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        above = ABOVE.search(text, 0, found.start())
        yield Block(
            language=found["language"],
            body=found["body"],
            line=text.count("\n", 0, found.start()) + 1,
            skipped=above is not None and above["skip"] is not None,
            file=None if above is None else above["file"],
        )


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a reader's own with our configs and examples; what a page registers or imports is gone afterwards."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    random = torch.random.get_rng_state()
    yield tmp_path
    torch.random.set_rng_state(random)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@every_page
def test_python_blocks_run(page: Path, reader: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.file is not None:
            (reader / block.file).write_text(block.body, encoding="utf-8")
        elif block.language == "python" and not block.skipped:
            code = "\n" * block.line + textwrap.dedent(block.body)  # so that a traceback names the page's own line
            exec(compile(code, str(page), "exec"), namespace)


@every_page
def test_commands_parse(page: Path, reader: Path) -> None:
    """Every `steering ...` of a bash block is a command line we take; if its config is ours or the page's, it loads."""
    for block in blocks(page):
        if block.file is not None:
            (reader / block.file).write_text(block.body, encoding="utf-8")
        if block.language not in ("bash", "sh", "console") or block.skipped:
            continue
        for line in block.body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "steering" not in words or words[0] in ("pip", "cd", "git"):
                continue
            words = words[words.index("steering") + 1 :]
            if words == [] or words[-1] in ("--help", "--version"):
                continue
            if words[0] == "benchmark":
                benchmark.parsed(words[1:])
                continue
            if words[0] == "methods":
                assert all(word.startswith("--") or ":" in word or word in registry.registered() for word in words[1:])
                continue
            _, config, overrides = _parsed(words)
            if Path(config).is_file():
                load_config(config, overrides)


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


@every_page
def test_names_exist(page: Path) -> None:
    """`steering.a.b` in the prose can be imported, and `tests/a.py::test_b` is there."""
    for name in re.findall(r"`((?:steering|tasks)(?:\.\w+)+)`", prose(page)):
        found, parts = None, name.split(".")
        for depth in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:depth]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[depth:]:
            found = getattr(found, part)
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", prose(page)):
        assert (ROOT / file).is_file(), f"{page.name}: {file}"
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name}: {file}::{test}"


def keys(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, default as JSON) of every field; "required" without one, "section" for a section."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        section = schema.section_of(hints[field.name])
        if section is not None:
            yield prefix + field.name, "section"
            yield from keys(section, f"{prefix}{field.name}.")
            continue
        default = schema.default_of(field)
        yield prefix + field.name, "required" if default == schema.MISSING else json.dumps(schema.plain(default))


def documented_keys(page: str) -> dict[str, str]:
    """Key, with its method in brackets if it has one, and default, as in the tables below "Every key"."""
    table = prose(ROOT / "docs" / page).partition("\n## Every key\n")[2]
    found = {}
    for key, which, default in re.findall(r"^\| `([\w.]+)`((?: \(\w+(?:, \w+)*\))?) \| ([^|]+) \|", table, re.M):
        for method in re.findall(r"\w+", which) or [""]:
            found[f"{key} ({method})" if method else key] = default.strip("`")
    return found


def test_every_config_key_is_documented_with_its_default() -> None:
    run = {key: default for key, default in keys(schema.RunConfig) if key != "method.options"}
    assert documented_keys("guide-clip.md") == run | {"task": "section", **dict(keys(ClipOptions, "task."))}
    assert documented_keys("guide-classification.md") == dict(keys(ClassificationOptions, "task."))
    assert documented_keys("guide-language.md") == dict(keys(LanguageOptions, "task."))


def test_every_key_of_every_method_is_documented_with_its_default() -> None:
    wanted = {
        f"{key} ({method})": default
        for method in registry.registered()
        for key, default in keys(registry.find_method(method).options, "method.")
    }
    assert documented_keys("methods.md") == wanted
    text = prose(ROOT / "docs" / "methods.md")
    for name, entry in registry.registered().items():
        assert f"| `{name}` | {', '.join(entry.units)}" in text, name


def test_every_scalar_is_documented() -> None:
    units = Units(torch.zeros(4), torch.zeros(4), torch.tensor(0))
    logged = [f"train/{name}" for name in StochasticRisk(1, tau=1.0)(units).metrics]
    text = GUIDE.read_text(encoding="utf-8")
    assert [name for name in logged if f"`{name}`" not in text] == []


def test_every_module_imports() -> None:
    for package in (steering, tasks):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def test_every_line_of_the_table_of_divergences_runs() -> None:
    table = (
        (ROOT / "docs" / "index.md")
        .read_text(encoding="utf-8")
        .partition("### Every divergence")[2]
        .partition("\n## ")[0]
    )
    lines = re.findall(r"`((?:worst_case|steering\.)[^`]+)`", table)
    assert len(lines) >= 18
    torch.manual_seed(0)
    h, n, q = torch.randn(2, 6), 6, torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 1.0])
    reference, index = torch.randn(n), torch.arange(n)
    importlib.import_module("steering.dro.groups")
    for line in lines:
        made = eval(line, {"worst_case": steering.worst_case, "steering": steering, "h": h, "n": n, "q": q})
        if line.startswith("worst_case"):
            torch.testing.assert_close(made.weights.sum(-1), torch.ones(2))
            assert (made.gap.abs() < 1e-5).all(), line
        elif line.startswith("steering.DRRho"):  # the five lines
            losses = h[0].clone().requires_grad_()
            made(losses, reference, index).backward()
            torch.testing.assert_close(losses.grad.sum(), torch.tensor(1.0), msg=line)
        else:
            assert made(h[0], torch.ones(n)).isfinite(), line
