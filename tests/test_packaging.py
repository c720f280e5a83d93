"""What the wheel holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_folder_with_code_is_a_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        file.parent.relative_to(ROOT)
        for top in ("steering", "tasks")
        for file in (ROOT / top).rglob("*.py")
    }
    names = {".".join(folder.parts) for folder in folders}
    expected = {f"steering_{name}" if name.startswith("tasks") else name for name in names}
    assert {name for name in settings["packages"] if name.startswith("steering")} == expected
    assert settings["package-dir"]["steering_tasks"] == "tasks"
