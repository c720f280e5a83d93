"""`steering methods`, methods from outside the package, and what is refused before a run."""

import textwrap

import pytest
import toys
from rich.console import Console

from steering.cli import main
from steering.commands import methods
from steering.methods import registered, registry


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", registered())


@pytest.fixture
def wide(monkeypatch):
    console = Console(width=150, record=True)
    monkeypatch.setattr(methods, "CONSOLE", console)
    return console


def lines(console: Console) -> dict[str, str]:
    return {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}


def test_a_line_for_every_method(wide):
    assert main(["methods"]) == 0
    found = lines(wide)
    assert {*registered()} < {*found}
    assert found["method"].split()[:4] == ["method", "classification", "clip", "language"]
    assert found["rho1"].split()[1:4] == ["–", "–", "token"]
    assert found["erm"].split()[1:5] == ["example", "pair", "token,", "sequence"]
    assert found["jest"].split()[1:4] == ["–", "pair", "–"]
    assert found["doremi"].split()[1:3] == ["example", "–"]
    assert "Rho-1: the tokens of the largest excess loss alone." in found["rho1"]


MEDIAN = """
    from dataclasses import dataclass

    from steering.methods import Method, Step, register


    @dataclass
    class MedianOptions:
        scale: float = 1.0


    class Median(Method):
        def __init__(self, options):
            super().__init__()
            self.scale = options.scale

        def forward(self, losses):
            return Step(self.scale * losses.target.median(), {})


    @register("median", MedianOptions, units=("example",))
    def build(options, num_examples):
        \"\"\"The median of the losses.\"\"\"
        return Median(options)
"""


def page_of(wide: Console, name: str) -> str:
    assert main(["methods", name]) == 0
    return wide.export_text()


def test_a_page_prints_the_ranges_worth_searching(wide):
    rows = [line.split("  ") for line in page_of(wide, "drrho").splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["key", "example", "token", "sequence", "pair"] in cells
    taus = ["method.tau", "0.5 to 16, log", "0.5 to 16, log", "0.05 to 2, log", "0.01 to 0.15, log"]
    assert taus in cells
    assert ["method.distill_temperature", *["0.5 to 4, log"] * 2, "–", "–"] in cells
    # One column where all units have the same.
    text = page_of(wide, "rho_loss")
    assert "where a config gives no ranges:\nkey           range\nmethod.share  0.1 to 0.9" in text
    assert page_of(wide, "erm").endswith("It documents no ranges that are worth searching.\n")


def test_a_method_from_a_file_prints_its_own(wide, tmp_path):
    path = tmp_path / "median.py"
    line = "scale: float = 1.0"
    text = textwrap.dedent(MEDIAN).replace(line, f'{line}\n    search = {{"scale": [0.5, 2.0]}}')
    path.write_text(text)
    text = page_of(wide, f"{path}:median")
    assert text.endswith("key           range\nmethod.scale  0.5, 2\n")


@pytest.fixture
def median(tmp_path):
    path = tmp_path / "median.py"
    path.write_text(textwrap.dedent(MEDIAN))
    return f"{path}:median"


def test_tasks_and_methods_from_outside_have_their_places(wide, median):
    assert main(["methods", "--task", f"{toys.__file__}:Toy", "--method", median]) == 0
    found = lines(wide)
    assert found["method"].split()[4] == "Toy"
    assert found["median"].split()[1:5] == ["example", "–", "–", "example"]


def test_a_task_that_is_not_there(wide, capsys):
    assert main(["methods", "--task", "nowhere.py:Toy"]) == 2
    assert "no such file: nowhere.py" in capsys.readouterr().err
    assert wide.export_text() == ""


def config(tmp_path, kind: str, method: str):
    path = tmp_path / "toy.yaml"
    path.write_text(
        f"""
name: outside
output: {tmp_path}/runs
device: cpu
task: {{name: "{toys.__file__}:Toy", kind: {kind}}}
target: linear
reference: {{name: linear, train: {{train.samples: 64}}}}
method: {method}
train: {{samples: 320, batch_size: 16}}
"""
    )
    return str(path)


def test_a_method_from_a_file_trains(tmp_path, median):
    path = config(tmp_path, "units", f'{{name: "{median}", scale: 0.5}}')
    assert main(["train", path]) == 0
    assert main(["train", path, "method.scale=0.5"]) == 0
    assert (tmp_path / "runs/outside").is_dir()


@pytest.mark.parametrize(
    ("kind", "method", "words"),
    [
        ("units", "rho1", "method.name: rho1 works on losses of a token, not of an example"),
        ("units", "jest", "jest works on losses of a pair"),
        ("units", "doremi", "doremi weights groups, and there are none"),
        (
            "pairs",
            "rho_loss",
            "rho_loss works on losses of an example or a sequence, not of a pair",
        ),
    ],
)
def test_a_method_that_makes_no_sense_is_refused_by_name(tmp_path, capsys, kind, method, words):
    assert main(["train", config(tmp_path, kind, method)]) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_registers_something_else(tmp_path, capsys, median):
    wrong = median.replace(":median", ":mode")
    assert main(["train", config(tmp_path, "units", f'{{name: "{wrong}"}}')]) == 2
    assert "registers no method 'mode'" in capsys.readouterr().err
    assert main(["train", config(tmp_path, "units", '{name: "gone.py:median"}')]) == 2
    assert "method.name: no such file: gone.py" in capsys.readouterr().err
