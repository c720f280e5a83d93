"""The command line: what it calls, what it prints where, and the exit codes that scripts trust."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType

import pytest

from steering.cli import main
from steering.config import RunConfig
from steering.errors import SteeringError
from steering.methods import registry

COMMANDS = ["train", "compare", "evaluate", "cache"]

TASK = """
from dataclasses import dataclass
from steering.task import Task

@dataclass
class Options:
    name: str

class Fake(Task):
    Options = Options
"""


@dataclass
class NoOptions:
    pass


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The path of a good config of a fake task and a fake method."""
    monkeypatch.setitem(
        registry._REGISTRY, "_test_cli", registry.Entry("_test_cli", NoOptions, NoOptions, "")
    )
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    (tmp_path / "fake.py").write_text(TASK)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"task: {tmp_path}/fake.py:Fake\ntarget: m\nmethod: _test_cli\ntrain: {{samples: 8, batch_size: 4}}\n"
    )
    return str(path)


@pytest.fixture
def protocol(monkeypatch):
    """Put a function in the place of every protocol; returns the calls as (function, config)."""
    calls = []

    def install(error: BaseException | None = None) -> list[tuple[str, RunConfig]]:
        for module, names in {
            "single": ["train", "evaluate", "cache"],
            "studies": ["compare"],
        }.items():
            fake = ModuleType(f"steering.commands.{module}")
            for name in names:
                setattr(fake, name, _recorder(name, calls, error))
            monkeypatch.setitem(sys.modules, fake.__name__, fake)
        return calls

    return install


def _recorder(name, calls, error):
    def run(config):
        calls.append((name, config))
        if error is not None:
            raise error

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_calls_its_protocol(config, protocol, command, capsys):
    calls = protocol()
    assert main([command, config, "train.samples=12", "name=a b"]) == 0
    [(name, given)] = calls
    assert name == command
    assert isinstance(given, RunConfig)
    assert (given.train.samples, given.train.batch_size, given.name) == (12, 4, "a b")
    assert capsys.readouterr().err == ""


def test_the_protocols_exist_under_the_names_that_are_called():
    import steering.commands.single
    import steering.commands.studies

    assert all(
        callable(getattr(steering.commands.studies, name))
        for name in ("compare", "study", "report", "runs")
    )
    assert all(
        callable(getattr(steering.commands.single, name)) for name in ("train", "evaluate", "cache")
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_flag_may_stand_anywhere(config, monkeypatch, place):
    calls = []
    fake = ModuleType("steering.commands.single")
    fake.cache = lambda run, estimate=False: calls.append((run.train.samples, estimate))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    words = [config, "train.samples=12"]
    assert main(["cache", *words[:place], "--estimate", *words[place:]]) == 0
    assert main(["cache", *words]) == 0
    assert calls == [(12, True), (12, False)]


def test_failure_at_run_time_is_one_line(config, protocol, capsys):
    protocol(SteeringError("shard 3 is empty\nand so is shard 4"))
    assert main(["train", config]) == 1
    assert capsys.readouterr().err == "steering: error: shard 3 is empty and so is shard 4\n"


def test_a_bug_keeps_its_traceback(config, protocol, capsys):
    protocol(ZeroDivisionError("ours"))
    assert main(["train", config]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "ZeroDivisionError: ours" in err


def test_interrupt(config, protocol, capsys):
    protocol(KeyboardInterrupt())
    assert main(["train", config]) == 130
    assert capsys.readouterr().err == "steering: interrupted\n"


def test_a_wrong_config(config, protocol, capsys):
    calls = protocol()
    assert main(["train", config, "train.smaples=1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "steering: error: command line: unknown key 'train.smaples'; did you mean 'train.samples'?"
    )
    assert err.count("\n") == 1
    assert main(["compare", config + ".absent"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "required: COMMAND; `steering --help` lists them"),
        (["fly", "x.yaml"], "invalid choice: 'fly'"),
        (["train"], "required: CONFIG.yaml"),
        (["train", "x.yaml", "samples"], "'samples' is no override; write key=value"),
        (["train", "x.yaml", "samples", "=", "3"], "'samples' is no override"),
        (["train", "x.yaml", "=3"], "'=3' is no override"),
        (["train", "x.yaml", "--seed=3"], "unknown option '--seed=3'; overrides have no dashes"),
        (["train", "x.yaml", "--verbose"], "unknown option '--verbose'; the only option is --help"),
        (
            ["train", "x.yaml", "--dry-run"],
            "dry-run is a command: steering dry-run CONFIG key=value",
        ),
        (
            ["study", "gallery", "x.yaml", "--csv"],
            "unknown option '--csv'; a study's options are keys: studies.gallery.csv=VALUE: "
            "steering study NAME CONFIG key=value ...",
        ),
        (["study", "a.py:sweep", "x.yaml", "--to-do=3"], "keys: studies.sweep.to_do=3: steering"),
        (["study", "compare", "x.yaml", "--seeds=[0]"], "keys: compare.seeds=[0]: steering"),
    ],
)
def test_wrong_usage(words, expected, capsys):
    assert main(words) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_a_command_line_that_parses(command, config, protocol, capsys):
    assert main([command, "--help"]) == 0
    lines = [
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(f"  steering {command} ")
    ]
    assert lines
    assert all(words[2] == "configs/clip/glyphs.yaml" for words in lines)
    calls = protocol()
    assert main([command, config, *lines[0][3:]]) == 0  # the first example, on a config of ours
    assert calls[0][1].smoke


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"steering {version('model-steering')}\n"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_other_ranks_are_quiet_and_fail_too(config, protocol, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    protocol(SteeringError("the loss is NaN"))
    assert main(["train", config]) == 1
    assert main(["train", config, "seed=x"]) == 2
    assert main(["train"]) == 2
    assert capsys.readouterr().err == ""
    protocol(SteeringError("the loss is NaN"))
    main(["train", config])
    told = json.loads((tmp_path / "error.json").read_text())["message"]
    assert (
        told["message"] == told["extraInfo"]["py_callstack"] == "steering: error: the loss is NaN"
    )


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=60
    )


def test_python_m_steering_passes_the_exit_code_on():
    done = _python("-m", "steering", "fly")
    assert done.returncode == 2
    assert "invalid choice: 'fly'" in done.stderr
    assert _python("-m", "steering", "train", "--help").returncode == 0


def test_help_needs_no_torch():
    code = "import sys, steering.cli; steering.cli.main(['train', '--help']); print('torch' in sys.modules)"
    assert _python("-c", code).stdout.splitlines()[-1] == "False"
