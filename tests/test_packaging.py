"""What the wheel holds, and that it works: installed into an environment of its own that borrows
this one's packages, from a folder that knows nothing of the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = {"tasks": "steering_tasks", "configs": "steering_configs", "examples": "steering_examples"}


def test_every_folder_is_in_the_wheel():
    settings = SETTINGS["tool"]["setuptools"]
    files = [file for top in ("steering", "tasks") for file in (ROOT / top).rglob("*.py")]
    files += [file for file in (ROOT / "configs").rglob("*.*") if "__pycache__" not in file.parts]
    files += [ROOT / "examples/own_loop.py"]
    folders = {file.parent.relative_to(ROOT).parts for file in files}
    expected = {".".join([NAMES.get(top, top), *below]) for top, *below in folders}
    assert set(settings["packages"]) == expected
    assert settings["package-dir"] == {"steering": "steering"} | {v: k for k, v in NAMES.items()}


def test_all_holds_every_extra():
    extras = SETTINGS["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    names = re.fullmatch(r"model-steering\[(.*)\]", everything)[1].split(",")
    assert sorted(names) == sorted(extras.keys() - {"all", "dev"})


def test_the_table_of_extras_is_true():
    page = (ROOT / "docs/installing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `?(\w+)`? \| [^|]+ \| ([^|]*) \|$", page, re.M))
    rows.pop("extra")
    groups = {"none": SETTINGS["project"]["dependencies"]}
    groups |= SETTINGS["project"]["optional-dependencies"]
    assert rows.keys() == groups.keys()
    for extra in rows.keys() - {"all", "dev"}:
        wanted = {re.match(r"[\w-]+", one)[0] for one in groups[extra]}
        assert set(re.sub(r" \([^)]*\)", "", rows[extra]).split(", ")) == wanted, extra


def _build(folder: Path) -> Path:
    """The wheel of this checkout. Without a setuptools of today pip fetches one, if there is a
    network."""
    source = folder / "source"
    source.mkdir()
    for name in ("steering", *NAMES):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--retries=0", "--timeout=5"]
    if int(version("setuptools").partition(".")[0]) >= 77:
        words += ["--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*words, "-w", str(folder), str(source)], capture_output=True, text=True, timeout=300
    )
    if done.returncode and "--no-index" not in words:
        pytest.skip("needs setuptools 77 (pip install 'model-steering[dev]'), or a network")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python that has the wheel, and of the checkout nothing."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = _build(folder)
    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    zipfile.ZipFile(wheel).extractall(site)  # what an installer does with a wheel of Python alone
    # Behind the wheel, so that its packages win; .pth files in there, such as that of an editable
    # installation of ours, are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def run(installed, tmp_path):
    """Run Python words in a folder of a user's own that has packages named as ours."""
    for name in ("tasks", "configs", "examples"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('theirs')")
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "RANK", "VIRTUAL_ENV")
    }

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(installed), *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=300,
        )

    return call


def test_the_wheel_takes_no_common_name(run):
    code = (
        "import importlib.util, pathlib, sys, steering, steering_tasks\n"
        "sys.path.remove('')\n"
        "print(pathlib.Path(steering.__file__).parents[1] == pathlib.Path(steering_tasks.__file__).parents[1])\n"
        "print([importlib.util.find_spec(name) for name in ('tasks', 'configs', 'examples', 'tests')])"
    )
    done = run("-c", code)
    assert done.stdout.splitlines() == ["True", str([None] * 4)], done.stderr


def test_the_ten_lines_of_the_readme_run(run):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    done = run("-c", re.search(r"```python\n(.*?)```", readme, re.S)[1])
    assert done.returncode == 0, done.stderr


def test_configs_and_what_they_name_come_with_the_wheel(run, tmp_path):
    listed = run("-m", "steering", "configs").stdout
    ours = [
        f"{file.parent.name}/{file.stem}"
        for file in sorted((ROOT / "configs").glob("*/*.yaml"))
        if re.search(rf"^{file.parent.name}/{file.stem} ", listed, re.M)
    ]
    assert len(ours) == len([*(ROOT / "configs").glob("*/*.yaml")])
    assert str(ROOT) not in listed
    # Models in JSON files beside the config, and a base that comes with the package.
    (tmp_path / "mine.yaml").write_text("base: language/stdlib\nname: mine\n")
    words = ["smoke=true", "reference=null", "method=erm", "train.samples=32"]
    done = run("-m", "steering", "train", "mine.yaml", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/mine-smoke/erm-seed0/record.json").is_file()
    # An example that is a task.
    code = "from steering.config import load_config; print(load_config('audio/digits').task.name)"
    assert run("-c", code).stdout.strip() == "examples/audio_digits.py:Audio"
