"""`steering configs`, `doctor` and `completion`."""

import subprocess
from pathlib import Path

import pytest

from steering.cli import main
from steering.commands import doctor
from steering.commands.completion import script
from steering.commands.table import NAMES, PLAIN

ROOT = Path(__file__).parents[2]


def test_configs_are_listed(capsys):
    assert main(["configs"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.split() == ["config", "task", "takes", "what", "it", "is"]
    (glyphs,) = [line for line in lines if line.startswith("clip/glyphs ")]
    assert "4 minutes on two cores" in glyphs
    assert glyphs.endswith("40 % of the training names shuffled")  # a pipe gets whole lines


@pytest.mark.parametrize("name", ["clip/glyphs", "clip/glyphs.yaml", "configs/clip/glyphs.yaml"])
def test_a_config_is_printed_as_it_is(name, capsys):
    assert main(["configs", name]) == 0
    assert capsys.readouterr().out == (ROOT / "configs/clip/glyphs.yaml").read_text()


def test_no_such_config(capsys):
    assert main(["configs", "clip/glyps"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "no config 'clip/glyps' in the package; did you mean 'clip/glyphs'?" in told.err


def test_doctor_tells_what_is_there(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line[0] != " "] == [*doctor.SECTIONS]
    for word in ("torch ", "vision ", "processors ", "threads ", "GPUs ", "caches ", "GB free"):
        assert f"  {word}" in out or word in out
    assert f"in {ROOT / 'configs'}" in out


def test_doctor_tells_what_is_wrong(monkeypatch, capsys):
    wanted = {"torch": "<1", "nowhere": ">=2", "numpy": ">=1"}
    monkeypatch.setattr(doctor, "core", lambda: wanted)
    monkeypatch.setattr(doctor, "extras", lambda: {"vision": {"nowhere": ">=2", "numpy": ">=1"}})
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "BUT WANTED <1" in out
    assert "MISSING, wanted >=2" in out
    assert 'missing nowhere: pip install "model-steering[vision]"' in out


def _completed(*words: str) -> list[str]:
    """What bash offers for the last word."""
    text = " ".join(f"'{word}'" for word in words)
    code = f"{script('bash')}\nCOMP_WORDS=(steering {text}) COMP_CWORD={len(words)}\n"
    code += "_steering; printf '%s\\n' \"${COMPREPLY[@]}\""
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True).stdout.split()


def test_bash_completes_commands_configs_and_flags():
    assert set(NAMES) < set(_completed(""))
    assert _completed("comp") == ["compare", "completion"]
    assert _completed("train", "clip/gl") == ["clip/glyphs"]
    assert _completed("cache", "--e") == ["--estimate"]
    assert _completed("cache", "clip/glyphs", "--") == ["--estimate"]
    assert _completed("configs", "language/s") == ["language/stdlib"]
    assert _completed("train", "--e") == _completed("runs", "") == []


def test_zsh_reads_the_same_script():
    assert script("zsh").endswith(script("bash"))
    assert "bashcompinit" in script("zsh").splitlines()[0]


@pytest.mark.parametrize("command", [*PLAIN])
def test_usage_errors_of_commands_without_a_config(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"steering {command}" in capsys.readouterr().out
    assert main([command, "--nonsense"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"steering {command}: error:" in told.err
