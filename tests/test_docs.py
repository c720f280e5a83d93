"""The documentation is run: its Python, its links, its commands, its names, and its table of config
keys.

Three HTML comments, on the line before a fenced block, steer this file: `<!-- no-test -->` leaves a
block alone, `<!-- file: NAME -->` writes it to NAME for the blocks below it, anything else is a
comment.
"""

from __future__ import annotations

import ast
import functools
import importlib
import io
import json
import pkgutil
import re
import shlex
import sys
import tempfile
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import steering
import steering_tasks
from steering import schema
from steering.cli import _parsed
from steering.commands import benchmark, configs, doctor, export, init, studies
from steering.commands.methods import ranges_table
from steering.config import load_config
from steering.dro.adversary import Adversary
from steering.dro.online.stochastic import StochasticRisk
from steering.items import Units
from steering.methods import registry
from steering.methods.selection import SELECTORS
from steering.packaged import find_config
from steering.registry import Registry, registry_of
from steering.training.board.scalars import SHARED
from steering.training.observers import OBSERVERS
from steering.training.recipes import OPTIMIZERS, AdamW
from steering.typed import plain_field
from steering_tasks.classification import ClassificationOptions
from steering_tasks.clip import ClipOptions
from steering_tasks.language import LanguageOptions

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("methods/*.md"))]
    if page.is_file()
]
GUIDE = ROOT / "docs" / "guide-clip.md"
FENCE = re.compile(
    r"^ *(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *(?P=fence)[ \t]*$", re.M | re.S
)
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
    """A folder of a reader's own with our configs and examples; what a page registers or imports is
    gone afterwards."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    for parts in (OPTIMIZERS, OBSERVERS, SELECTORS):
        monkeypatch.setattr(parts, "_parts", dict(parts._parts))
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
            code = "\n" * block.line + textwrap.dedent(
                block.body
            )  # so that a traceback names the page's own line
            exec(compile(code, str(page), "exec"), namespace)


@every_page
def test_commands_parse(page: Path, reader: Path) -> None:
    """Every `steering ...` of a bash block is a command line we take; if its config is ours or the
    page's, it loads."""
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
                assert all(
                    word.startswith("--") or ":" in word or word in registry.registered()
                    for word in words[1:]
                )
                continue
            if words[0] in ("report", "runs"):
                studies.parsed(words[0], words[1:])
                continue
            if words[0] in ("configs", "doctor", "export", "init"):
                words = words[: words.index(">")] if ">" in words else words
                own = {"configs": configs, "doctor": doctor, "export": export, "init": init}
                own[words[0]].parsed(words[1:])
                continue
            arguments = _parsed(words)
            if Path(arguments.config).is_file() or find_config(arguments.config):
                load_config(arguments.config, arguments.overrides)


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
    """`steering.a.b` in the prose can be imported, and a test file, or a test in it after `::`, is
    there."""
    for name in re.findall(r"`((?:steering|steering_tasks)(?:\.\w+)+)`", prose(page)):
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
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (
            f"{page.name}: {file}::{test}"
        )


NAMED = re.compile(
    r"(?<![\w./{-])(?:docs|configs|examples|tests)/[\w./-]*\w\.(?:md|ya?ml|py|json|png|sh)\b"
)
PAGE = re.compile(r"(?<![\w./{*-])[\w-]+\.md\b")  # a page by its bare name
WRITTEN = {"compare.md"}  # by `steering compare`
CODE = [
    path
    for folder in ("steering", "tasks", "examples", "tests", "configs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml", ".yml")
] + [path for path in (ROOT / "Makefile", ROOT / "pyproject.toml") if path.is_file()]


@functools.cache
def spoken(path: Path) -> str:
    """Docstrings and comments of a Python file, comments of a YAML file, everything of a page but
    its fenced blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return prose(path)
    if path.suffix != ".py":
        return "\n".join(re.findall(r"(?:^|\s)#.*", text))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        for statement in (
            getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []
        ):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found.append(
                    str(statement.value.value)
                )  # of modules, classes, functions, and under fields
    return "\n".join(found)


def missing_files(text: str) -> list[str]:
    """Paths into the repository, and pages by name, that `text` names and that are not there."""
    pages = [name for name in PAGE.findall(text) if name not in WRITTEN]
    absent = [name for name in NAMED.findall(text) if not (ROOT / name).is_file()]
    return absent + [
        name
        for name in pages
        if not (ROOT / name).is_file() and not (ROOT / "docs" / name).is_file()
    ]


def test_files_named_in_docstrings_and_comments_exist() -> None:
    """Also a page's bare name: a reader looks for it in docs/ and in the root."""
    found = {str(path.relative_to(ROOT)): missing_files(spoken(path)) for path in CODE}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == {}


@every_page
def test_files_named_on_a_page_exist(page: Path) -> None:
    assert missing_files(re.sub(r"\]\([^)]*\)", "]", spoken(page))) == []


def test_a_file_that_is_not_there_is_found_wherever_it_is_named(tmp_path: Path) -> None:
    gone = "docs/" + "gone.md"
    for name, text in {
        "a.py": f'"""See {gone}."""\n',
        "b.py": f"x = 1  # {gone}\n",
        "c.py": f'class A:\n    x: int = 1\n    """As {gone} says."""\n',
        "d.py": f'if True:\n\n    def f():\n        """{gone}"""\n',
        "e.yaml": f"# {gone}\nname: a\n",
        "f.yaml": f"name: a  # {gone}\n",
        "g.md": f"See `{gone}`.\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert missing_files(spoken(tmp_path / name)) == [gone], name
    assert missing_files("GONE" + ".md, section 1") == ["GONE" + ".md"]
    assert (
        missing_files("docs/theory.md, theory.md, README.md, compare.md, tests/test_docs.py::keys")
        == []
    )


def test_equations_are_numbered_in_order_and_every_reference_has_one() -> None:
    """References: "(n)" in the theory's own text, and after the word theory elsewhere."""
    theory = ROOT / "docs" / "theory.md"
    text = theory.read_text(encoding="utf-8")
    tags = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", text)]
    assert tags == [*range(1, len(tags) + 1)]
    reference = re.compile(r"(?<![\w\])}^_*\\.])\((\d{1,2})\)")
    assert [n for n in reference.findall(text) if int(n) not in tags] == []
    where = re.compile(
        r"\btheory\b(?:[^()\n]|\(theory\.md[^)]*\))*((?:\(\d{1,2}\)(?:–|, | and )?)+)"
    )
    named = {path: where.findall(spoken(path)) for path in [*CODE, *PAGES] if path != theory}
    numbers = [n for found in named.values() for group in found for n in re.findall(r"\d+", group)]
    assert len(numbers) >= 15
    assert [n for n in numbers if int(n) not in tags] == []


def test_every_config_is_on_a_page() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    configs = [path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")]
    assert len(configs) >= 7
    assert [name for name in configs if name not in pages] == []


def test_line_counts_are_those_of_the_example() -> None:
    text = (ROOT / "examples" / "audio_digits.py").read_text(encoding="utf-8")
    spans = {
        node.name: node.end_lineno - node.lineno + 1 + len(node.decorator_list)
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
    }
    total, task = len(text.splitlines()), sum(spans.values())
    page = prose(ROOT / "docs" / "guide-own-task.md")
    assert f"Of its {total} lines {task} are the task" in page
    assert f"in one file of {total} lines" in (ROOT / "README.md").read_text(encoding="utf-8")


def shown(field: Field, default: object) -> object:
    """A default as a config would write it: of a part without keys its name."""
    found = plain_field(field, default)
    return found["name"] if isinstance(found, dict) and [*found] == ["name"] else found


def keys(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, default as JSON) of every field; "required" without one, "section" for a
    section."""
    hints = get_type_hints(cls)
    for field in (field for field in fields(cls) if field.init):
        part, default = registry_of(field.metadata), schema.default_of(field)
        # A part with keys of its own, such as an optimiser, shows those of its default.
        keyed = part is not None and is_dataclass(default) and part.as_number(default) is None
        if keyed and any(key.init for key in fields(default)):
            yield prefix + field.name, "section"
            yield from keys(type(default), f"{prefix}{field.name}.")
            continue
        section = schema.section_of(hints[field.name]) if part is None else None
        if section is not None:
            yield prefix + field.name, "section"
            yield from keys(section, f"{prefix}{field.name}.")
            continue
        yield (
            prefix + field.name,
            "required" if default == schema.MISSING else json.dumps(shown(field, default)),
        )


def keys_of_other_parts(registry: Registry[Any], prefix: str, usual: type) -> dict[str, str]:
    """Keys of the parts that are not the default one, where that has not the same, by part."""
    known = dict(keys(usual, prefix))
    return {
        f"{key} ({name})": default
        for name, part in registry.parts().items()
        for key, default in keys(part, prefix)
        if known.get(key) != default
    }


def documented_keys(page: str) -> dict[str, str]:
    """Key, with its method in brackets if it has one, and default, as in the tables below "Every
    key"."""
    table = prose(ROOT / "docs" / page).partition("\n## Every key\n")[2]
    found = {}
    for key, which, default in re.findall(
        r"^\| `([\w.]+)`((?: \(\w+(?:, \w+)*\))?) \| ([^|]+) \|", table, re.M
    ):
        for method in re.findall(r"\w+", which) or [""]:
            found[f"{key} ({method})" if method else key] = default.strip("`")
    return found


def test_every_config_key_is_documented_with_its_default() -> None:
    run = {key: default for key, default in keys(schema.RunConfig) if key != "method.options"}
    assert documented_keys("guide-clip.md") == run | {
        "task": "section",
        **dict(keys(ClipOptions, "task.")),
        **keys_of_other_parts(OPTIMIZERS, "optimizer.", AdamW),
        **keys_of_other_parts(OBSERVERS, "train.observers.", schema.TrainConfig),
    }
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
        assert f"| [`{name}`](methods/{name}.md) | {', '.join(entry.units)}" in text, name


def test_every_range_of_every_method_is_documented() -> None:
    text = prose(ROOT / "docs" / "methods.md").partition("\n## Ranges worth searching\n")[2]
    table = text.partition("\n## ")[0]
    lines = re.findall(r"^\| `([\w.]+)` \((\w+(?:, \w+)*)\) \| (.*) \|$", table, re.M)
    found = {
        (key, method): cells.split(" | ")
        for key, which, cells in lines
        for method in which.split(", ")
    }
    wanted = {}
    for method, entry in registry.registered().items():
        for key, *cells in ranges_table(entry):
            by_unit = dict(zip(entry.units, cells, strict=True))
            wanted[key, method] = [by_unit.get(unit, "–") for unit in registry.UNITS]
    assert f"| Key | {' | '.join(registry.UNITS)} |" in table
    assert found == wanted


def test_every_scalar_is_documented() -> None:
    units = Units(torch.zeros(4), torch.zeros(4), torch.tensor(0))
    adversary = Adversary(tau=1.0, prior=1.0)
    told = StochasticRisk(1, adversary)(units).metrics
    logged = [f"train/{name}" for name in told if name not in SHARED]
    # tests/test_every_pair.py compares the page with what runs leave in their files.
    board = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")
    assert [name for name in logged if f"`{name}`" not in board] == []
    assert [name for name in SHARED if f"`steer/{name}`" not in board] == []


def test_every_module_imports() -> None:
    for package in (steering, steering_tasks):
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
    importlib.import_module("steering.dro.online.groups")
    for line in lines:
        made = eval(
            line, {"worst_case": steering.worst_case, "steering": steering, "h": h, "n": n, "q": q}
        )
        if line.startswith("worst_case"):
            torch.testing.assert_close(made.weights.sum(-1), torch.ones(2))
            assert (made.gap.abs() < 1e-5).all(), line
        elif line.startswith("steering.DRRho"):  # the five lines
            losses = h[0].clone().requires_grad_()
            made(losses, reference, index).backward()
            torch.testing.assert_close(losses.grad.sum(), torch.tensor(1.0), msg=line)
        else:
            assert made(h[0], torch.ones(n)).isfinite(), line


def test_every_paper_is_in_the_bibliography() -> None:
    named = set(re.findall(r"\b\d{4}\.\d{5}\b", "".join(spoken(path) for path in [*CODE, *PAGES])))
    text = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
    assert len(named) >= 20
    assert [n for n in sorted(named) if f"[arXiv {n}](https://arxiv.org/abs/{n})" not in text] == []


def test_every_method_is_on_the_page_of_choices() -> None:
    text = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
    table = text.partition("## Every method, when and when not")[2]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.M)) == sorted(registry.registered())
