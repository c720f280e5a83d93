"""`steering doctor`: what this installation is and has, for a look of one's own or a report of a
fault."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.specifiers import SpecifierSet

import steering
from steering.console import in_bytes
from steering.extras import DISTRIBUTION, core, extras, installed_version
from steering.packaged import packaged_configs, packaged_folder
from steering.plugins import installed
from steering.storage import cache_dir

Line = tuple[str, str]


def versions() -> list[Line]:
    """This package, Python, the machine, and the packages of the core."""
    return [
        ("steering", f"{steering.__version__} in {Path(steering.__file__).parent}"),
        ("python", f"{platform.python_version()} in {sys.prefix}"),
        ("machine", platform.platform()),
        *((name, _state(name, wanted)) for name, wanted in core().items()),
    ]


def optional() -> list[Line]:
    """A line for each extra: what is there, or how to get what is not."""
    return [(extra, _extra(extra, packages)) for extra, packages in extras().items()]


def devices() -> list[Line]:
    """Processors, their threads, and GPUs, as torch sees them."""
    try:
        import torch
    except ImportError as error:
        return [("torch", f"cannot be imported: {error}")]
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    gpus = [_gpu(torch, number) for number in range(torch.cuda.device_count())]
    built = "CUDA or ROCm" if torch.version.cuda or torch.version.hip else "the CPU alone"
    return [
        ("processors", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} may be used"),
        ("threads", f"{torch.get_num_threads()}; {', '.join(given) or 'no variable sets them'}"),
        ("GPUs", "; ".join(gpus) or f"none found; torch is built for {built}"),
    ]


def folders() -> list[Line]:
    """Where configs, caches and runs are, and how much room there is."""
    configs = packaged_folder("configs")
    listed = f"{len(packaged_configs())} in {configs}" if configs else "none in this installation"
    return [
        ("configs", listed),
        ("tasks", ", ".join(sorted(installed("steering.tasks"))) or "none installed"),
        ("runs", _room(Path.cwd() / "runs")),
        ("caches", _room(cache_dir(""))),
    ]


SECTIONS: dict[str, Callable[[], list[Line]]] = {
    "versions": versions,
    "extras": optional,
    "devices": devices,
    "folders": folders,
}


def _state(name: str, wanted: str) -> str:
    """The version of a package, and what is wrong with it."""
    found = installed_version(name)
    if found is None:
        return f"MISSING, wanted {wanted}"
    return found if _fits(name, wanted) else f"{found}, BUT WANTED {wanted}"


def _fits(name: str, wanted: str) -> bool:
    found = installed_version(name)
    return found is not None and SpecifierSet(wanted).contains(found, prereleases=True)


def _extra(extra: str, packages: dict[str, str]) -> str:
    missing = [name for name in packages if installed_version(name) is None]
    if missing:
        return f'missing {", ".join(missing)}: pip install "{DISTRIBUTION}[{extra}]"'
    return ", ".join(f"{name} {_state(name, wanted)}" for name, wanted in packages.items())


def _gpu(torch, number: int) -> str:  # type: ignore[no-untyped-def]
    properties = torch.cuda.get_device_properties(number)
    return f"{properties.name}, {in_bytes(properties.total_memory)}"


def _room(folder: Path) -> str:
    """A folder, which need not be there yet, and the free space on its disk."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    writable = "" if os.access(there, os.W_OK) else ", CANNOT BE WRITTEN"
    return f"{folder}, {in_bytes(shutil.disk_usage(there).free)} free{writable}"


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The words behind `steering doctor`: none but --help."""
    return argparse.ArgumentParser(
        prog="steering doctor",
        description="Versions, extras, devices, threads and folders of this installation; what is wrong stands in capitals.",
        allow_abbrev=False,
    ).parse_args(words)


def main(words: Sequence[str]) -> int:
    """Print it all; exit code 1 if a package of the core is missing or too old or new."""
    parsed(words)
    for title, lines in SECTIONS.items():
        print(title)
        for name, text in lines():
            print(f"  {name:<16}{text}")
    return 0 if all(_fits(name, wanted) for name, wanted in core().items()) else 1
