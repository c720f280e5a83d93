"""Four text domains, one of them corrupted in training: which method uses a reference from clean
text best?

    python tests/benchmarks/text_study.py --data ../shared/data/text [--seeds 5] [--output runs]

The table of docs/noisy-data.md. A byte-level GPT-2 of two layers; 30 % of the training bytes of one
domain are random. Reads `DOMAIN/train.txt` and `DOMAIN/val.txt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from steering.cli import main as steering

DOMAINS = ("shakespeare", "wikipedia", "reviews", "speeches")
CORRUPT = "reviews"


def config(data: Path, unit: str, methods: dict, seeds: int, output: str, samples: int) -> dict:
    task = {
        "name": "language",
        "unit": unit,
        "length": 128,
        "data": {
            "source": "files",
            "paths": {name: str(data / name / "train.txt") for name in DOMAINS},
            "validation": {name: str(data / name / "val.txt") for name in DOMAINS},
            "validation_blocks": 100,
            "corrupt": {CORRUPT: 0.3},
            "part": [0.1, 1.0],
        },
    }
    reference = {
        "name": "configs/language/models/tiny-gpt2-reference.json",
        "cache": "auto",
        "train": {
            "train.samples": 4800,
            "train.eval_every": 0,
            "optimizer.lr": 5e-3,
            "task.data.corrupt": {},
            "task.data.part": [0.0, 0.1],
        },
    }
    return {
        "name": f"text-{unit}",
        "output": output,
        "device": "cpu",
        "task": task,
        "target": {"name": "configs/language/models/tiny-gpt2.json"},
        "reference": reference,
        "method": {"name": "erm"},
        "optimizer": {"lr": 3e-3},
        "train": {"samples": samples, "batch_size": 16, "log_every": 25, "threads": 1},
        "compare": {"methods": methods, "seeds": [*range(seeds)]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=3200)
    parser.add_argument("--output", default="runs")
    parser.add_argument("--unit", choices=["token", "sequence"], default=None)
    arguments = parser.parse_args()
    studies = {
        "token": {
            "erm": {"name": "erm"},
            "rho1": {"name": "rho1", "share": 0.7},
            "doremi": {"name": "doremi", "step": 0.1},
            "dro": {"name": "dro", "tau": 4.0, "epsilon": 0.0},
            "drrho": {"name": "drrho", "tau": 4.0, "epsilon": 0.0},
            "drrho-cvar": {"name": "drrho", "divergence": "cvar", "level": 0.7},
        },
        "sequence": {
            "drrho": {"name": "drrho", "tau": 0.5, "epsilon": 0.0},
            "drrho-cvar": {"name": "drrho", "divergence": "cvar", "level": 0.7},
            "rho_loss": {"name": "rho_loss", "share": 0.5},
        },
    }
    for unit, methods in studies.items():
        if arguments.unit not in (None, unit):
            continue
        values = config(
            arguments.data, unit, methods, arguments.seeds, arguments.output, arguments.samples
        )
        path = Path(arguments.output) / f"text-{unit}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        if steering(["compare", str(path)]):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
