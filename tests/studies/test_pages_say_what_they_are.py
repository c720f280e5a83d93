"""Pages of studies from records made by hand: what their notes say is what was computed, also of one
seed, of odd metrics, and of runs that are no number."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from steering.analysis.calibration import rank_interval
from steering.analysis.intervals import Interval
from steering.analysis.signals import spearman
from steering.analysis.trials import REPORT, TUNING
from steering.analysis.weak_to_strong_page import accuracies, claims
from steering.errors import SteeringError
from steering.runs.record import Cost, Metric, RunRecord, Scores, write_scores
from steering.studies.calibration import Calibration, CalibrationOptions
from steering.studies.calibration_page import Combination, Judged, judged_table
from steering.studies.compare import Compare, CompareOptions
from steering.studies.population import Population, PopulationOptions
from steering.studies.scaling import Scaling, ScalingOptions
from steering.studies.tuned import Tuned, TunedOptions

MEANING = {"m": Metric(of=("m",)), "ECE": Metric(higher_is_better=False)}


def record(folder, label, rate, axes, n=60, **changes):
    """A run whose examples are right with a probability."""
    place = folder / f"{label}-{'-'.join(map(str, axes.values()))}"
    place.mkdir(parents=True)
    hits = (np.random.default_rng([len(label), axes["seed"]]).random(n) < rate) * 1.0
    write_scores(place / "scores.npz", {"m": Scores(hits, np.ones(n))})
    metrics = {"m": hits.mean(), "ECE": 0.1}
    cost = Cost(trained=10, drawn=10, flops=1000)
    values = {"metrics": metrics, "meaning": MEANING, "cost": cost, **changes}
    return RunRecord(place.name, "train", place.name, axes=axes, folder=place, **values)


def tuned(folder, report_seeds, shares=("1",), n=60):
    """The records of a study of two methods with one try each and one seed of it."""
    return [
        record(
            folder,
            label,
            rate,
            {"method": label, "try": 0, "stage": stage, "share": 1.0, "data": share, "seed": seed},
            n,
        )
        for label, rate in (("plain", 0.5), ("steered", 0.8))
        for share in shares
        for stage, seeds in ((TUNING, [0]), (REPORT, range(1, 1 + report_seeds)))
        for seed in seeds
        if stage == REPORT or share == "1"
    ]


def tuned_page(records, **options):
    methods = {"plain": {"name": "erm"}, "steered": {"name": "drrho"}}
    given = {"methods": methods, "tries": 1, "seeds": 1, "metric": "m"} | options
    return Tuned(TunedOptions(**given)).report(records, "t").markdown()


def test_a_tuned_page_of_one_seed_says_so(tmp_path):
    one, two = (tuned_page(tuned(tmp_path / str(k), k), report_seeds=k) for k in (1, 2))
    assert "1 seed and a half of the examples" in one
    assert "over the evaluated examples (1,000 draws): another seed may differ by more" in one
    assert "over seeds" not in one
    assert "2 seeds and a half of the examples" in two
    assert "steered was the best of all on the tuning half" in two
    assert "by Student's t over the seeds and a bootstrap over the evaluated examples" in two


def test_a_tuned_page_counts_the_seeds_that_there_are(tmp_path):
    """Drawn from a study that was stopped."""
    assert "2 seeds and a half" in tuned_page(tuned(tmp_path, 2), report_seeds=5)


@pytest.mark.parametrize("higher", [True, False])
def test_a_tuned_page_draws_every_methods_difference(tmp_path, higher):
    """Also without shares of the data; what is better is on the right, whatever the metric."""
    meaning = {"meaning": {"m": Metric(higher_is_better=higher, of=("m",))}}
    records = [replace(one, **meaning) for one in tuned(tmp_path, 2)]
    methods = {"plain": {"name": "erm"}, "steered": {"name": "drrho"}}
    families = {"weak": ["plain"], "strong": ["steered"]}
    given = {"methods": methods, "tries": 1, "seeds": 1, "metric": "m", "families": families}
    report = Tuned(TunedOptions(**given)).report(records, "t")
    assert [*report.figures] == ["differences"]
    panels = report.figures["differences"]().axes
    assert [axes.get_title() for axes in panels] == [
        "against plain, the best of weak",
        "against steered, the best of strong",
    ]
    sign = 100 if higher else -100
    labels = [text.get_text() for text in panels[0].get_yticklabels()]
    for axes, family in zip(panels, families, strict=True):
        (line, _, (bars,)) = axes.containers[0]
        places = zip(line.get_xdata(), bars.get_segments(), strict=True)
        drawn = dict(zip(labels, places, strict=True))
        for row in report.rows:
            if row["kind"] != "method":
                continue
            value, low, high = row["over"][family]["gain"]
            x, segment = drawn[row["method"]]
            if row["method"] == families[family][0]:
                assert math.isnan(x)
                continue
            assert x == pytest.approx(sign * value)
            assert sorted(segment[:, 0]) == pytest.approx(sorted([sign * low, sign * high]))


def test_savings_of_one_seed_are_drawn_over_examples_alone(tmp_path):
    records = tuned(tmp_path, 1, ("1", "0.5", "0.25"))
    page = tuned_page(records, report_seeds=1, shares={"0.5": {}, "0.25": {}})
    (line,) = [one for one in page.split("## data saved")[1].split("\n") if "| steered" in one]
    assert "≥ 4.00 [" in line
    assert page.count("another seed may differ by more") == 3  # differences, shares, data saved


def test_other_metrics_that_there_are_not_are_told(tmp_path):
    records = tuned(tmp_path, 2)
    with pytest.raises(SteeringError, match=r"tuned\.also: no 'nothing'; the runs have m, ECE"):
        tuned_page(records, also=["nothing"])
    assert "ECE: no mean over examples, so not known of a half" in tuned_page(records, also=["ECE"])


def test_halves_of_one_example_are_none(tmp_path):
    """Such an interval would have no width."""
    with pytest.raises(SteeringError, match=r"metric: m is of 4 examples, too few for two halves"):
        tuned_page(tuned(tmp_path, 2, n=4))


def weak_to_strong(seeds, gapless=()):
    """Cells at three shares; a seed without a gap has no PGR."""
    found = []
    for number, share in enumerate((0.1, 0.3, 0.5)):
        for seed in range(seeds):
            axes = {"labelled_share": 0.1, "unlabelled_share": share, "seed": seed}
            metrics = {
                "teacher/balanced": 0.6,
                "vanilla/balanced": 0.7 - 0.01 * number,
                "ceiling/balanced": 0.8,
                "vanilla/PGR": 0.5,
            }
            if seed in gapless:
                del metrics["vanilla/PGR"]
            found.append(RunRecord(f"{share}{seed}", "call", "c", axes=axes, metrics=metrics))
    return found


def test_a_correlation_of_one_draw_has_no_interval():
    (line,) = claims("a", weak_to_strong(1)).lines
    assert line == ["0.1", "50.0", "0.1 − 0.5: +2.0", "1.00"]


def test_draws_without_a_gap_are_counted():
    (line,) = claims("a", weak_to_strong(4, gapless=(1, 3))).lines
    assert line[1].endswith("(2 of 4)")
    assert "of 4" not in claims("a", weak_to_strong(4)).lines[0][1]


def compare_page(folder, finals):
    """Two methods with two seeds, evaluated half way and at the end; label -> half way, end."""
    done = []
    for label, (half, final) in finals.items():
        for seed in (0, 1):
            axes = {"method": label, "seed": seed}
            one = record(folder, label, 0.5, axes, metrics={"m": final})
            rows = [{"step": step, "eval/m": value} for step, value in ((5, half), (10, final))]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (one.folder / "metrics.jsonl").write_text(text)
            done.append(replace(one, cost=replace(one.cost, steps=10)))
    study = Compare(CompareOptions(methods={label: {} for label in finals}, seeds=[0, 1]))
    return study.report(done, "t").markdown()


def test_the_luck_of_the_baselines_own_curve_stands_beside_the_others(tmp_path):
    """Both were better half way than at their end."""
    page = compare_page(tmp_path, {"plain": (0.5, 0.4), "steered": (0.45, 0.3)})
    assert "| plain itself | m | 2 of 2 | 2.00 [2.00, 2.00]" in page
    assert "| steered | m | 2 of 2 | 2.00 [2.00, 2.00]" in page
    assert "until as good" not in compare_page(tmp_path / "one", {"plain": (0.5, 0.4)})


def test_a_run_that_is_no_number_is_left_out_of_no_mean(tmp_path):
    page = compare_page(tmp_path, {"plain": (0.5, 0.4), "steered": (0.4, math.nan)})
    assert "| steered | – |" in page.partition("## cost")[0]
    assert "| steered | – |" in page.partition("difference to plain")[2]
    assert "nan" not in page


@pytest.mark.parametrize("odd", [0.0, math.nan])
def test_one_run_without_an_error_spoils_no_page(tmp_path, odd):
    """A score of 1 has no logarithm of its error, and a run that diverged no error at all."""
    done = []
    for label in ("plain", "steered"):
        for samples in (1, 2, 4):
            for seed in (0, 1):
                axes = {"method": label, "size": "", "samples": samples, "share": "1", "seed": seed}
                error = odd if (label, samples, seed) == ("steered", 4, 1) else 0.5 / samples
                one = record(tmp_path, label, 0.5, axes, metrics={"m": 1 - error})
                done.append(replace(one, cost=Cost(flops=100 * samples)))
    options = ScalingOptions(methods={"plain": {}, "steered": {}}, samples=[1, 2, 4], metric="m")
    page = Scaling(options).report(done, "t").markdown()
    assert "steered has no law: errors at cost 400: expected positive numbers" in page
    laws = page.partition("## laws")[2].partition("##")[0]
    assert "| plain | 50 | 1.000 [" in laws
    assert "steered" not in laws
    assert "nan" not in page.partition("has no law")[0]


def test_test_points_count_beside_the_draws(tmp_path):
    """A gain that is nearly the same in every draw is as sure as 200 test points make it."""
    generator, n = np.random.default_rng(0), 200
    ease, found = generator.random(n), []
    for seed in range(4):
        place = tmp_path / str(seed)
        place.mkdir()
        luck = 0.01 * generator.normal(size=n)
        hits = {
            who: (ease + luck < rate) * 1.0 for who, rate in (("teacher", 0.5), ("vanilla", 0.7))
        }
        scores = {f"{who}/balanced": Scores(one, np.ones(n)) for who, one in hits.items()}
        write_scores(place / "scores.npz", scores)
        names = [f"{who}/balanced" for who in ("teacher", "vanilla", "enhanced", "ceiling")]
        metrics = {k: scores[k].mean() if k in scores else 0.8 for k in names}
        axes = {"labelled_share": 0.1, "unlabelled_share": 0.1, "seed": seed}
        meaning = {k: Metric(of=(k,)) for k in scores}
        more = {"metrics": metrics, "meaning": meaning, "axes": axes, "folder": place}
        found.append(RunRecord(str(seed), "call", "c", **more))
    (line,) = accuracies("a", found).lines
    value, low, high = (float(one) for one in re.findall(r"[+-][\d.]+", line[5]))
    sampling = 196 * np.std([scores["vanilla/balanced"].values - scores["teacher/balanced"].values])
    assert (high - low) / 2 == pytest.approx(sampling / n**0.5, rel=0.2)
    assert low < value < high


def test_orders_are_drawn_by_data_set():
    """Three references of a data set are one case, not three: unguided runs are common to them."""
    generator = np.random.default_rng(0)
    luck = np.repeat(generator.normal(size=6), 3)
    gains = luck + 0.1 * generator.normal(size=18)
    found = [
        Combination(f"cell{n // 3}", f"ref{n % 3}", {}, {"a": Interval(gain, gain - 1, gain + 1)})
        for n, gain in enumerate(gains)
    ]
    row = {"ridge": {"spread": 0.1}}
    wrong = np.repeat(generator.normal(size=6), 3)
    judged = Judged("a", row, luck + wrong, luck, luck - wrong, ["open"] * 18)
    (line,) = judged_table([judged], found).lines
    for place, predicted in ((1, judged.alone), (2, judged.strict), (4, judged.strange)):
        value, low, high = rank_interval(predicted, gains, [one.cell for one in found])
        assert line[place] == f"{value:.2f} [{low:.2f}, {high:.2f}]"


def test_a_kind_of_reference_plays_no_part_in_what_is_foreseen_of_it():
    generator = np.random.default_rng(1)
    signals = generator.normal(size=(12, 2))
    gains = signals[:, 0] + 0.1 * generator.normal(size=12)

    def judged(gains, kinds=3):
        found = [
            Combination(
                f"cell{n // 3}",
                f"ref{n % 3 % kinds}",
                {"s": signals[n, 0], "t": signals[n, 1]},
                {"a": Interval(gain, gain - 1, gain + 1)},
            )
            for n, gain in enumerate(gains)
        ]
        study = Calibration(CalibrationOptions({"x": {"1": {}, "2": {}}}, {"r": {}}, {"a": {}}))
        return study._judged(found, "a", ["s", "t"]), found

    one, found = judged(gains)
    other, _ = judged(np.where(np.arange(12) % 3 == 1, 9.0 - gains, gains))
    mine = np.arange(12) % 3 == 1
    np.testing.assert_allclose(one.strange[mine], other.strange[mine])
    assert np.abs(one.strange - other.strange)[~mine].min() > 0.01
    assert np.abs(one.alone - other.alone)[mine].min() > 0.01
    orders = [spearman(one.strange[k : k + 3], gains[k : k + 3]) for k in range(0, 12, 3)]
    assert judged_table([one], found).lines[0][5] == f"{np.mean(orders):.2f}"
    one, found = judged(gains, kinds=1)
    (line,) = judged_table([one], found).lines
    assert line[4:6] == ["–", "–"]
    assert line[1] != "–"


def test_a_population_of_one_seed_says_so():
    one, three = (Population(PopulationOptions(seeds=k, block=4)).report([], "t") for k in (1, 3))
    assert "over test examples alone: another seed may differ" in one.intro
    assert "the seeds move by Student's t" in three.intro
    assert "of which 4 neighbours are drawn together" in three.intro
