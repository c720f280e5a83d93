"""Speed of the exact solver, as ratios to what nobody can avoid, and to the public peer.

    python tests/benchmarks/solver_speed.py [--rounds 9] [--threads 1] [--json FILE] [--peer FOLDER]

Every time is the median of interleaved rounds in one process, process CPU time, float32. `--peer`
is a checkout of github.com/daniellevy/fast-dro, whose solver takes one vector at a time: it is
given our rows one by one. What came out: docs/solver-study.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from steering.dro import KL, ChiSquare, CVaR, TotalVariation, worst_case

SHAPES = [(1, 1_000_000), (4096, 4096)]
LEVEL = 0.1


def median_times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Process CPU seconds of each call. Each timed call follows an untimed one of its own kind:
    what the call before has left in the caches and given back to the system would otherwise
    decide."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


PASSES: dict[str, Callable[[Tensor], object]] = {
    "logsumexp": lambda h: h.logsumexp(-1),
    "topk": lambda h: h.topk(round(LEVEL * h.shape[-1]), sorted=False),
    "sort + 2 passes": lambda h: (h.sort(-1), h.exp(), h.exp()),
}
FORMS: dict[
    str, tuple[str, float, Callable[[Tensor], object]]
] = {  # name: compared with, bound, call
    "KL, penalty 1": ("logsumexp", 1.3, lambda h: worst_case(h, KL(), penalty=1.0)),
    "KL, radius 0.1": ("logsumexp", 12, lambda h: worst_case(h, KL(), radius=0.1)),
    "KL, radius 3": ("logsumexp", 12, lambda h: worst_case(h, KL(), radius=3.0)),
    "CVaR, level 0.1": ("topk", 1.5, lambda h: worst_case(h, CVaR(LEVEL))),
    "chi-square, penalty 0.3": (
        "sort + 2 passes",
        1.5,
        lambda h: worst_case(h, ChiSquare(), penalty=0.3),
    ),
    "chi-square, radius 1": (
        "sort + 2 passes",
        1.5,
        lambda h: worst_case(h, ChiSquare(), radius=1.0),
    ),
    "total variation, radius 0.1": (
        "sort + 2 passes",
        1.5,
        lambda h: worst_case(h, TotalVariation(), radius=0.1),
    ),
}


def against_pass(name: str, shape: tuple[int, int], rounds: int) -> dict[str, object]:
    """Ours over the pass that any solution needs. To be run in a process of its own: see `main`."""
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    peer, bound, ours = FORMS[name]
    times = median_times({"ours": lambda: ours(h), "pass": lambda: PASSES[peer](h)}, rounds)
    return {
        "shape": f"{shape[0]:,} × {shape[1]:,}",
        "form": name,
        "milliseconds": round(1e3 * times["ours"], 2),
        "compared with": peer,
        "ratio": round(times["ours"] / times["pass"], 2),
        "bound": bound,
    }


def against_peer(folder: Path, rounds: int) -> list[dict[str, object]]:
    """Time of the peer over ours on one vector and on 64, as it comes (float32, tolerance 1e-4
    where it bisects) and at our accuracy (float64, tolerance 1e-12); and how far apart the values
    then are."""
    peer = load_peer(folder)
    forms: dict[str, tuple[dict[str, object], Callable[[Tensor], object]]] = {
        "CVaR, level 0.1": (
            {"size": LEVEL, "reg": 0.0, "geometry": "cvar"},
            lambda h: worst_case(h, CVaR(LEVEL)).value,
        ),
        "chi-square, radius 1": (
            {"size": 1.0, "reg": 0.0, "geometry": "chi-square"},
            lambda h: worst_case(h, ChiSquare(), radius=1.0).value,
        ),
        "chi-square, penalty 0.3": (
            {"size": float("inf"), "reg": 0.3, "geometry": "chi-square"},
            lambda h: worst_case(h, ChiSquare(), penalty=0.3).value,
        ),
    }
    rows = []
    for m, n in [(1, 256), (64, 256), (64, 4096), (1, 1_000_000)]:
        h = torch.rand(m, n, generator=torch.Generator().manual_seed(0)) * 4
        h64 = h.double()
        for name, (arguments, ours) in forms.items():
            loose, exact = peer.RobustLoss(**arguments), peer.RobustLoss(**arguments, tol=1e-12)
            calls = {
                "ours": lambda ours=ours, h=h: ours(h),
                "ours64": lambda ours=ours, h=h64: ours(h),
                "peer": lambda loose=loose, h=h: [loose(row) for row in h],
                "peer64": lambda exact=exact, h=h64: torch.stack([exact(row) for row in h]),
            }
            times = {call: 1e3 * seconds for call, seconds in median_times(calls, rounds).items()}
            rows.append(
                {
                    "shape": f"{m} × {n:,}",
                    "form": name,
                    "ours, ms": round(times["ours"], 2),
                    "peer, ms": round(times["peer"], 2),
                    "times faster": round(times["peer"] / times["ours"], 1),
                    "times faster, equal accuracy": round(times["peer64"] / times["ours64"], 1),
                    "values apart": f"{(calls['ours64']() - calls['peer64']()).abs().max().item():.0e}",
                }
            )
    return rows


def load_peer(folder: Path) -> types.ModuleType:
    """fast-dro's robust_losses.py; the modules of its that only training needs are left out."""
    for name, needed in {
        "utils": ["project_to_cs_ball", "project_to_cvar_ball"],
        "datasets": ["CustomDistributionSampler"],
    }.items():
        sys.modules[name] = types.ModuleType(name)
        for attribute in needed:
            setattr(sys.modules[name], attribute, None)
    sys.path.insert(0, str(folder))
    return importlib.import_module("robust_losses")


def markdown(rows: list[dict[str, object]]) -> str:
    head = [*rows[0]]
    lines = [head, ["---"] * len(head), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        form, rows, items = arguments.one.split("@")
        print(json.dumps(against_pass(form, (int(rows), int(items)), arguments.rounds)))
        return
    tables: dict[str, list[dict[str, object]]] = {"passes": []}
    for rows, items in SHAPES:
        for form in FORMS:
            # What other forms leave behind in the memory allocator moves times by a factor of two:
            # each starts afresh.
            command = [sys.executable, __file__, "--one", f"{form}@{rows}@{items}"]
            command += ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            tables["passes"].append(json.loads(answer))
    print(markdown(tables["passes"]), flush=True)
    if arguments.peer:
        tables["peer"] = against_peer(arguments.peer, arguments.rounds)
        print(f"\n{markdown(tables['peer'])}")
    if arguments.json:
        arguments.json.write_text(json.dumps(tables, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
