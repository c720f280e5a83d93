"""A study's first metric with paired differences to plain training, seed by seed.

python tests/benchmarks/paired.py runs/text-token/compare.json runs/text-sequence/compare.json --metric perplexity/average
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from steering.analysis.report import mean_and_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--metric", required=True)
    parser.add_argument("--plain", default="erm", help="label of plain training, in any of the files")
    arguments = parser.parse_args()
    values: dict[str, dict[int, float]] = {}
    for file in arguments.files:
        for row in json.loads(file.read_text()):
            label = row["method"] if len(arguments.files) == 1 else f"{row['method']} ({file.parent.name})"
            if row["seed"] is not None:
                values.setdefault(label, {})[row["seed"]] = row["metrics"][arguments.metric]
            else:
                print(f"{label}: {row['metrics'][arguments.metric]:.3f}")
    plain = next(found for label, found in values.items() if label.split(" (")[0] == arguments.plain)
    print(f"\n| method | {arguments.metric} | minus {arguments.plain} |\n| --- | --- | --- |")
    for label, found in values.items():
        mean, error = mean_and_error([*found.values()])
        difference, its_error = mean_and_error([found[seed] - plain[seed] for seed in found])
        print(f"| {label} | {mean:.2f} ± {error:.2f} | {difference:+.2f} ± {its_error:.2f} |")


if __name__ == "__main__":
    main()
