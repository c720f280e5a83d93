"""How long `steering --help` takes, and `steering train` to its first step, beside what torch itself
needs for a first step: whole processes, interleaved, medians.

    python tests/benchmarks/start_time.py [--rounds 7] [--against OTHER_CHECKOUT]

Processor time counts, as it does not depend on who else is on the machine; wall time stands beside
it. The first round fills caches and is not counted. With `--against` the same commands are also run
from another checkout, in the same rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCH = """
import torch
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
"""
# Whatever the trainer looks like inside, it ends at its first optimiser step.
TO_THE_FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
from steering.cli import main
main(sys.argv[1:])
sys.exit("no step was made")
"""
HELP = "import sys; from steering.cli import main; sys.exit(main(['--help']))"
CONFIGS = ("classification/digits", "language/stdlib", "clip/glyphs")


def commands(python_path: str, output: str) -> dict[str, list[str]]:
    """What is timed, by name; `python_path` is the checkout whose configs are used."""
    found = {"steering --help": [HELP]}
    for config in CONFIGS:
        words = ["train", f"{python_path}/configs/{config}.yaml", "smoke=true", f"output={output}"]
        found[f"train {config}"] = [TO_THE_FIRST_STEP, *words]
    return found


def seconds(words: list[str], checkout: Path, packages: Path) -> tuple[float, float]:
    """Processor and wall time of one process that runs from a checkout."""
    environment = os.environ | {
        "PYTHONPATH": f"{checkout}{os.pathsep}{packages}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", *words],
        cwd=checkout,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    told = process.stderr.read()  # its end is the process's end
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(told.decode())
    return usage.ru_utime + usage.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    arguments = parser.parse_args()
    checkouts = {"here": ROOT}
    if arguments.against:
        checkouts["there"] = arguments.against.resolve()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        packages = {}
        for name, checkout in checkouts.items():
            # What is installed may be another checkout's tasks.
            packages[name] = Path(folder) / name
            packages[name].mkdir()
            (packages[name] / "steering_tasks").symlink_to(checkout / "tasks")
        for number in range(arguments.rounds + 1):
            for name, checkout in checkouts.items():
                output = f"{folder}/{name}-runs-{number}"
                timed = {"torch alone": [TORCH]} | commands(str(checkout), output)
                for command, words in timed.items():
                    spent = seconds(words, checkout, packages[name])
                    if number:
                        found.setdefault((command, name), []).append(spent)
    print("| command | checkout | processor seconds | beyond torch | wall seconds |")
    print("| --- | --- | --- | --- | --- |")
    medians = {
        key: [statistics.median(values) for values in zip(*times, strict=True)]
        for key, times in found.items()
    }
    for (command, name), (spent, wall) in sorted(medians.items()):
        beyond = spent - medians["torch alone", name][0]
        print(f"| {command} | {name} | {spent:.2f} | {beyond:+.2f} | {wall:.2f} |")


if __name__ == "__main__":
    main()
