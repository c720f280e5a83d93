"""CIFAR-10 with CIFAR-10N's human label noise: ERM, DRO, RHO-LOSS and DRRho, five seeds. The table
of docs/noisy-data.md.

    python tests/benchmarks/noisy_labels_study.py --data ../shared/data/image_cls/cifar10 [--seeds
    5] [--output runs]

Reads the folder's JPEG archives, writes two .npz files beside the runs, and calls
`steering compare` on configs/classification/cifar10n.yaml: its page has the differences to plain
training and how much earlier each method gets there.
"""

from __future__ import annotations

import argparse
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from steering.cli import main as steering


def unpack(data: Path, output: Path, part: str) -> Path:
    """The archive's images as one array."""
    path = output / f"cifar10-{part}.npz"
    if not path.is_file():
        output.mkdir(parents=True, exist_ok=True)
        with np.load(data / f"cifar10_{part}.npz") as found:
            raw, offset, label = found["jpeg"].tobytes(), found["offset"], found["label"]
        pictures = [Image.open(io.BytesIO(raw[a:b])).convert("RGB") for a, b in pairwise(offset)]
        np.savez(
            path,
            image=np.stack([np.asarray(picture) for picture in pictures]),
            label=label.astype(np.int64),
        )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    words = {
        "output": arguments.output,
        "compare.seeds": [*range(arguments.seeds)],
        "train.threads": 1,
        "task.data.source": "arrays",
        "task.data.path": unpack(arguments.data, arguments.output, "train"),
        "task.data.test_path": unpack(arguments.data, arguments.output, "test"),
        "task.data.labels": f"{arguments.data}/cifar10n_labels.npz:worse_label",
    }
    raise SystemExit(
        steering(
            [
                "compare",
                "configs/classification/cifar10n.yaml",
                *(f"{k}={v}" for k, v in words.items()),
            ]
        )
    )


if __name__ == "__main__":
    main()
