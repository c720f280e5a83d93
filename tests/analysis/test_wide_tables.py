"""A table that is wider than the terminal goes on in a second one, whose lines are named as well."""

import io

import pytest
from rich.console import Console

from steering.analysis import page
from steering.analysis.page import Table, print_tables


def printed(monkeypatch, lines, width):
    console = Console(width=width, record=True, file=io.StringIO())
    monkeypatch.setattr(page, "CONSOLE", console)
    print_tables("t", [Table("name", ["method", "part", "first", "second", "third"], lines)])
    return console.export_text()


@pytest.mark.parametrize(
    ("lines", "repeated"),
    [
        ([["a", "x", "1", "2", "3"], ["a", "y", "4", "5", "6"]], True),  # a alone names neither
        ([["a", "x", "1", "2", "3"], ["b", "x", "4", "5", "6"]], False),
        ([["a", "x", "1", "2", "3"], ["a", "x", "1", "2", "3"]], False),  # nothing does
    ],
)
def test_what_names_a_line_is_repeated(monkeypatch, lines, repeated):
    wide = printed(monkeypatch, lines, 80)
    assert wide.count("method") == wide.count("part") == 1
    narrow = printed(monkeypatch, lines, 34)
    assert narrow.count("method") > 1
    assert (narrow.count("part") == narrow.count("method")) == repeated
    for head in ("first", "second", "third"):
        assert narrow.count(head) == 1
