"""What the site has beyond docs/*.md: the first steps, the reference that is read off the code, the
files that pages link to, and MathJax from its package, so that formulas need no network."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the file beside this one, and the package

from github_markdown import with_lists, with_papers  # noqa: E402

DOCS, ROOT = HERE.parent, HERE.parents[1]
UPWARDS = re.compile(r"\]\((\.\./[^)#\s]+)")  # a link out of the page's folder
KEYS = "\n## Every key\n"
OVERVIEW = "everything.md"  # docs/index.md: whoever opens the site begins with README
TO_OVERVIEW = re.compile(r"\]\(((?:\.\./)*)index\.md(?=[)#])")
API = {
    "Losses for your own loop": ["steering.losses", "steering.functional"],
    "The exact solver": ["steering.dro"],
    "Reference losses, finished runs": ["steering.reference_pass", "steering.finished"],
    "For authors of tasks, methods and parts": ["steering.extend"],
}
WHOLE = {  # modules that load much and have few names
    "Drop-ins for other trainers": [
        "steering.integrations.hugging_face",
        "steering.integrations.lightning",
    ]
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that follow from what is there."""
    sections = {name: pages for entry in config.nav or [] for name, pages in entry.items()}
    lessons = sorted(page.name for page in (DOCS / "learn").glob("*.md"))
    lessons.sort(key=lambda name: name != "index.md")
    sections["Learn"] += [f"learn/{name}" for name in lessons]
    sections["Methods"] += ["methods.md", *({name: f"methods/{name}.md"} for name in _methods())]
    sections["Reference"] += [
        {"Command line": "reference/cli.md"},
        {"Every key": "reference/keys.md"},
        {"Every TensorBoard tag": _tags_page()},
        {"Python": [{title: f"reference/{_slug(title)}.md"} for title in [*API, *WHOLE]]},
    ]
    placed = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    sections["More"] += sorted(page.name for page in DOCS.glob("*.md") if page.name not in placed)
    config.nav = [entry for entry in config.nav or [] if next(iter(entry.values()))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated, and the site's own assets."""
    files.remove(files.src_uris["index.md"])
    pages = {
        "index.md": _start(),
        OVERVIEW: (DOCS / "index.md").read_text(encoding="utf-8"),
        "reference/cli.md": _command_line(),
        "reference/keys.md": _keys(),
        **{f"reference/{_slug(title)}.md": _api(title, modules) for title, modules in API.items()},
        **{
            f"reference/{_slug(title)}.md": _whole(title, modules)
            for title, modules in WHOLE.items()
        },
        **{_page_of(file): _source(file) for file in _linked()},
    }
    if _tags_page().startswith("reference/"):
        pages[_tags_page()] = _tags()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name in ("site.css", "formulas.js", "iframe-worker.js"):
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(HERE / name)))
    script = str(_mathjax() / "tex-svg.js")
    files.append(File.generated(config, "assets/mathjax/tex-svg.js", abs_src_path=script))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links into the repository to their pages, and give lists the empty line above them that
    this Markdown needs."""
    uri, up = page.file.src_uri, "../" * page.file.src_uri.count("/")
    file = DOCS / {OVERVIEW: "index.md"}.get(uri, uri)
    if file.is_file() and uri != "index.md":
        for link, target in _outside(file).items():
            markdown = markdown.replace(f"]({link}", f"]({up}{_page_of(target)}")
    markdown = TO_OVERVIEW.sub(
        lambda found: f"]({up}{OVERVIEW}" if found[1] == up else found[0], markdown
    )
    folder, _, name = uri.removesuffix(".md").rpartition("/")
    if folder == "methods":
        markdown += _keys_of(name)
    return with_lists(with_papers(markdown))


def _methods() -> list[str]:
    """In the order of the overview."""
    overview = (DOCS / "methods.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \[`\w+`\]\(methods/(\w+)\.md\)", overview, re.M)


def _tags_page() -> str:
    """The page on TensorBoard; where there is none, the table of the CLIP guide."""
    return "tensorboard.md" if (DOCS / "tensorboard.md").is_file() else "reference/tags.md"


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _outside(page: Path) -> dict[str, Path]:
    """The links of a page that lead out of docs/ -> the files that they mean."""
    links = UPWARDS.findall(page.read_text(encoding="utf-8"))
    targets = {link: (page.parent / link).resolve() for link in links}
    return {
        link: file
        for link, file in targets.items()
        if file.is_file() and not file.is_relative_to(DOCS)
    }


def _page_of(file: Path) -> str:
    """Where a file of the repository stands on the site; a folder stands as a list of its files."""
    if file == ROOT / "README.md":
        return "index.md"
    return f"source/{file.relative_to(ROOT).as_posix()}.md"


def _linked() -> set[Path]:
    """The files of the repository outside of docs/ that its pages and README link to."""
    links = {file for page in DOCS.rglob("*.md") for file in _outside(page).values()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(((?!docs/)[\w./-]+)\)", readme)
    links |= {(ROOT / name).resolve() for name in named}
    return {file for file in links if file.is_file() and file != ROOT / "README.md"}


def _source(file: Path) -> str:
    name = file.relative_to(ROOT).as_posix()
    text = file.read_text(encoding="utf-8")
    fence = "`" * 4
    return f"# {name}\n\n{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{fence}\n"


def _start() -> str:
    """README as a page of the site: its links start at the repository, those of the site here."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    outside = {file.relative_to(ROOT).as_posix(): _page_of(file) for file in _linked()}
    for name, page in outside.items():
        text = text.replace(f"]({name})", f"]({page})")
    return text


def _command_line() -> str:
    """The help of every sub-command, as `--help` prints it."""
    main = importlib.import_module("steering.cli").main
    table = importlib.import_module("steering.commands.table")
    parts = [
        "# The command line\n\nWhat `--help` prints. A run is a config and `key=value` overrides.\n"
    ]
    for words in ([], *([name] for name in table.NAMES)):
        title = " ".join(["steering", *words])
        parts.append(f"\n## {title}\n\n```text\n{_printed(main, [*words, '--help'])}```\n")
    return "".join(parts)


def _printed(main: Any, words: list[str]) -> str:
    os.environ["COLUMNS"] = "88"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(words)
    if code:
        raise PluginError(f"steering {' '.join(words)}: exit code {code}")
    return out.getvalue()


def _keys_of(name: str) -> str:
    """A method's keys and the ranges worth searching, below its page: rows of two tables, of three
    and five cells."""
    found = _rows("methods.md", rf"`method\.[\w.]+` \([^)]*\b{name}\b[^)]*\)")
    keys, ranges = ([row for row in found if len(row) == cells] for cells in (3, 5))
    text = f"\n## Keys\n\n{_table(['Key', 'Default', 'Meaning'], keys) or 'It has none.'}\n"
    if ranges:
        header = ["Key", "example", "token", "sequence", "pair"]
        text += f"\n## Ranges worth searching\n\n{_table(header, ranges)}\n"
    return text


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first cells lose what stands behind them in brackets; "" of none."""
    lines = [header, ["---"] * len(header)]
    lines += [[key.partition(" (")[0], *cells] for key, *cells in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _rows(page: str, first: str) -> list[list[str]]:
    """The cells of a page's table rows whose first cell fits a pattern."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(rf"^\| ({first}) \|(.*)\|$", text, re.M)
    return [
        [head, *(_moved(cell.strip(), page) for cell in rest.split("|"))] for head, rest in found
    ]


def _moved(text: str, page: str) -> str:
    """Links of a page of docs/, for a page one folder below."""
    text = re.sub(r"\]\(#", f"]({page}#", text)
    return re.sub(r"\]\((?!https?:|\.\./)([\w-]+\.md)", r"](../\1", text)


def _section(page: str, heading: str) -> str:
    """What stands below a heading of level 2, with links as one folder below needs them."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None:
        raise PluginError(f"{page} has no section {heading!r}")
    return _moved(found[1], page)


def _keys() -> str:
    parts = [
        "# Every key\n\nAn entry of the YAML file, or `key=value` on the command line. A `method.` key with names "
        "in brackets belongs to these methods.\n"
    ]
    holders = [page for page in sorted(DOCS.glob("*.md")) if KEYS in page.read_text("utf-8")]
    holders.sort(key=lambda page: page.name != "guide-clip.md")  # it has the keys of every run
    for page in holders:
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        parts.append(f"\n## {title}\n\nFrom [{title}](../{page.name}#every-key).\n")
        parts.append(_section(page.name, "Every key").replace("\n### ", "\n#### "))
    return "".join(parts)


def _tags() -> str:
    return f"# Every TensorBoard tag\n{_section('guide-clip.md', 'Reading TensorBoard')}"


def _api(title: str, modules: list[str]) -> str:
    """Each module, then the names that it exports."""
    parts = [f"# {title}\n"]
    for module in modules:
        exported = importlib.import_module(module)
        parts.append(f"\n::: {module}\n    options: {{members: false}}\n")
        for name in _public(exported):
            found = getattr(exported, name)
            where = getattr(found, "__module__", module)
            if not str(where).startswith("steering") or not hasattr(found, "__qualname__"):
                where = module
            parts.append(f"\n::: {where}.{name}\n    options: {{heading_level: 3}}\n")
    return "".join(parts)


def _whole(title: str, modules: list[str]) -> str:
    return f"# {title}\n" + "".join(f"\n::: {module}\n" for module in modules)


def _public(module: Any) -> list[str]:
    """`__all__`, or the public classes and functions that the module itself defines."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    return [name for name in getattr(module, "__all__", own) if not name.startswith("__")]


def _mathjax() -> Path:
    found = importlib.util.find_spec("mathjax")
    if found is None or not found.submodule_search_locations:
        raise PluginError(
            "formulas need the package django-static-mathjax: `make docs` installs it"
        )
    return Path(next(iter(found.submodule_search_locations))) / "static" / "mathjax" / "es5"
