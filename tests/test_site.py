"""The site builds without a warning, holds what the navigation promises, and needs no network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steering.commands.table import NAMES
from steering.methods import registered

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")
pytest.importorskip("mathjax")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--quiet", "--strict", "-f", "docs/site/mkdocs.yml"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of ruff
    done = subprocess.run(
        [sys.executable, *words, "-d", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PATH": path, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_there_and_in_the_navigation(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    pages = [page.stem for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    pages += [f"methods/{name}" for name in registered()]
    pages += ["everything", "reference/cli", "reference/keys"]
    assert [page for page in pages if not (site / f"{page}.html").is_file()] == []
    # Sections that are closed on the front page name their first page alone.
    every = "".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    assert [page for page in pages if f'{page.rpartition("/")[2]}.html"' not in every] == []
    assert "everything.html" in front
    assert "Plain against steered" in front  # README is what one meets first


def test_the_reference_is_that_of_the_code(site):
    text = (site / "reference/cli.html").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"usage: steering {name}" not in text] == []
    losses = (site / "reference/losses-for-your-own-loop.html").read_text(encoding="utf-8")
    assert 'id="steering.losses.examples.DRRho"' in losses or "DRRho.estimate" in losses
    assert "method.strength" in (site / "methods/drrho.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    """Links may lead out; what a page shows must not."""
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\s\">]+)|<link[^>]*>")
    for page in site.rglob("*.html"):
        for found in loaded.finditer(page.read_text(encoding="utf-8")):
            assert found[1] is None, (page, found[1])
            styled = 'rel="stylesheet"' in found[0] or "rel=stylesheet" in found[0]
            assert not (styled and "http" in found[0]), (page, found[0])
    assert (site / "assets/mathjax/tex-svg.js").stat().st_size > 10**6
    # The search of a page that was opened from a folder: its index, and what stands for a worker.
    assert (site / "search/search_index.js").read_text(encoding="utf-8").startswith("var __index")
    assert "assets/iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")
