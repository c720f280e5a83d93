"""How long a study with nothing to do takes, beside what Python needs to import torch: interleaved
runs, medians.

    python tests/benchmarks/study_speed.py [--methods 20] [--seeds 5] [--rounds 5]

Trains many tiny runs first, once (a minute), and then times whole processes: `steering compare`
that finds all of them, `steering report`, `steering runs`, `steering --help`, and `import torch`
for comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
name: many
output: {folder}
device: cpu
task: {{name: classification}}
target: {{name: linear}}
reference: {{name: linear, cache: auto, train: {{train.samples: 64}}}}
method: {{name: drrho}}
train: {{samples: 64, batch_size: 32, log_every: 1, threads: 1}}
compare:
  methods: {methods}
  seeds: {seeds}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.yaml"
        methods = {
            f"m{i}": {"name": "drrho", "tau": 0.5 + 0.1 * i} for i in range(arguments.methods)
        }
        path.write_text(
            CONFIG.format(
                folder=folder, methods=json.dumps(methods), seeds=[*range(arguments.seeds)]
            )
        )
        steering = [sys.executable, "-m", "steering"]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "steering compare, all found": [*steering, "compare", str(path)],
            "steering report": [*steering, "report", f"{folder}/many"],
            "steering runs": [*steering, "runs", folder],
            "steering --help": [*steering, "--help"],
        }
        subprocess.run(commands["steering compare, all found"], check=True, capture_output=True)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                start = time.monotonic()
                subprocess.run(command, check=True, capture_output=True)
                times[name].append(time.monotonic() - start)
        runs = arguments.methods * arguments.seeds
        print(
            f"{runs} finished runs\n\n| command | seconds, median | least | most |\n| --- | --- | --- | --- |"
        )
        for name, found in times.items():
            print(
                f"| `{name}` | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} |"
            )


if __name__ == "__main__":
    main()
