"""Does a calibration of the audit on one data set foresee the gains on another one?

    steering study calibration configs/classification/audit.yaml
    steering study calibration configs/classification/audit.yaml name=other task.data.source=...
    python tests/benchmarks/audit_transfer.py runs/audit-digits/calibration.json runs/other/calibration.json

Reads two results of `steering study calibration`. The regression is the first one's; the combinations that it
is asked about are the second one's, of which it has seen none. Prints for each method Spearman's
correlation of foreseen and true gains over all combinations (in brackets 95 % of a bootstrap over data sets)
and on average within a data set, and how many verdicts were right where the true gain's interval leaves out zero.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steering.analysis.calibration import chances, rank_interval, share_interval, verdict
from steering.analysis.signals import spearman
from steering.studies.audit import Calibrated, read_calibration

MARGIN = 0.005


@dataclass(frozen=True)
class Case:
    """What was seen beforehand in one combination, and what one method then gained."""

    cell: str
    foreseen: float
    gain: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        return self.low > 0 or self.high < 0


def cases_of(made: Calibrated, method: str, other: Path) -> list[Case]:
    rows = [row for row in json.loads(other.read_text("utf-8")) if row["kind"] == "combination"]
    found = []
    for row in rows:
        gain = row["gains"][method]
        signals = {name: math.nan if one is None else one for name, one in row["signals"].items()}
        foreseen = made.ridge.predict(signals)
        found.append(Case(row["cell"], foreseen, gain["value"], gain["low"], gain["high"]))
    return found


def within(cases: Sequence[Case]) -> float:
    """Mean over data sets of the rank correlation of their references."""
    each = []
    for cell in dict.fromkeys(case.cell for case in cases):
        mine = [case for case in cases if case.cell == cell]
        if len(mine) > 1:
            foreseen, gain = (np.array([getattr(c, k) for c in mine]) for k in ("foreseen", "gain"))
            each.append(spearman(foreseen, gain))
    return float(np.mean(each))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("calibration", type=Path, help="calibration.json whose regression is used")
    parser.add_argument(
        "other", type=Path, help="calibration.json with the combinations to foresee"
    )
    arguments = parser.parse_args()
    for method, made in read_calibration(str(arguments.calibration)).items():
        cases = cases_of(made, method, arguments.other)
        foreseen, gain = (np.array([getattr(c, k) for c in cases]) for k in ("foreseen", "gain"))
        value, low, high = rank_interval(foreseen, gain, [case.cell for case in cases])
        error = float(np.sqrt(((foreseen - gain) ** 2).mean()))
        print(f"{method}: {len(cases)} combinations")
        print(f"  order of all gains      {value:.2f} [{low:.2f}, {high:.2f}]")
        print(f"  order within a data set {within(cases):.2f}")
        print(f"  error of the gain       {100 * error:.1f} (times 100)")
        said = [verdict(chances(c.foreseen, made.ridge.spread, MARGIN)) for c in cases]
        for word, sign in (("helps", 1), ("hurts", -1)):
            asked = [c for c, one in zip(cases, said, strict=True) if one == word and c.sure]
            right = sum(sign * case.gain > 0 for case in asked)
            share, least, most = share_interval(right, len(asked))
            print(f"  {word}: {right} of {len(asked)} right, {share:.2f} [{least:.2f}, {most:.2f}]")


if __name__ == "__main__":
    main()
