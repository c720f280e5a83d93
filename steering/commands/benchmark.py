"""`steering benchmark contrastive`: time and memory of the contrastive losses on this machine, as
ratios.

Floor: the four matrix products of a batch, B·B·d each, that any exact method needs (logits forward,
reference logits or one recomputation, and a gradient for each side). Plain CLIP: open_clip's own
loss, without a reference. All take features with gradient, forward and backward, float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from steering.contrastive import Pairs, negatives
from steering.contrastive.risk import anchor_risks
from steering.dro.flat import flat_adversary
from steering.dro.online.stochastic import StochasticRisk

Row = dict[str, object]
KEEP = 1 << 40
SIZES = (512, 1024, 2048, 4096, 8192)
VARIANTS = (
    "floor",
    "plain CLIP",
    "dense",
    "keeping",
    "recomputing",
    "keeping, no reference",
    "keeping, learned τ",
    "keeping, individual τ",
)
_SHOWN = ("B", "variant", "milliseconds", "over the floor", "over plain CLIP", "extra MB")


def step(variant: str, size: int, width: int, device: torch.device) -> Callable[[], None]:
    """One forward and backward pass of a loss over `size` pairs of features of that width."""
    generator = torch.Generator().manual_seed(0)
    made = [
        F.normalize(torch.randn(size, width, generator=generator), dim=-1).to(device)
        for _ in range(4)
    ]
    image, text, *guide = made
    index = torch.arange(size, device=device)
    image.requires_grad_()
    text.requires_grad_()
    if variant == "floor":
        return lambda: _products(image.detach(), text.detach())
    if variant == "plain CLIP":
        from open_clip.loss import ClipLoss

        loss, scale = ClipLoss(), torch.tensor(1 / 0.07, device=device, requires_grad=True)
        return lambda: loss(image, text, scale).backward()
    guided = "no reference" not in variant
    own, learned = variant.endswith("individual τ"), variant.endswith(("learned τ", "individual τ"))
    adversary = flat_adversary(
        tau=0.07,
        epsilon=1e-4,
        gamma=0.8,
        strength=1.0 if guided else 0.0,
        radius=0.5 if learned else None,
        individual_tau=own,
    )
    risk = StochasticRisk(2 * size, adversary).to(device)
    pairs = Pairs(image, text, index, *(guide if guided else ()))
    if variant == "dense":
        return lambda: risk(negatives(pairs)).loss.backward()
    budget = KEEP if variant.startswith("keeping") else 0
    return lambda: anchor_risks(risk, pairs, budget)[0].mean().backward()


def _products(image: Tensor, text: Tensor) -> None:
    logits = image @ text.T
    torch.mm(image, text.T, out=logits)
    logits @ text
    logits.T @ image


def seconds(
    variants: Sequence[str], size: int, width: int, rounds: int, device: torch.device
) -> dict[str, float]:
    """Median of interleaved rounds: process CPU time, or wall time on a GPU."""
    steps = {variant: step(variant, size, width, device) for variant in variants}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds + 1):
        for variant, run in steps.items():
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[variant].append(clock() - start)
    return {variant: statistics.median(values) for variant, values in times.items()}


def extra_megabytes(variant: str, size: int, width: int, device: torch.device) -> float:
    """Peak memory of one step beyond what was held before it, 10⁶ bytes; on a CPU (Linux) that of
    this process."""
    step(variant, 64, width, device)()  # libraries and thread pools
    run = step(variant, size, width, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _kilobytes("VmRSS")
    run()
    return max(0.0, (_kilobytes("VmHWM") - before) * 1024 / 1e6)


def _kilobytes(field: str) -> int:
    """A line of this process's status: VmRSS, what it holds; VmHWM, the most it has held."""
    status = Path("/proc/self/status").read_text()
    return int(
        next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:"))
    )


def contrastive(
    sizes: Sequence[int], width: int, rounds: int, device: torch.device, threads: int | None
) -> list[Row]:
    """One row for each batch size and variant."""
    if threads:
        torch.set_num_threads(threads)
    rows: list[Row] = []
    for size in sizes:
        times = seconds(VARIANTS, size, width, rounds * max(1, min(16, SIZES[-1] // size)), device)
        for variant in VARIANTS:
            # A GPU's allocator counts what is held; a process's own memory only goes up.
            measure = extra_megabytes if device.type == "cuda" else _in_fresh_process
            megabytes = measure(variant, size, width, device)
            values = [size, variant, round(1e3 * times[variant], 1)]
            values += [round(times[variant] / times[other], 2) for other in ("floor", "plain CLIP")]
            rows.append(dict(zip(_SHOWN, [*values, round(megabytes)], strict=True)))
            print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    return rows


def _in_fresh_process(variant: str, size: int, width: int, device: torch.device) -> float:
    code = (
        "import torch; torch.set_num_threads(1); from steering.commands.benchmark import extra_megabytes; "
        f"print(extra_megabytes({variant!r}, {size}, {width}, torch.device({str(device)!r})))"
    )
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # what is freed goes back at once, and is not counted
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return float(found.stdout)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time over the floor and peak memory against the batch size, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colours = [
        "#999999",
        "#000000",
        "#D55E00",
        "#0072B2",
        "#56B4E9",
        "#009E73",
        "#E69F00",
        "#CC79A7",
    ]  # told apart by the colour-blind too
    for colour, variant in zip(colours, VARIANTS, strict=True):
        mine = [row for row in rows if row["variant"] == variant]
        sizes = [row["B"] for row in mine]
        for axis, value in zip(axes, ("over the floor", "extra MB"), strict=True):
            axis.plot(
                sizes, [row[value] for row in mine], "o-", color=colour, label=variant, markersize=4
            )
    for axis, label in zip(
        axes, ("time over four matrix products", "peak extra memory, MB"), strict=True
    ):
        axis.set(xscale="log", xlabel="batch size B", ylabel=label)
        axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_yscale("log", base=2)
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[1].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The words after `steering benchmark`; SystemExit as argparse does it."""
    parser = argparse.ArgumentParser(
        prog="steering benchmark",
        description="Time and memory of the contrastive losses, as ratios to four matrix products and to plain CLIP.",
        epilog="example:\n  steering benchmark contrastive --sizes 512 1024 --json speed.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["contrastive"])
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=list(SIZES),
        metavar="B",
        help="batch sizes, each ≥ 2",
    )
    parser.add_argument(
        "--width", type=int, default=512, help="width d of the features (default 512)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="interleaved rounds of 8,192 pairs, of which the median is shown; more of fewer",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="also draw time and memory against B, as PNG"
    )
    options = parser.parse_args(arguments)
    for name, value, least in (
        ("sizes", min(options.sizes), 2),
        ("width", options.width, 1),
        ("rounds", options.rounds, 1),
    ):
        if value < least:
            parser.error(f"--{name}: expected at least {least}, got {value}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    if options.device not in ("cpu", "cuda"):
        parser.error(f"--device: expected cpu or cuda, got {options.device!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: cuda, but torch finds no NVIDIA GPU here")
    for name in ("json", "figure"):  # told before an hour of measuring, not after
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"--{name}: there is no folder {path.parent}")
    return options


def main(arguments: Sequence[str]) -> list[Row]:
    """The command."""
    options = parsed(arguments)
    print("| " + " | ".join(_SHOWN) + " |\n" + "| --- " * len(_SHOWN) + "|", flush=True)
    rows = contrastive(
        options.sizes, options.width, options.rounds, torch.device(options.device), options.threads
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    if options.figure:
        draw(rows, options.figure)
    return rows
