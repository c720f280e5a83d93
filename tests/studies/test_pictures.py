"""Every registered study is run by a test of this folder, whose conftest asks each page for a picture."""

import re
from pathlib import Path

import pytest

from steering.studies import known_studies

TESTS = "\n".join(
    path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")
)


@pytest.mark.parametrize("name", sorted(known_studies()))
def test_every_study_is_run_where_its_page_is_asked_for_a_picture(name):
    called = rf'(?<!\w)(?:study\(|"study",)\s*"{name}"'
    if name == "compare":  # a command of its own
        called += r"|(?<!\w)compare\(load_config"
    assert re.search(called, TESTS), f"no test in {Path(__file__).parent.name} runs {name}"
