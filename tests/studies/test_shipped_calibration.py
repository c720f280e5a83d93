"""The calibration that comes with the package meets the audit's bar, computed again from its combinations
by a naive twin: numpy alone, one combination or one data set left out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from steering.analysis.calibration import left_out
from steering.studies.audit import read_calibration

FILE = Path(__file__).parents[2] / "configs/classification/calibration_digits.json"
PENALTIES = (0.3, 1, 3, 10, 30, 100)


@pytest.fixture(scope="module")
def rows():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def combinations(rows):
    return [row for row in rows if row["kind"] == "combination"]


def foreseen(x, y, new, penalty):
    """Ridge in standardised signals, of new rows within the range of those seen."""
    mean, width = x.mean(0), x.std(0)
    width[width < 1e-12] = np.inf  # a constant says nothing
    z = (x - mean) / width
    weight = np.linalg.inv(z.T @ z + penalty * np.eye(z.shape[1])) @ z.T @ (y - y.mean())
    return y.mean() + (np.minimum(np.maximum(new, x.min(0)), x.max(0)) - mean) / width @ weight


def leave_out(x, y, groups):
    """Of every group by all others; the penalty by leaving out each of those in turn."""
    found = np.zeros(len(y))
    for group in set(groups):
        out = np.array([one == group for one in groups])
        rest = [one for one in groups if one != group]

        def error(penalty, x=x[~out], y=y[~out], rest=rest):
            total = 0.0
            for other in set(rest):
                mine = np.array([one == other for one in rest])
                total += ((foreseen(x[~mine], y[~mine], x[mine], penalty) - y[mine]) ** 2).sum()
            return total

        found[out] = foreseen(x[~out], y[~out], x[out], min(PENALTIES, key=error))
    return found


@pytest.mark.parametrize("method", ["drrho", "filter"])
def test_the_shipped_calibration_meets_its_bar(rows, combinations, method):
    assert len(combinations) == 30
    (row,) = [one for one in rows if one.get("method") == method]
    names = row["ridge"]["names"]
    x = np.array([[one["signals"][name] for name in names] for one in combinations])
    gains = [one["gains"][method] for one in combinations]
    y = np.array([gain["value"] for gain in gains])
    each, cells = [*range(30)], [one["cell"] for one in combinations]
    alone, strict = leave_out(x, y, each), leave_out(x, y, cells)
    assert spearmanr(alone, y).statistic >= 0.8
    # What it says where the truth is known: two chances in three of a gain above half a point.
    spread = math.sqrt(((strict - y) ** 2).mean())
    chance = [(1 + math.erf((one - 0.005) / spread / math.sqrt(2))) / 2 for one in strict]
    clear = [gain["low"] > 0 or gain["high"] < 0 for gain in gains]
    helps = [y[n] > 0 for n in range(30) if chance[n] >= 2 / 3 and clear[n]]
    assert len(helps) >= 10
    assert sum(helps) >= 0.9 * len(helps)
    # The twin agrees with the study, and the file's own regression with its combinations.
    assert row["ridge"]["spread"] == pytest.approx(spread)
    cases = [one["signals"] for one in combinations]
    np.testing.assert_allclose(left_out(cases, y.tolist(), [str(n) for n in each], names), alone)
    made = read_calibration(str(FILE))[method].ridge
    fitted = [made.predict(one) for one in cases]
    np.testing.assert_allclose(foreseen(x, y, x, made.penalty), fitted)


def test_a_file_without_combinations_is_still_read(tmp_path, rows):
    short = tmp_path / "short.json"
    short.write_text(json.dumps([row for row in rows if row["kind"] != "combination"]))
    assert read_calibration(str(short)) == read_calibration(str(FILE))
