"""Each method's page: it is there, its picture is what the code makes, its configs load, and its numbers
are those of the pages that it links to."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from steering.config import load_config
from steering.methods import registered

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
every_method = pytest.mark.parametrize("name", registered())
CONFIGS = {"pair": "clip/glyphs", "token": "language/stdlib", "example": "classification/digits"}


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("method_pictures", PAGES / "pictures.py")
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made
    del sys.modules[spec.name]


def text_of(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


@every_method
def test_a_page_says_everything(name, pictures):
    text = text_of(name)
    assert text.startswith(f"# {name}: ")
    for part in (
        "\n$$\n",
        "\n## When\n",
        "**Use it**",
        "**Not**",
        "**Extra cost:**",
        "**Source:**",
    ):
        assert part in text, part
    assert "\n## Measured\n" in text
    source = registered()[name].build.__doc__.partition("Source:")[2]
    assert {*re.findall(r"\d{4}\.\d{5}", source)} <= {*re.findall(r"\d{4}\.\d{5}", text)}
    units = re.search(r"takes\s+losses\s+of:\s+([^.;]+)", text)[1].split(",")
    assert [unit.strip() for unit in units] == [*registered()[name].units]
    assert name in pictures.PICTURES
    [picture] = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert 3_000 < (PAGES / picture).stat().st_size < 150_000


@every_method
def test_its_configs_load(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    unit = next(unit for unit in CONFIGS if unit in registered()[name].units)
    lines = re.findall(r"^method: (\{.*\})", text_of(name), re.M)
    found = [load_config(CONFIGS[unit], [f"method={line}"]).method.name for line in lines]
    assert found[0] == name


@every_method
def test_its_numbers_are_those_of_the_linked_page(name):
    rows = [row for row in text_of(name).splitlines() if row.startswith("|") and "](" in row]
    assert rows
    for row in rows:
        page, _, anchor = re.findall(r"\]\(\.\./([^)#]+)(#?)([^)]*)\)", row)[-1]
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for number in re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", row.partition("](")[0]):
            assert number in text, (number, page, anchor)


def test_the_pictures_show_what_the_pages_say(pictures, monkeypatch):
    """Mean weights of wrong labels, 1 is uniform."""

    def of_wrong(seen):
        return float(seen.weight[seen.wrong].mean())

    assert of_wrong(pictures.weighed("erm")) == pytest.approx(1)
    plain = pictures.weighed("dro")
    assert of_wrong(plain) > 2
    assert (plain.weight[plain.loss.argsort()].diff() >= -1e-6).all()  # a function of the loss
    steered = pictures.weighed("drrho")
    assert of_wrong(steered) < 1
    order = (steered.loss - steered.reference).argsort()
    assert (steered.weight[order].diff() >= -1e-6).all()  # and here of the excess loss
    monkeypatch.setattr(pictures, "DRAWS", 5)
    assert of_wrong(pictures.chosen("rho_loss", share=0.2)) < 0.5
    assert of_wrong(pictures.weighed_pairs("jest")) < 0.5
    pulled = pictures.pulled_to(3, pictures.torch.tensor([0.55, 0.25, 0.15, 0.05]), steps=100)
    assert 0.05 < pulled[3] < 1  # between the reference and the wrong label
