"""CIFAR-10 with CIFAR-10N's human label noise: ERM, DRO, RHO-LOSS and DRRho, five seeds. The table of docs/noisy-data.md.

    python tests/benchmarks/noisy_labels_study.py --data ../shared/data/image_cls/cifar10 [--seeds 5] [--output runs]
    python tests/benchmarks/noisy_labels_study.py --table runs/cifar10n        # of a study that has been run

Reads the folder's JPEG archives, writes two .npz files beside the runs, and calls `steering compare` on
configs/classification/cifar10n.yaml. The last column is the accuracy where a run had spent as many seconds as a whole run of
plain training, interpolated between its evaluations; the learning rate is then still high, as its schedule spans the whole run.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from steering.analysis.report import mean_and_error
from steering.cli import main as steering
from steering.training.log import read_metrics

ACCURACY = "eval/test/accuracy"


def unpack(data: Path, output: Path, part: str) -> Path:
    """The archive's images as one array."""
    path = output / f"cifar10-{part}.npz"
    if not path.is_file():
        output.mkdir(parents=True, exist_ok=True)
        with np.load(data / f"cifar10_{part}.npz") as found:
            raw, offset, label = found["jpeg"].tobytes(), found["offset"], found["label"]
        pictures = [Image.open(io.BytesIO(raw[a:b])).convert("RGB") for a, b in pairwise(offset)]
        np.savez(path, image=np.stack([np.asarray(picture) for picture in pictures]), label=label.astype(np.int64))
    return path


def table(folder: Path) -> None:
    """Print the means and standard errors of a study's runs, and the paired differences to plain training."""
    rows = json.loads((folder / "compare.json").read_text())
    labels = dict.fromkeys(row["method"] for row in rows if row["seed"] is not None)
    done = [path.parent for path in folder.glob("*-seed*/result.json")]
    runs = {m: sorted((run for run in done if re.fullmatch(rf"{m}-seed\d+", run.name)), key=_seed) for m in labels}
    final = {label: [_result(run)["metrics"]["test/accuracy"] for run in found] for label, found in runs.items()}
    seconds = {label: float(np.mean([_result(run)["seconds"] for run in found])) for label, found in runs.items()}
    reference = next(row for row in rows if row["seed"] is None)
    print(f"reference: {100 * reference['metrics']['test/accuracy']:.1f} %\n")
    print("| method | seeds | test accuracy | minus erm | ECE | drawn / trained on | seconds / erm's | at erm's time |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for label, found in runs.items():
        paired = [a - b for a, b in zip(final[label], final["erm"], strict=False)]
        ratio = seconds[label] / seconds["erm"]
        early = [_at(run, 1 / max(ratio, 1.0)) for run in found]
        result = _result(found[0])
        error = [_result(run)["metrics"]["test/ECE"] for run in found]
        print(
            f"| {label} | {len(found)} | {_shown(final[label])} | {_shown(paired)} | {_shown(error)} | "
            f"{result['drawn'] / result['samples']:.1f} | {ratio:.2f} | {_shown(early)} |"
        )


def _shown(values: list[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def _result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def _seed(run: Path) -> int:
    return int(re.findall(r"seed(\d+)$", run.name)[0])


def _at(run: Path, share: float) -> float:
    """Accuracy after a share of the run's steps."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if ACCURACY in row]
    steps = [row["step"] for row in rows]
    return float(np.interp(share * steps[-1], steps, [row[ACCURACY] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table is None:
        if arguments.data is None:
            parser.error("give --data or --table")
        words = {
            "output": arguments.output,
            "compare.seeds": [*range(arguments.seeds)],
            "train.threads": 1,
            "task.data.source": "arrays",
            "task.data.path": unpack(arguments.data, arguments.output, "train"),
            "task.data.test_path": unpack(arguments.data, arguments.output, "test"),
            "task.data.labels": f"{arguments.data}/cifar10n_labels.npz:worse_label",
        }
        if steering(["compare", "configs/classification/cifar10n.yaml", *(f"{k}={v}" for k, v in words.items())]):
            raise SystemExit(1)
    table(arguments.table or arguments.output / "cifar10n")


if __name__ == "__main__":
    main()
