"""Values that YAML takes for something else, wrong configs and their exit code, paths at home, and
`steering methods NAME`."""

import itertools
import json
import re
import textwrap
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import toys

from steering.cli import main
from steering.commands.methods import method_page
from steering.config import ConfigError, load_config, to_yaml
from steering.errors import SteeringError
from steering.methods import find_method, registered, registry
from steering.plugins import load_file
from steering.reading import user_path
from steering.runs.ask import study_folder
from steering.storage import cache_dir
from steering.values import field_docs

ROOT = Path(__file__).parents[2]

TASK = """
from dataclasses import dataclass, field
from typing import Any
from steering.task import Task

@dataclass
class Inner:
    label: str = "x"

@dataclass
class Options:
    name: str
    word: str = "a"
    maybe: str | None = None
    words: list[str] = field(default_factory=list)
    pair: tuple[str, ...] = ("a", "b")
    paths: dict[str, str] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    deep: dict[str, list[str]] = field(default_factory=dict)
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    inner: Inner = field(default_factory=Inner)

class Fake(Task):
    Options = Options
"""

_NUMBERS = itertools.count()


@dataclass
class NoOptions:
    pass


@dataclass
class Other:
    tail_share: float = 0.5


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", registered())
    for name, options in {"_plain": NoOptions, "_other": Other}.items():
        registry._REGISTRY[name] = registry.Entry(name, options, NoOptions, "")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a config whose task section has the given YAML; returns its path."""
    module = f"config_values_task_{next(_NUMBERS)}"
    (tmp_path / f"{module}.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)

    def write(task: str = "", rest: str = "") -> Path:
        path = tmp_path / "run.yaml"
        lines = [f"task:\n  name: {module}:Fake", textwrap.indent(task, "  "), "target: {name: m}"]
        defaults = {"method": "_plain", "train": "{samples: 8, batch_size: 4}"}
        lines += [
            f"{key}: {value}" for key, value in defaults.items() if not rest.startswith(f"{key}:")
        ]
        path.write_text("\n".join([*lines, rest, ""]))
        return path

    return write


QUOTE_NO, QUOTE_YES = "quote it: 'no'", "quote it: 'yes'"
NOT_TEXT = [  # YAML, dotted place, what was read, what to do
    ("word: no", "task.word", "False (bool)", QUOTE_NO),
    ("word: off", "task.word", "False (bool)", QUOTE_NO),
    ("word: NO", "task.word", "False (bool)", QUOTE_NO),
    ("word: on", "task.word", "True (bool)", QUOTE_YES),
    ("word: 123", "task.word", "123 (int)", "quote it: '123'"),
    ("word: 0x1F", "task.word", "31 (int)", "quote it: '31'"),
    ("word: 1e3", "task.word", "1000.0 (float)", "quote it: '1000.0'"),
    ("word: 3.10", "task.word", "3.1 (float)", "quote it: '3.1'"),
    ("word: .nan", "task.word", "nan (float)", "quote it"),
    ("maybe: yes", "task.maybe", "True (bool)", QUOTE_YES),
    ("maybe: 7", "task.maybe", "7 (int)", "quote it: '7'"),
    ("words: [no, yes]", "task.words[0]", "False (bool)", QUOTE_NO),
    ("words: [a, 5]", "task.words[1]", "5 (int)", "quote it: '5'"),
    ("words: [a, ~]", "task.words[1]", "null", "quote it"),
    ("words:\n- a\n-", "task.words[1]", "null", "quote it"),
    ("pair: [on]", "task.pair[0]", "True (bool)", QUOTE_YES),
    ("paths: {no: x}", "task.paths", "False (bool)", QUOTE_NO),
    ("paths: {2024: x}", "task.paths", "2024 (int)", "quote it: '2024'"),
    ("paths: {a: off}", "task.paths.a", "False (bool)", QUOTE_NO),
    ("deep: {a: [x, no]}", "task.deep.a[1]", "False (bool)", QUOTE_NO),
    ("more: {no: 1}", "task.more", "False (bool)", QUOTE_NO),
    ("more: {a: {b: [{no: 1}]}}", "task.more.a.b.0", "False (bool)", QUOTE_NO),
    ("inner: {label: yes}", "task.inner.label", "True (bool)", QUOTE_YES),
]


@pytest.mark.parametrize(("text", "place", "read", "hint"), NOT_TEXT)
def test_what_is_no_text_in_a_file(write, text, place, read, hint):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {place}: ")
    assert f"got {read}" in message
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "place", "read", "hint"), [case for case in NOT_TEXT if "\n" not in case[0]]
)
def test_what_is_no_text_on_the_command_line(write, text, place, read, hint):
    key, _, value = text.partition(": ")
    with pytest.raises(ConfigError) as caught:
        load_config(write(), [f"task.{key}={value}"])
    message = str(caught.value)
    assert message.startswith(f"command line: {place}: ")
    assert f"got {read}" in message
    assert hint in message


@pytest.mark.parametrize(
    "key", ["name", "output", "device", "target.name", "target.pretrained", "optimizer.schedule"]
)
@pytest.mark.parametrize("value", ["no", "12", "1.5"])
def test_keys_of_the_run_that_are_text(write, key, value):
    with pytest.raises(
        ConfigError,
        match=rf"^command line: {key}: expected (str|the name of a .*), got .*quote it: '{value}'",
    ):
        load_config(write(), [f"{key}={value}"])


def test_what_is_quoted_is_text(write):
    config = load_config(
        write(
            "word: 'no'\nmaybe: \"123\"\nwords: ['yes', '007', '1e3', '']\npaths: {'no': 'off', '1': '2'}\n"
            "inner: {label: |-\n  on\n  }".replace("|-\n  on\n  }", "'on'}")
        ),
        ["name='0123'"],
    )
    assert (config.task.word, config.task.maybe, config.name) == ("no", "123", "0123")
    assert config.task.words == ["yes", "007", "1e3", ""]
    assert config.task.paths == {"no": "off", "1": "2"}
    assert config.task.inner.label == "on"


def test_text_that_only_looks_odd_stays_text(write):
    config = load_config(
        write("word: 2024-01-01\nwords: [n, y, Nope, 1.2.3, v1, 08, 1-2, cuda:0, 'a: b']")
    )
    assert config.task.word == "2024-01-01"
    assert config.task.words == ["n", "y", "Nope", "1.2.3", "v1", "08", "1-2", "cuda:0", "a: b"]


def test_what_was_loaded_reads_back(write, tmp_path):
    config = load_config(
        write(
            "word: 'no'\nwords: ['0123', '12:30', 'null', '~']\npaths: {'no': '1'}\nshares: {3: 0.5}"
        )
    )
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0123", "0123 is octal in YAML, 83; write 123, or quote it: '0123'"),
        ("-017", "-017 is octal in YAML, -15; write 17, or"),
        ("12:30", "12:30 is base 60 in YAML, 750; quote it: '12:30'"),
        ("1:30.5", "1:30.5 is base 60 in YAML, 90.5; quote it"),
    ],
)
@pytest.mark.parametrize("key", ["word", "count", "more"])
def test_numbers_that_are_not_what_they_look_like(write, key, value, words):
    path = write(f"{key}: {value}" if key != "more" else f"more: {{a: [1, {value}]}}")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}, line 3: {words}")
    with pytest.raises(ConfigError) as caught:
        load_config(
            write(), [f"task.{key}={value}" if key != "more" else f"task.more={{a: {value}}}"]
        )
    assert str(caught.value).startswith(f"command line: task.{key}: {words}")


def test_an_octal_key(write):
    with pytest.raises(ConfigError, match=r"line 3: 010 is octal in YAML, 8; write 10"):
        load_config(write("shares: {010: 0.5}"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("1.e-3", 0.001),
        ("'1e-3'", 0.001),
        ("5", 5.0),
        ("1_000.5", 1000.5),
        ("+2.5", 2.5),
    ],
)
def test_numbers_in_every_way_of_writing_them(write, text, value):
    assert load_config(write(f"rate: {text}")).task.rate == value
    assert load_config(write(), [f"optimizer.lr={text}"]).optimizer.lr == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("count: yes", "task.count: expected int, got True (bool)"),
        ("rate: on", "task.rate: expected float, got True (bool)"),
        ("rate: 1,5", "task.rate: expected float, got '1,5' (str)"),
        ("flag: 1", "task.flag: expected true or false, got 1 (int)"),
        ("flag: 2", "task.flag: expected true or false, got 2 (int)"),
        ("flag: 0.0", "task.flag: expected true or false, got 0.0 (float)"),
        ("flag: maybe", "task.flag: expected bool, got 'maybe' (str)"),
        ("shares: {yes: 0.5}", "task.shares: expected keys that are int, got True (bool)"),
        ("shares: {x: 0.5}", "task.shares: expected keys that are int, got 'x' (str)"),
        ("shares: {1: yes}", "task.shares: expected dict[int, float]"),
        ("1: x", "unknown key task.'1' (int)"),
        ("no: x", "unknown key task.'False' (bool); a bare no"),
        ("inner: {no: x}", "unknown key task.inner.'False' (bool)"),
    ],
)
def test_other_types_are_not_bent_either(write, text, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(write(text))


def test_numbers_as_keys(write):
    assert load_config(write("shares: {3: 0.5, '4': 1}")).task.shares == {3: 0.5, 4: 1.0}
    assert load_config(write("shares: {3: 0.5}"), ["task.shares.8=0.1"]).task.shares == {
        3: 0.5,
        8: 0.1,
    }


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("method: no", "method: expected a section or a name, got False (bool); a bare no"),
        ("method: {name: no}", "method.name: expected str, got False; a bare no"),
        ("method: 12", "method: expected a section or a name, got 12 (int)"),
        ("reference: no", "reference: expected a section, got False (bool)"),
        ("no: 3", "unknown key 'False' (bool); a bare no"),
        ("smoke_overrides: {1: 2}", "expected keys that are str, got 1 (int)"),
        (
            "reference: {name: m, train: {no: 1}}",
            "reference.train: expected keys that are str, got False (bool)",
        ),
        (
            "compare: {methods: {no: {name: _plain}}}",
            "compare.methods: expected keys that are str, got False (bool)",
        ),
        (
            "compare: {methods: {a: {name: no}}}",
            "compare.methods.a.name: expected str, got False; a bare no",
        ),
        ("compare: {methods: {a: no}}", "compare.methods"),
        ("seed: 1\nseed: 2", "not valid YAML: found duplicate key seed"),
        ("compare:\n  seeds: [1]\n  seeds: [2]", "not valid YAML: found duplicate key seeds"),
        ("compare:\n\tseeds: [1]", "not valid YAML: found character"),
        ("null: 3", "NoneType"),
        ("name: !!set {a}", "run.yaml: "),
        ("name: !odd x", "not valid YAML"),
        ("name: a\n---\nname: b", "not valid YAML"),
    ],
)
def test_sections_of_the_run(write, rest, words, capsys):
    path = write(rest=rest)
    assert main(["train", str(path)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert str(path) in err
    assert err.count("\n") == 1


def test_smoke_overrides_with_a_number_as_key(write):
    with pytest.raises(ConfigError, match=r"smoke_overrides: unknown key '1' \(int\)"):
        load_config(write(rest="smoke: true\nsmoke_overrides: {1: 2}"))


@pytest.mark.parametrize(
    "override", ["method={a: 1, a: 2}", "task.more={a: 1, a: 2}", "task.words=[a", "task.more=\t{"]
)
def test_overrides_that_are_no_yaml(write, override):
    with pytest.raises(ConfigError, match=r"^command line: [\w.]+: cannot read the value"):
        load_config(write(), [override])


def test_a_file_with_a_byte_order_mark(write):
    path = write("word: x")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path).task.word == "x"


def test_a_key_of_another_method_is_told_as_that(write):
    with pytest.raises(
        ConfigError, match=r"run\.yaml: method\.tail_share is a key of _other, not of _plain$"
    ):
        load_config(write(rest="method: {name: _plain, tail_share: 1}"))
    for name, key, owners in (
        ("drrho", "share", "jest, rho1, rho_loss, soft_rho"),
        ("erm", "penalty", "group_dro"),
    ):
        with pytest.raises(
            ConfigError, match=rf"^command line: method\.{key} is a key of {owners}, not of {name}$"
        ):
            load_config(write(), [f"method={name}", f"method.{key}=0.5"])
    with pytest.raises(ConfigError, match=r"compare\.methods\.x\.share is a key of .*, not of erm"):
        load_config(write(rest="compare: {methods: {x: {name: erm, share: 0.5}}}"))
    with pytest.raises(
        ConfigError, match=r"unknown key 'method\.taus'; did you mean 'method\.tau'"
    ):
        load_config(write(), ["method=erm", "method.taus=1"])


# ---- exit codes
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.tau=-1"], "method (drrho): tau must be"),
        (["method.divergence=kll"], "method.divergence: no divergence 'kll'; known: chi2"),
        (["method.strength=yes"], "strength"),
        (["method=rho1"], "method.name: rho1 works on losses of a token, not of an example"),
        (["method=doremi"], "method.name: doremi weights groups, and there are none"),
        (
            ["method=rho_loss", "method.share=2"],
            "method (rho_loss): share must lie in (0, 1], got 2.0",
        ),
        (["reference=null"], "method.name: drrho needs a reference"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare", "cache"])
def test_a_wrong_config_is_exit_code_2(tmp_path, command, overrides, words, capsys):
    path = toys.write_config(tmp_path)
    line = [command, str(path), "task.kind=units", *overrides]
    if command == "compare":
        line.append('compare.methods={x: "${method}"}')
    if command == "cache" and overrides == ["reference=null"]:
        words = "reference: the config names none"
    assert main(line) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("record.json"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.data.class_shares={12: 0.5}"], "task.data.class_shares: no class 12; there are 10"),
        (["target.name=cnx"], "target.name: no model 'cnx'"),
        (["target.options={depth: 3}"], "target.options: cnn takes width, got depth"),
        (["task.data.options={split: x}"], "options: for source 'torchvision' alone"),
    ],
)
def test_a_wrong_option_of_a_task_too(tmp_path, overrides, words, capsys):
    config = str(ROOT / "configs/classification/digits.yaml")
    assert (
        main(["train", config, f"output={tmp_path}", "reference=null", "method=erm", *overrides])
        == 2
    )
    assert words in capsys.readouterr().err


def test_what_fails_while_it_runs_stays_1(tmp_path, capsys):
    assert main(["train", str(toys.write_config(tmp_path)), "task.nan_at=1"]) == 1
    assert "not finite" in capsys.readouterr().err


# ---- the command line
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "compare", "evaluate", "cache"])
def test_only_the_config_is_required(command, capsys):
    assert main([command]) == 2
    assert capsys.readouterr().err.rstrip().endswith("required: CONFIG.yaml")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("tran", "train"),
        ("Train", "train"),
        ("comapre", "compare"),
        ("eval", "evaluate"),
        ("method", "methods"),
        ("bench", "benchmark"),
        ("fly", None),
    ],
)
def test_the_nearest_command(word, near, capsys):
    assert main([word, "x.yaml"]) == 2
    err = capsys.readouterr().err
    assert f"invalid choice: {word!r}" in err
    assert (
        f"did you mean {near!r}?" in err if near else "choose from train, dry-run, compare" in err
    )


def test_every_method_of_ours_has_a_page_with_its_formula_source_and_keys(capsys):
    table = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    every_key = table.partition("\n## Every key\n")[2]
    for name, entry in registered().items():
        if name.startswith("_"):
            continue
        assert main(["methods", name]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        lines = shown.out.splitlines()
        assert lines[0] == f"{name}: {entry.summary}"
        assert any(line.startswith("Formula: ") for line in lines), name
        (source,) = [line for line in lines if line.startswith("Source: ")]
        first = f"| [`{name}`](methods/{name}.md) |"
        row = next(line for line in table.splitlines() if line.startswith(first))
        assert all(number in source for number in re.findall(r"\d{4}\.\d{5}", row)), name
        keys = lines[: max(at for at, line in enumerate(lines) if not line)]  # then the ranges
        for option in (one for one in fields(entry.options) if one.init):
            (line,) = [line for line in keys if line.startswith(f"method.{option.name} ")]
            default = re.search(
                rf"^\| `method\.{option.name}` \([^)]*\b{name}\b[^)]*\) \| ([^|]+) \|",
                every_key,
                re.M,
            )
            assert default is not None
            assert default[1].strip("`") in line, line
            assert len(line.split()) >= 5, line  # a docstring stands behind the type


OUTSIDE = '''
from dataclasses import dataclass, field
from steering.methods import Method, Step, register

@dataclass
class Base:
    scale: float = 1.0
    """Factor of the loss,
    on two lines."""
    silent: int | None = None

@dataclass
class Options(Base):
    needed: str = "???"
    """A word that must be given."""
    parts: list[int] = field(default_factory=lambda: [1, 2])
    """Some numbers."""

@register("outside", Options, units=("example",), groups=True)
def build(options, num_examples, groups):
    """What it does.

    Formula: scale·mean ℓ
    Source: nobody
    """
'''


def test_a_method_from_a_file_has_a_page_too(tmp_path, capsys):
    (tmp_path / "out.py").write_text(OUTSIDE)
    assert main(["methods", f"{tmp_path}/out.py:outside"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "outside: What it does.",
        "Formula: scale·mean ℓ",
        "Source: nobody",
        "Losses of: example; the task needs groups",
    ]
    rows = [re.split(r"  +", line) for line in lines[5:-2]]
    assert rows == [
        ["key", "default", "type", "meaning"],
        ["method.scale", "1.0", "float", "Factor of the loss, on two lines."],
        ["method.silent", "null", "int | null", "–"],
        ["method.needed", "required", "str", "A word that must be given."],
        ["method.parts", "[1, 2]", "list[int]", "Some numbers."],
    ]
    assert lines[-2:] == ["", "It documents no ranges that are worth searching."]


def test_a_method_without_keys_or_words():
    assert method_page(find_method("_plain"))[-3:] == [
        "It has no keys.",
        "",
        "It documents no ranges that are worth searching.",
    ]
    assert field_docs(NoOptions) == {}
    made: Any = type("Made", (), {"__annotations__": {"x": int}, "x": field(default=1)})
    assert field_docs(dataclass(made)) == {}  # no source


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["drro"], "no method 'drro'; did you mean 'drrho'?"),
        (["DRRHO"], "no method 'DRRHO'; known: "),
        (["lr"], "no method 'lr'; known: "),
        (["gone.py:x"], "no such file: gone.py"),
        (["json:x"], "json registers no method 'x'"),
        (["--method", "gone.py:x"], "no such file: gone.py"),
        (["--task", "gone.py:X"], "no such file: gone.py"),
    ],
)
def test_a_method_that_is_not_there(words, expected, capsys):
    assert main(["methods", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("steering: error: ")
    assert expected in shown.err
    assert shown.err.count("\n") == 1


# ---- home folders
# -----------------------------------------------------------------------------------------------------


def test_every_path_of_the_framework_may_start_at_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = toys.write_config(tmp_path)
    name = f"~/{Path(config).name}"
    words = [name, "output=~/out", "reference.cache=~/kept", "task.kind=units"]
    assert main(["train", *words]) == 0, capsys.readouterr().err
    (stored,) = (tmp_path / "kept").glob("*/outputs.json")
    assert json.loads(stored.read_text())["files"]
    (made,) = (tmp_path / "out").glob("*/drrho-seed0/model.safetensors")
    assert main(["evaluate", *words, f"target.checkpoint=~/{made.relative_to(tmp_path)}"]) == 0
    (tmp_path / "duals").mkdir()
    assert main(["train", *words, "method.duals_folder=~/duals", "name=b"]) == 0
    assert not (Path.cwd() / "~").exists()


def test_folders_plugins_and_the_cache_at_home(tmp_path, monkeypatch, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load_config(write(), ["output=~/out", "name=x"])
    assert study_folder(loaded) == tmp_path / "out/x"
    (tmp_path / "plug.py").write_text("VALUE = 3\n")
    assert load_file("~/plug.py", "method.name").VALUE == 3
    monkeypatch.setenv("STEERING_CACHE", "~/caches")
    assert cache_dir("shards") == tmp_path / "caches/shards"
    monkeypatch.delenv("STEERING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert cache_dir("shards") == tmp_path / "xdg/model-steering/shards"


def test_a_user_who_is_not_there():
    assert user_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    with pytest.raises(SteeringError, match=r"no such file: ~nobody-of-that-name/x\.py"):
        load_file("~nobody-of-that-name/x.py", "method.name")
