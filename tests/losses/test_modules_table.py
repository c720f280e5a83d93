"""The table of docs/methods.md, "In your own loop": every line is run."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from steering import functional
from steering import losses as modules
from steering.methods import find_method, registered

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
LINE = re.compile(
    r"^\| (?P<method>[^|]+) \| (?P<config>[^|]*)\| `(?P<call>[^|]+)` \|(?P<function>[^|]*)\|$",
    re.M,
)
TABLE = PAGE.read_text(encoding="utf-8").partition("## In your own loop")[2].partition("\n## ")[0]
LINES = [found.groupdict() for found in LINE.finditer(TABLE)]
B = 12


def arguments() -> dict[str, object]:
    torch.manual_seed(0)
    names = ("image", "text", "reference_image", "reference_text")
    features = {name: F.normalize(torch.randn(B, 5), dim=-1) for name in names}
    return features | {
        "losses": torch.rand(B),
        "reference_losses": torch.rand(B),
        "logits": torch.randn(B, 3),
        "reference_logits": torch.randn(B, 3),
        "groups": torch.arange(B) % 3,
        "index": torch.arange(B),
        "n": 40,
        "k": 3,
    }


def test_the_table_has_every_method_and_every_module() -> None:
    methods = {name for line in LINES for name in re.findall(r"`(\w+)`", line["method"])}
    assert methods == set(registered())
    named = {line["call"].partition("(")[0] for line in LINES}
    assert named == {*modules.__all__} - {"Estimate"}
    functions = {line["function"].strip("` ").partition("(")[0] for line in LINES} - {""}
    assert functions == {*functional.__all__}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["call"])
def test_a_line_of_the_table_runs(line: dict[str, str]) -> None:
    if line["config"].strip():
        options = yaml.safe_load(line["config"].strip("` "))
        name = options.pop("name")
        assert f"`{name}`" in line["method"]
        find_method(name).options(**options)
    found = eval(line["call"], vars(modules) | arguments())
    assert isinstance(found, Tensor)
    if found.dtype == torch.int64:  # a selector
        assert len(found) >= 1
        assert len(found.unique()) == len(found)
        return
    assert found.ndim == 0
    if function := line["function"].strip("` "):
        expected = eval(function, vars(functional) | arguments())
        torch.testing.assert_close(expected, found, rtol=1e-5, atol=1e-6)
