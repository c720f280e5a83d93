"""The configs that come with the package, by name, from any folder; a user's own file wins."""

from pathlib import Path

import pytest

from steering import packaged
from steering.cli import main
from steering.config import load_config
from steering.errors import ConfigError
from steering.packaged import config_hint, find_config, packaged_configs, packaged_file
from steering.plugins import load_file
from steering.reading import user_path
from steering.runs.ask import training

ROOT = Path(__file__).parents[1]
NAMES = {
    file.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for file in (ROOT / "configs").rglob("*.yaml")
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_config_loads_from_any_folder(name):
    config = load_config(name)
    assert config == load_config(f"{name}.yaml") == load_config(ROOT / f"configs/{name}.yaml")
    assert config == load_config(f"configs/{name}.yaml")


def test_it_is_the_same_run_wherever_it_is_started(monkeypatch):
    """Its models are JSON files, which count by their content."""
    here = training(load_config("clip/glyphs")).key
    monkeypatch.chdir(ROOT)
    assert training(load_config("configs/clip/glyphs.yaml")).key == here


def test_a_file_of_ones_own_wins(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/glyphs").write_text("base: clip/glyphs\nname: mine\n")
    assert load_config("clip/glyphs").name == "mine"
    (tmp_path / "configs/clip/models").mkdir(parents=True)
    (tmp_path / "configs/clip/models/glyph-target.json").write_text("{}")
    mine = Path("configs/clip/models/glyph-target.json")
    assert user_path(mine) == mine
    other = Path("configs/clip/models/glyph-reference.json")
    assert user_path(other) == ROOT / other


def test_a_base_may_come_with_the_package(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: classification/digits\nname: mine\nseed: 3\n")
    mine, theirs = load_config("mine.yaml"), load_config("classification/digits")
    assert (mine.name, mine.seed) == ("mine", 3)
    assert (mine.task, mine.compare) == (theirs.task, theirs.compare)
    (tmp_path / "mine.yaml").write_text("base: classification/digit\n")
    with pytest.raises(ConfigError, match=r"No such file.*did you mean 'classification/digits'"):
        load_config("mine.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clip/glyps", "did you mean 'clip/glyphs'?"),
        ("glyphs", "did you mean 'clip/glyphs'?"),
        ("digits.yaml", "did you mean 'audio/digits' or 'classification/digits'?"),
        ("zzz", "`steering configs` lists those that come with the package"),
    ],
)
def test_the_nearest_names_are_told(name, hint, capsys):
    assert config_hint(name) == hint
    assert main(["train", name]) == 2
    told = capsys.readouterr().err
    assert told == (
        f"steering: error: cannot read the config {name}: No such file or directory; {hint}\n"
    )


def test_mistakes_name_the_config_as_it_was_typed(capsys):
    assert main(["train", "classification/digits", "train.smaples=3"]) == 2
    assert "command line: unknown key 'train.smaples'" in capsys.readouterr().err
    assert main(["train", "classification/digits", "target=null"]) == 2
    assert str(ROOT) not in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "configs/../pyproject.toml",
        "configs/clip/../../steering/cli.py",
        "configs",
        "configs/clip",
        "configs/absent.yaml",
        "docs/index.md",
        "/configs/clip/glyphs.yaml",
        "",
    ],
)
def test_only_files_of_the_folder_are_found(path):
    assert packaged_file(Path(path)) == Path(path)


def test_examples_are_found_too():
    assert user_path("examples/audio_digits.py") == ROOT / "examples/audio_digits.py"
    assert load_file("examples/own_loop.py", "this").__file__ == str(ROOT / "examples/own_loop.py")


def test_an_installation_without_configs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(packaged, "_ROOT", tmp_path)
    assert packaged_configs() == []
    assert find_config("clip/glyphs") is None
    assert user_path("configs/clip/glyphs.yaml") == Path("configs/clip/glyphs.yaml")
    assert main(["configs"]) == 2
    assert capsys.readouterr().err == "steering: error: this installation has no configs\n"


def test_an_installed_package_has_its_own_folder(monkeypatch, tmp_path):
    """Beside other people's `configs`, which may lie there too."""
    monkeypatch.setattr(packaged, "_ROOT", tmp_path)
    for folder in ("configs/other", "steering_configs/clip"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "glyphs.yaml").write_text("# Ours. And more.\ntask: {name: clip}\n")
    (one,) = packaged_configs()
    assert (one.name, one.about, one.takes, one.task) == ("clip/glyphs", "Ours", None, "clip")


def test_each_says_what_it_is_and_each_time_is_one_of_a_page():
    for one in packaged_configs():
        assert 20 < len(one.about) < 200, one
        assert one.task in ("classification", "clip", "language", "Audio")
    times = {one.name: one.takes for one in packaged_configs() if one.takes}
    assert times["clip/glyphs"] == "4 minutes on two cores"
