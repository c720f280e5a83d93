"""The page of a study as one HTML file, read back by the standard library's parser."""

import base64
from html.parser import HTMLParser

from matplotlib.figure import Figure

from steering.analysis import page
from steering.analysis.html_page import html_page

VOID = {"meta", "img"}
TABLE = page.Table(
    "accuracy",
    ["method", "a < b", "c & d"],
    [["plain", "1.0", "–"], ["<b>bold</b>", "2.0 ± 0.1", 'say "x"']],
    percent=True,
    bold=[(1, 1)],
    note="In `code <i>` and a | bar.",
)


class Reader(HTMLParser):
    """Texts by the tag they stand in; complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.pictures: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.found.append((self.open[-1], data))

    def of(self, *tags):
        return [text for tag, text in self.found if tag in tags]


def test_a_page_holds_what_the_markdown_holds():
    report = page.Report("n", "1 < 2", "An & intro, `as it stands`.", [TABLE], made="by `me`")
    found = Reader(html_page(report, {}))
    assert found.of("title") == found.of("h1") == ["1 < 2"]
    assert found.of("h2") == ["accuracy, %"]
    assert found.of("th") == TABLE.header
    assert found.of("td", "b") == [cell for line in TABLE.lines for cell in line]
    assert found.of("b") == ["2.0 ± 0.1"]
    assert found.of("code") == ["as it stands", "code <i>", "me"]
    assert found.found[-2:] == [("footer", "by "), ("code", "me")]


def test_pictures_are_inside_and_nothing_is_fetched(tmp_path):
    def draw():
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2])
        return figure

    report = page.Report("n", "t", "i", figures={"": draw, "more": draw}, html=lambda: "<p>own</p>")
    page.write_report(tmp_path, report)
    text = (tmp_path / "n.html").read_text(encoding="utf-8")
    found = Reader(text)
    for src, name in zip(found.pictures, ("n.png", "n-more.png"), strict=True):
        kind, _, data = src.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / name).read_bytes()
    assert "own" in found.of("p")
    assert "http" not in text
    assert "<script" not in text


def test_the_terminal_says_where_it_is(tmp_path, capsys):
    page.print_report(page.Report("n", "t", "i"), tmp_path)
    assert f"page: {tmp_path}/n.html" in capsys.readouterr().out.replace("\n", "")
