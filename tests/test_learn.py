"""The course: every lesson is run, what its page shows is what comes out, and its answers are
right."""

import ast
import importlib
import importlib.util
import json
import math
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import steering

ROOT = Path(__file__).resolve().parents[1]
LEARN = ROOT / "docs" / "learn"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]+\]\(([^)\s]+)\)")


sys.path.append(str(LEARN))  # as for a student, who runs a lesson from its folder
render = importlib.import_module("render")
classroom = importlib.import_module("classroom")
LESSONS = render.LESSONS
every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


@every_lesson
def test_a_lesson_runs_and_its_page_is_what_comes_out(lesson):
    began = time.process_time()
    page = render.markdown(lesson, render.execute(lesson))
    assert time.process_time() - began < 60
    stored = render.page(lesson).read_text(encoding="utf-8")
    # Words are the same to the letter. Another machine may round a trained model's score otherwise.
    assert NUMBER.sub("#", page) == NUMBER.sub("#", stored), "run docs/learn/render.py"
    for now, then in zip(NUMBER.findall(page), NUMBER.findall(stored), strict=True):
        assert float(now) == pytest.approx(float(then), rel=0.15, abs=0.08), (now, then)


@every_lesson
def test_the_notebook_is_current_and_stands_alone(lesson):
    stored = LEARN / "notebooks" / f"{render.page(lesson).stem}.ipynb"
    text = stored.read_text(encoding="utf-8")
    assert text == render.notebook(lesson), "run docs/learn/render.py"
    book = json.loads(text)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    code = "\n".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "code")
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not imported & {"classroom", "answers"}


@every_lesson
def test_a_page_has_goals_exercises_pictures_and_links_that_lead_somewhere(lesson):
    page = render.page(lesson).read_text(encoding="utf-8")
    assert "**After this lesson you can**" in page
    number = int(render.short(lesson))
    asked = re.findall(r'check\("([\d.]+)"', page)
    assert 3 <= len(asked) <= 5
    assert asked == [f"{number}.{k}" for k in range(1, len(asked) + 1)]
    assert set(asked) <= set(render.ANSWERS)
    shown = IMAGE.findall(page)
    assert shown
    for image in shown:
        assert (LEARN / image).stat().st_size > 3000
    for link in LINK.findall(page):
        path, _, anchor = link.partition("#")
        target = (LEARN / path).resolve()
        assert target.is_file(), link
        if anchor:
            assert anchor in slugs(target), link


def slugs(page):
    """Anchors of a page's headings, as on GitHub."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("exercise", render.ANSWERS)
def test_an_answer_is_what_its_code_finds_and_check_tells_it_from_a_wrong_one(exercise, capsys):
    told = render.ANSWERS[exercise]
    found = told.expected
    if told.code:
        found = eval(told.code, {"torch": torch, "math": math, "steering": steering})
    classroom.check(exercise, found)
    assert f"{exercise}: right" in capsys.readouterr().out
    for wrong in ("z", [1.0, 2.0, 3.0], -17.0):
        classroom.check(exercise, wrong)
        assert "is not it. Hint:" in capsys.readouterr().out
    classroom.check(exercise, None)
    assert "not answered yet" in capsys.readouterr().out


def test_the_answers_page_and_the_index_know_every_lesson():
    assert (LEARN / "answers.md").read_text(encoding="utf-8") == render.answers()
    index = (LEARN / "index.md").read_text(encoding="utf-8")
    for lesson in LESSONS:
        assert f"]({render.page(lesson).name})" in index
    for link in LINK.findall(index):
        path = link.partition("#")[0]
        assert (LEARN / path).resolve().is_file(), link
    assert len(LESSONS) == 10


def test_the_slides_are_current_show_what_is_there_and_need_no_network():
    spec = importlib.util.spec_from_file_location("slides", LEARN / "slides" / "make.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = (LEARN / "slides" / "deck.txt").read_text(encoding="utf-8")
    page = (LEARN / "slides" / "index.html").read_text(encoding="utf-8")
    assert page == made.page(text), "run docs/learn/slides/make.py"
    assert 30 <= page.count("<section") <= 45
    shown = re.findall(r'<img src="([^"]+)"', page)
    assert {name.partition("images/")[2][:2] for name in shown} == {
        render.short(lesson) for lesson in LESSONS
    }
    assert all((LEARN / "slides" / name).is_file() for name in shown)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    # Marks: what is not a mark stays as it is, and code is not read.
    assert (
        made.inline("**a** `b*c*` $p_i$ <")
        == "<b>a</b> <code>b*c*</code> <i>p<sub>i</sub></i> &lt;"
    )


def test_tags_of_the_sheet_are_documented():
    board = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")
    pages = [LEARN / "index.md", LEARN / "slides" / "deck.txt"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"`((?:steer|group|train|loss)/[\w/]+)", text))
    assert len(named) >= 10
    assert [tag for tag in named if f"`{tag}" not in board] == []
