"""What a user meets first: `dir(steering)`, its types, and how light the first import is."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import steering
import steering.extend
from steering.errors import SteeringError
from steering.runs.record import Cost, RunRecord, write_record
from steering.storage import file_sha256

ROOT = Path(__file__).parents[1]


def test_dir_shows_what_users_need_and_nothing_else() -> None:
    assert dir(steering) == sorted(steering.__all__)
    for name in steering.__all__:
        assert getattr(steering, name) is not None
    hidden = {"Any", "TYPE_CHECKING", "import_module", "Task", "Units", "IndexedData"}
    assert not hidden & {*dir(steering)}
    for name in steering.losses.__all__:
        assert getattr(steering, name) is getattr(steering.losses, name)


def test_a_star_import_brings_these_names() -> None:
    namespace: dict[str, object] = {}
    exec("from steering import *", namespace)
    assert {*namespace} - {"__builtins__"} == {*steering.__all__}


def test_old_names_of_authors_still_work_and_stand_in_extend() -> None:
    for name in ("IndexedData", "ReferenceRisk", "Task", "Units"):
        assert getattr(steering, name) is getattr(steering.extend, name)
    for name in steering.extend.__all__:
        assert getattr(steering.extend, name) is not None
    with pytest.raises(AttributeError, match="module 'steering' has no attribute 'Unit'"):
        _ = steering.Unit


def test_the_function_is_not_hidden_by_a_module_of_its_name() -> None:
    """`steering.x` is what `__all__` says also after every module was imported."""
    importlib.import_module("steering.reference_pass")
    assert callable(steering.reference_losses)


def test_the_first_import_brings_no_torch() -> None:
    code = (
        "import sys, steering; assert steering.__version__ and dir(steering); "
        "steering.load_run; steering.SteeringError; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_types_are_for_users_too() -> None:
    """That a checker takes our names, and refuses a misspelt argument, was tried by hand with
    `mypy --strict`; it takes a minute."""
    assert (ROOT / "steering" / "py.typed").is_file()


# ---- a finished run


def finished(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({"weight": torch.arange(3.0)}, folder / "model.safetensors")
    write_record(
        RunRecord(
            "key",
            "train",
            "drrho-seed0",
            folder=folder,
            metrics={"seen/accuracy": 0.5},
            cost=Cost(trained=64),
            weights=file_sha256(folder / "model.safetensors"),
        )
    )
    return folder


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    folder = finished(tmp_path / "study" / "drrho-seed0")
    run = steering.load_run(folder)
    assert run.record.metrics == {"seen/accuracy": 0.5}
    assert run.record.cost.trained == 64
    assert run.weights["weight"].tolist() == [0, 1, 2]
    with pytest.raises(SteeringError, match=r"is no run but holds some: drrho-seed0"):
        steering.load_run(tmp_path / "study")
    with pytest.raises(SteeringError, match=r"no finished run there, as there is no record.json"):
        steering.load_run(tmp_path / "nowhere")
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(SteeringError, match=r"model.safetensors: is missing, or not the file that"):
        _ = steering.load_run(folder).weights
