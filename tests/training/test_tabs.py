"""TensorBoard opened on a run: its tabs, and in a browser, where there is one, what it shows."""

import json
import re
import shutil
import subprocess
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys
from tensorboard import default, program

from steering.exhibits import Exhibit, Labels
from steering.schema import BoardConfig
from steering.training.board.layout import HEALTH
from steering.training.loop import run

PAGE = (Path(__file__).parents[2] / "docs/tensorboard.md").read_text(encoding="utf-8")
TAGS = set(re.findall(r"`((?:loss|steer|group)/[\w/]+)`", PAGE))
TABS = ("timeseries", "scalars", "custom_scalars", "images", "histograms", "text", "hparams")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a TensorBoard on one short run."""
    folder = tmp_path_factory.mktemp("board") / "short-run"
    job = toys.make_job(folder, kind="units", samples=32, log_every=1)
    job.task.labels = lambda: Labels(wrong=np.arange(64) < 8)
    job.task.exhibits = lambda numbers: [Exhibit(str(n)) for n in numbers]
    board = BoardConfig(histograms_every=1, pictures_every=2, examples=1)
    config = "seed: 0\nmethod: {name: drrho, tau: 4}\n"
    run(replace(job, train=replace(job.train, board=board), config=config))
    server = program.TensorBoard(plugins=default.get_plugins())
    server.configure(logdir=str(folder.parent), port=0, host="127.0.0.1", load_fast="false")
    return server.launch()


def fetched(url: str):
    with urllib.request.urlopen(url, timeout=30) as found:
        return json.load(found)


def test_every_tab_has_something_to_show(address):
    shown = fetched(f"{address}data/plugins_listing")
    assert [tab for tab in TABS if not shown[tab]["enabled"]] == []


def test_the_page_of_health_is_there_and_each_chart_finds_a_documented_tag(address):
    [page] = fetched(f"{address}data/plugin/custom_scalars/layout")["category"]
    assert [page["title"]] == [*HEALTH]
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in page["chart"]}
    assert len(charts) == len(HEALTH["Is it healthy?"])
    for title, patterns in charts.items():
        for pattern in patterns:
            assert any(re.match(pattern, tag) for tag in TAGS), (title, pattern)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_shows_the_run_its_tags_and_the_tabs(address):
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,2000"]
    done = subprocess.run(
        [BROWSER, *words, "--virtual-time-budget=15000", "--dump-dom", f"{address}#timeseries"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]+>", "\n", done.stdout, flags=re.S)
    seen = {line.strip().lower() for line in text.splitlines()}
    assert {"short-run", "loss", "steer", "items", "custom scalars", "hparams"} <= seen
