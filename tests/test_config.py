"""Configs: what is accepted, what is refused and how the message reads, and what a config becomes
again as a file."""

import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from steering.config import (
    ConfigError,
    MethodConfig,
    ModelSpec,
    ReferenceConfig,
    RunConfig,
    load_config,
    to_yaml,
    with_overrides,
)
from steering.methods import registry

TASK = """
from __future__ import annotations
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from steering.task import Task

class Split(Enum):
    seen = 1
    new = 2

@dataclass
class Noise:
    fraction: float = 0.0
    kind: str = "shuffle"

@dataclass
class Options:
    name: str
    size: int = 32
    fonts: tuple[str, ...] = ("sans",)
    split: Split = Split.seen
    noise: Noise = field(default_factory=lambda: Noise(fraction=0.25))
    extra: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None

    def __post_init__(self):
        if self.size % 8:
            raise ValueError(f"size must be a multiple of 8, got {self.size}")

class Fake(Task):
    Options = Options
"""

CONFIG = """\
seed: 3
task: {name: TASK_NAME, noise: {kind: swap}}
target: {name: big}
reference: {name: small, cache: auto, train: {train.samples: 64, reference: null}}
method: {name: _test_method, tau: 0.05}
optimizer: {lr: 1e-3}
train: {samples: 1000, batch_size: 10}
compare:
  methods:
    plain: {name: _test_plain}
    steered: {name: _test_method, tau: 0.1}
smoke_overrides: {train.samples: 20, task.size: 16}
"""


@dataclass
class MethodOptions:
    tau: float
    radius: float | None = None
    shape: list[float] = field(default_factory=lambda: [1.0])


@dataclass
class PlainOptions:
    pass


@pytest.fixture(autouse=True)
def _methods(monkeypatch):
    """Two methods that are gone after the test, so that tests over all registered methods never
    meet them."""
    for name, options in {"_test_method": MethodOptions, "_test_plain": PlainOptions}.items():
        monkeypatch.setitem(
            registry._REGISTRY, name, registry.Entry(name, options, MethodOptions, "")
        )


_NUMBERS = itertools.count()


@pytest.fixture
def task_name(tmp_path, monkeypatch):
    """A task as an importable module: its classes are the same ones at every load."""
    module = f"config_test_task_{next(_NUMBERS)}"
    (tmp_path / f"{module}.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{module}:Fake"


@pytest.fixture
def write(tmp_path, task_name):
    def write(text: str = CONFIG, old: str = "", new: str = "") -> Path:
        assert old in text
        path = tmp_path / "study.yaml"
        path.write_text(text.replace(old, new).replace("TASK_NAME", task_name))
        return path

    return write


@pytest.fixture
def refused(write):
    """The message with which a changed file, or an override of the good one, is refused."""

    def refused(*overrides: str, old: str = "", new: str = "") -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(write(old=old, new=new) if old else write(), overrides)
        return str(caught.value)

    return refused


def test_every_section_is_typed(write):
    config = load_config(write())
    assert config.task.noise.kind == "swap"
    assert config.task.noise.fraction == 0.25  # the default of the outer class, not of Noise
    assert config.task.fonts == ("sans",)
    assert config.task.split.name == "seen"
    assert type(config.target) is ModelSpec
    assert config.reference == ReferenceConfig(
        "small", cache="auto", train={"train.samples": 64, "reference": None}
    )
    assert config.method == MethodConfig("_test_method", MethodOptions(tau=0.05))
    assert config.optimizer.lr == 1e-3
    assert config.optimizer.betas == (0.9, 0.98)
    assert (config.train.samples, config.train.batch_size, config.seed) == (1000, 10, 3)
    assert config.compare.seeds == [0]
    assert config.compare.methods["steered"] == {"name": "_test_method", "tau": 0.1}


def test_values_are_plain_python(write):
    def leaves(value):
        children = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple)
            else None
        )
        return {type(value)} if children is None else {type(value)}.union(*map(leaves, children))

    config = load_config(write(), ["task.extra={a: [1, {b: 2}]}"])
    assert config.task.extra == {"a": [1, {"b": 2}]}
    modules = {kind.__module__.partition(".")[0] for kind in leaves(asdict(config))}
    assert "omegaconf" not in modules


def test_a_task_from_a_file(tmp_path, write):
    (tmp_path / "my_task.py").write_text(TASK)
    config = load_config(write(), [f"task={tmp_path}/my_task.py:Fake", "task.size=8"])
    assert config.task.size == 8
    assert config.task.noise.kind == "shuffle"  # another task starts afresh


@pytest.mark.parametrize("name", ["nowhere.py:Fake", "no_such_task"])
def test_a_task_that_cannot_be_found(refused, name):
    message = refused(f"task.name={name}")
    assert message.startswith("command line: task.name: no ")
    assert name.removesuffix(":Fake") in message


def test_overrides(write):
    config = load_config(
        write(),
        [
            "train.samples=50",
            "reference=null",
            "optimizer.betas=[0.5,0.6]",
            "train.clip_norm=null",
            "name=a=b",
        ],
    )
    assert config.train.samples == 50
    assert config.reference is None
    assert config.optimizer.betas == (0.5, 0.6)
    assert config.train.clip_norm is None
    assert config.name == "a=b"


def test_of_two_overrides_the_deeper_wins_then_the_later(write):
    config = load_config(
        write(), ["method.tau=0.5", "seed=1", "method={name: _test_method, tau: 1}", "seed=2"]
    )
    assert config.method.options.tau == 0.5
    assert config.seed == 2


def test_a_method_by_name(write):
    assert load_config(write(), ["method=_test_plain"]).method == MethodConfig(
        "_test_plain", PlainOptions()
    )
    same = load_config(write(), ["method=_test_method", "method.radius=2"]).method.options
    assert same == MethodOptions(tau=0.05, radius=2.0)  # the section of that name is kept
    in_file = write(old="{name: _test_method, tau: 0.05}", new="_test_plain")
    assert load_config(in_file).method.name == "_test_plain"


def test_an_override_opens_a_section(write):
    path = write(old="reference: {", new="reference: null\nname: x #")
    assert load_config(path, ["reference.name=small"]).reference == ReferenceConfig("small")


def test_interpolation_follows_the_overrides(write):
    path = write(old="tau: 0.05", new="tau: '${optimizer.lr}'")
    assert load_config(path, ["optimizer.lr=0.5"]).method.options.tau == 0.5
    path = write(old="tau: 0.05", new="tau: '${optimizer.rl}'")
    with pytest.raises(ConfigError, match=r"study\.yaml: method\.tau: .*optimizer\.rl"):
        load_config(path)
    whole = write(
        old="method: {name: _test_method, tau: 0.05}", new="method: ${compare.methods.steered}"
    )
    assert load_config(whole).method.options.tau == 0.1


def test_smoke_comes_before_the_command_line(write):
    assert load_config(write()).smoke_overrides == {"train.samples": 20, "task.size": 16}
    config = load_config(write(), ["smoke=true"])
    assert (config.train.samples, config.task.size, config.smoke_overrides) == (20, 16, {})
    config = load_config(
        write(), ["smoke=true", "train.samples=30", "smoke_overrides.train.batch_size=5"]
    )
    assert (config.train.samples, config.train.batch_size) == (30, 5)
    later = with_overrides(load_config(write()), {"smoke": True})
    assert later.train.samples == 20


def test_smoke_overrides_reach_the_run_of_the_reference(write):
    path = write(old="task.size: 16", new="reference.train.train.samples: 12")
    assert load_config(path, ["smoke=true"]).reference.train == {
        "train.samples": 12,
        "reference": None,
    }


@pytest.mark.parametrize(
    ("old", "new", "key", "hint"),
    [
        (
            "batch_size: 10",
            "batch_size: 10, batchsize: 1",
            "train.batchsize",
            "did you mean 'train.batch_size'?",
        ),
        ("seed: 3", "sede: 3", "sede", "did you mean 'seed'?"),
        ("seed: 3", "batch_size: 3", "batch_size", "did you mean 'train.batch_size'?"),
        ("kind: swap", "knd: swap", "task.noise.knd", "did you mean 'task.noise.kind'?"),
        ("tau: 0.05", "tau: 0.05, raduis: 1", "method.raduis", "did you mean 'method.radius'?"),
        (
            "tau: 0.1",
            "tao: 0.1",
            "compare.methods.steered.tao",
            "did you mean 'compare.methods.steered.tau'?",
        ),
        ("cache: auto", "cahce: auto", "reference.cahce", "did you mean 'reference.cache'?"),
        (
            "{lr: 1e-3}",
            "{zzzzzz: 1}",
            "optimizer.zzzzzz",
            "known: optimizer.lr, optimizer.weight_decay",
        ),
        ("train.samples: 20", "trian.samples: 20", "trian", "did you mean 'train'?"),
        (
            "{train.samples: 64",
            "{train.smaples: 64",
            "train.smaples",
            "did you mean 'train.samples'?",
        ),
    ],
)
def test_unknown_keys_name_the_nearest(refused, old, new, key, hint):
    message = refused(old=old, new=new)
    assert "study.yaml: " in message
    assert f"unknown key {key!r}" in message
    assert hint in message


def test_unknown_key_of_an_override_names_the_command_line(refused):
    assert refused("train.smaples=5").startswith("command line: unknown key 'train.smaples'")
    assert refused("trian.samples=5").startswith(
        "command line: unknown key 'trian'; did you mean 'train'?"
    )
    assert refused("tau=1") == "command line: unknown key 'tau'; did you mean 'method.tau'?"
    assert refused("seeds=5") == "command line: unknown key 'seeds'; did you mean 'compare.seeds'?"
    assert refused("smoke=true", "smoke_overrides.sed=5").startswith(
        "command line: smoke_overrides: unknown key 'sed'"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("samples: 1000", "samples: many", "train.samples: expected int, got 'many' (str)"),
        ("samples: 1000", "samples: 1000.5", "train.samples: expected int, got 1000.5 (float)"),
        ("seed: 3", "seed: null", "seed: expected int, got null"),
        (
            "{lr: 1e-3}",
            "{betas: [0.9]}",
            "optimizer.betas: expected tuple[float, float], got [0.9] (list)",
        ),
        (
            "{lr: 1e-3}",
            "5",
            "optimizer: expected the name of an optimizer or a section, got 5 (int)",
        ),
        (
            "{lr: 1e-3}",
            "null",
            "optimizer: expected the name of an optimizer or a section, got null",
        ),
        ("{kind: swap}", "[swap]", "task.noise: expected a section, got ['swap'] (list)"),
        ("tau: 0.05", "tau: warm", "method.tau: expected float, got 'warm' (str)"),
        ("tau: 0.1", "tau: hot", "compare.methods.steered.tau: expected float, got 'hot' (str)"),
        ("{name: _test_plain}", "_test_plain", "compare.methods: expected dict[str, dict[str, "),
        ("cache: auto", "cache: [a]", "reference.cache: expected str | null, got ['a'] (list)"),
        (
            "noise: {kind: swap}",
            "split: other",
            "task.split: expected one of seen, new, got 'other' (str)",
        ),
        ("seed: 3", "smoke: maybe", "smoke: expected true or false, got 'maybe'"),
        ("{name: big}", "{name: [big]}", "target.name: expected str, got ['big'] (list)"),
        ("_test_method, tau: 0.05", "[1]", "method.name: expected str, got [1]"),
    ],
)
def test_mistyped_values_name_key_type_value_and_file(refused, old, new, expected):
    message = refused(old=old, new=new)
    assert "study.yaml: " in message
    assert expected in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("samples: 1000, ", "", "train.samples is missing; expected int"),
        ("samples: 1000", "samples: '???'", "train.samples is missing; expected int"),
        ("train: {samples: 1000, batch_size: 10}", "", "train.samples is missing"),
        ("target: {name: big}", "", "target.name is missing; expected str"),
        ("name: small, ", "", "reference.name is missing"),
        (", tau: 0.05", "", "method.tau is missing; expected float"),
        ("method: {name: _test_method, tau: 0.05}", "", "method.name is missing"),
        ("method: {name: _test_method, tau: 0.05}", "method: ???", "method.name is missing"),
        ("task: {name: TASK_NAME, noise: {kind: swap}}", "", "task.name is missing"),
    ],
)
def test_missing_values(refused, old, new, expected):
    message = refused(old=old, new=new)
    assert "study.yaml: " in message
    assert expected in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=0", "expected at least 1, got 0"),
        ("train.samples=9", "9 is less than one batch, train.batch_size 10"),
        ("train.accumulation=3", "expected a divisor of train.batch_size 10, got 3"),
        ("train.accumulation=0", "expected at least 1, got 0"),
        ("train.precision=fp8", "expected fp32, bf16 or fp16, got 'fp8'"),
        ("train.clip_norm=0", "expected null or a positive number, got 0.0"),
        ("train.threads=0", "expected at least 1, got 0"),
        ("train.log_every=0", "expected at least 1, got 0"),
        ("train.workers=-1", "expected at least 0, got -1"),
        ("optimizer.warmup=-1", "expected a fraction in [0, 1) or a number of steps, got -1.0"),
        ("optimizer.warmup=2.5", "expected a fraction in [0, 1) or a number of steps, got 2.5"),
        ("optimizer.lr=nan", "expected at least 0, got nan"),
        ("optimizer.lr=.inf", "expected at least 0, got inf"),
        ("optimizer.betas=[0.9,1]", "expected two numbers in [0, 1), got (0.9, 1.0)"),
        ("optimizer.eps=0", "expected a positive number, got 0.0"),
        ("optimizer.weight_decay=-1", "expected at least 0, got -1.0"),
        (
            "optimizer.schedule=square",
            "no schedule of a learning rate 'square'; known: constant, cosine, linear; "
            "or give 'file.py:name'",
        ),
        ("optimizer.final_lr=2", "expected a fraction in [0, 1], got 2.0"),
        ("device=gpu", "expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("seed=-1", "expected at least 0, got -1"),
        ("name=''", "expected a name that is not empty, got ''"),
        ("compare.seeds=[1,1]", "expected one or more different numbers >= 0, got [1, 1]"),
        ("compare.seeds=[]", "expected one or more different numbers >= 0, got []"),
    ],
)
def test_ranges(refused, override, expected):
    key = override.partition("=")[0]
    assert refused(override) == f"command line: {key}: {expected}"


@pytest.mark.parametrize(
    "override", ["optimizer.warmup=500", "optimizer.warmup=0", "device=cuda:1", "train.threads=2"]
)
def test_ends_of_the_ranges(write, override):
    load_config(write(), [override])


def test_the_options_own_check_is_a_config_error(refused):
    message = refused("task.size=9")
    assert message.endswith("study.yaml, command line: task: size must be a multiple of 8, got 9")


def test_an_unknown_method_names_the_nearest(refused):
    assert refused("method=_test_methd").startswith(
        "command line: method.name: no method '_test_methd'; did you mean '_test_method'?"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.samples", "'train.samples' is no override; write key=value"),
        ("=3", "'=3' is no override"),
        ("train..samples=3", "'train..samples=3' is no override"),
        ("train.samples=[1", "train.samples: cannot read the value '[1'"),
        ("seed.x=1", "seed.x: seed is a value, not a section"),
    ],
)
def test_overrides_that_cannot_be_read(refused, override, expected):
    assert refused(override).startswith(f"command line: {expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"seed: 1\ntrain: {samples: 3\ntask: x\n", ", line 3: not valid YAML"),
        (b"seed: 1\nseed: 2\n", ", line 2: not valid YAML: found duplicate key seed"),
        (b"a: b: c\n", ", line 1: not valid YAML"),
        (b"- 1\n- 2\n", "expected sections"),
        (b"\xff\xfe\x00", "study.yaml: "),
        (b"", "task.name is missing"),
        (b"seed: ${\n", "study.yaml: "),
        (b"1: 2\n", "unknown key '1'"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, expected):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the config .*absent\.yaml: No such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["smoke=true", "train.samples=40"],  # the command line still wins after the second load
        ["reference=null", "name='1e-3'", "output='null'", "task.split=new", "task.fonts=[a, '7']"],
        ["task.extra={path: 'a\\${b}', n: null, deep: {x: [1.5]}}", "optimizer.eps=1e-12"],
    ],
)
def test_yaml_reads_back_equal(write, tmp_path, overrides):
    config = load_config(write(), overrides)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again) == config
    assert to_yaml(load_config(again)) == to_yaml(config)
    assert with_overrides(config, {}) == config


def test_a_dollar_sign_is_kept(write):
    assert load_config(write(), ["task.extra={path: 'a\\${b}'}"]).task.extra == {"path": "a${b}"}


def test_with_overrides(write):
    config = load_config(write())
    changed = with_overrides(
        config,
        {"reference": None, "target": ModelSpec("small"), "seed": 9, **config.reference.train},
    )
    assert (changed.reference, changed.target, changed.seed) == (None, ModelSpec("small"), 9)
    assert changed.train.samples == 64
    assert config == load_config(write())  # untouched
    with pytest.raises(ConfigError, match=r"^the study: train\.samples: expected int"):
        with_overrides(config, {"train.samples": "x"}, "the study")


def test_every_field_is_documented():
    import ast
    import inspect

    import steering.schema

    for node in ast.parse(inspect.getsource(steering.schema)).body:
        if isinstance(node, ast.ClassDef):
            for this, following in itertools.pairwise([*node.body, ast.Pass()]):
                if isinstance(this, ast.AnnAssign):
                    assert isinstance(following, ast.Expr), (
                        f"{node.name}.{ast.unparse(this.target)} has no docstring"
                    )


def test_run_config_is_frozen(write):
    config = load_config(write())
    assert isinstance(config, RunConfig)
    with pytest.raises(AttributeError):
        config.seed = 1
