"""Rankings, pairs, contrast sampling, and the search: METHODS' acceptance facts 4, 5 and 7."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import END, causal

from steering.activation import (
    Edit,
    Pair,
    Shift,
    Speaker,
    answer_losses,
    best_and_worst,
    best_layers,
    distinct_share,
    fitted_edits,
    layer_accuracies,
    likelihood_margin,
    most_informative,
    search,
    search_families,
    wins,
    with_strength,
)
from steering.activation.directions import MeanDifference

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=8)


@given(scores)
def test_best_and_worst_respect_the_ranker(values):
    answers = [f"answer {number}" for number in range(len(values))]
    pair = best_and_worst("x", answers, values)
    if len(set(values)) == 1:
        assert pair is None
        return
    assert values[answers.index(pair.better)] == max(values)
    assert values[answers.index(pair.worse)] == min(values)
    assert pair.margin == max(values) - min(values) > 0


def test_one_text_twice_is_no_pair():
    assert best_and_worst("x", ["same", "same"], [1.0, 0.0]) is None
    assert best_and_worst("x", [], []) is None


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan], [math.inf, 0.0]])
def test_scores_that_say_nothing_are_refused(values):
    with pytest.raises(ValueError, match="scores"):
        best_and_worst("x", ["a", "b"], values)


@given(st.lists(st.floats(0.1, 9), max_size=12), st.floats(0.01, 1))
def test_contrast_sampling_takes_the_largest_margins(margins, share):
    pairs = [Pair(str(n), "a", "b", margin) for n, margin in enumerate(margins)]
    chosen = most_informative(pairs, share)
    assert most_informative(pairs, 1.0) == pairs
    rest = [pair for pair in pairs if pair not in chosen]
    if chosen and rest:
        assert min(p.margin for p in chosen) >= max(p.margin for p in rest)
    assert len(chosen) + 1e-8 >= share * len(pairs) > len(chosen) - 1 or not pairs
    assert [int(p.prompt) for p in chosen] == sorted(int(p.prompt) for p in chosen)


@pytest.mark.parametrize(("share", "of", "left"), [(0.07, 100, 7), (0.14, 50, 7), (0.5, 5, 3)])
def test_a_share_that_is_a_whole_number_is_that_many(share, of, left):
    assert len(most_informative([Pair("", "a", "b", 1.0)] * of, share)) == left


def test_a_share_outside_is_refused():
    with pytest.raises(ValueError, match="share"):
        most_informative([], 0.0)


def test_a_judge_without_bias_is_a_tournament():
    quality = [0.3, 2.0, -1.0, 0.9]
    found = wins(4, lambda i, j: quality[i] > quality[j])
    assert found == [sum(q > other for other in quality) for q in quality]


@pytest.mark.parametrize("always", [True, False])
def test_a_judge_that_looks_at_the_order_alone_says_ties(always):
    assert wins(4, lambda i, j: always) == [1.5] * 4  # noqa: ARG005
    assert best_and_worst("x", list("abcd"), wins(4, lambda i, j: always)) is None  # noqa: ARG005


def test_a_pair_on_which_the_order_decides_is_a_tie():
    """Right about 0 and 2, undecided between 1 and the others."""
    found = wins(3, lambda i, j: i == 0 or (i == 1 and j != 0) or (i == 2 and j == 1))
    assert found == [2.0, 0.5, 0.5]


def test_repetition_shows_in_distinct_n_grams():
    assert distinct_share(["abcdef"]) == 1.0
    assert distinct_share(["aaaaaaa"]) == 0.25
    assert distinct_share(["abcd", "abcd"]) == 0.5
    assert math.isnan(distinct_share(["abc", ""]))


# ---- search


def clouds(gap, n=60):
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(2, n, 8, generator=generator)
    return up + gap, down


def test_the_layer_whose_probe_tells_held_out_activations_apart():
    layers = {"none": clouds(0.0), "little": clouds(0.3), "much": clouds(2.0)}
    sides = [
        {name: side[part][cut] for name, side in layers.items()}
        for cut in (slice(40), slice(40, None))
        for part in (0, 1)
    ]
    found = layer_accuracies(*sides)
    assert found["none"] < 0.7 < found["little"] < found["much"] <= 1.0
    assert best_layers(found, 1) == ["much"]
    assert best_layers(found, 2) == ["little", "much"]
    assert best_layers({"a": 0.5, "b": 0.5}, 1) == ["a"]


def test_mean_difference_moves_the_negative_cloud_onto_the_positive_mean():
    up, down = clouds(2.0)
    (edit,) = fitted_edits(MeanDifference(), {"x": up}, {"x": down})
    moved = down + edit.move.displacement(down, edit.strength)
    torch.testing.assert_close(moved.mean(0), up.mean(0), atol=1e-5, rtol=1e-5)
    assert with_strength([edit], 0.5)[0].strength == 0.5
    assert edit.scope == "decoded"


def test_search_takes_the_best_within_the_budget_or_nothing():
    edits = [[Edit("x", Shift(torch.ones(1)), strength)] for strength in (1.0, 2.0, 3.0)]
    gains, harms = [0.0, 0.1, 0.5, 0.9], [1.0, 1.05, 1.1, 1.5]

    def judged(candidate):
        number = int(candidate[0].strength) if candidate else 0
        return gains[number], harms[number]

    best, trials = search(edits, judged, budget=0.2)
    assert best.edits[0].strength == 2.0
    assert [(t.gain, round(t.harm, 9)) for t in trials] == [
        (0.0, 0.0),
        (0.1, 0.05),
        (0.5, 0.1),
        (0.9, 0.5),
    ]
    assert search(edits, judged, budget=0.01)[0].edits == ()
    gains[:] = [0.0, -1.0, -1.0, 0.0]
    assert search(edits, judged, budget=9.0)[0].edits == ()  # of equals the unsteered model


def straight(gains, harms, asked):
    """A judge for whom gain and harm grow in proportion to the strength at a layer."""

    def judged(edits):
        asked.append([(edit.layer, edit.strength) for edit in edits])
        gain, harm = (sum(rate[e.layer] * e.strength for e in edits) for rate in (gains, harms))
        return gain, 1.0 + harm

    return judged


def one(layer, strength=1.0):
    return [Edit(layer, Shift(torch.ones(1)), strength)]


def test_the_set_that_gains_most_for_the_harm_allowed_is_refined():
    """a gains 2 per unit of harm and b 3, but a's grid ends at the budget and b's below it."""
    asked = []
    judged = straight({"a": 2.0, "b": 1.8}, {"a": 1.0, "b": 0.6}, asked)
    families = [one("a"), one("b")]
    best, trials = search_families(families, [4, 1, 2], judged, budget=1.0)
    assert asked == [[], [("a", 1)], [("a", 2)], [("b", 1)], [("b", 2)]]  # 4 is beyond the budget
    assert [trial.gain for trial in trials] == [0.0, 2.0, 4.0, 1.8, 3.6]
    assert (best.edits[0].layer, best.edits[0].strength) == ("a", 1)
    best, trials = search_families(families, [4, 1, 2], judged, budget=1.0, refine=3)
    assert [trial.edits[0].strength for trial in trials[5:]] == [1.5, 1.75, 1.625]
    assert (best.edits[0].layer, best.edits[0].strength) == ("b", 1.625)
    assert best.harm == pytest.approx(0.975)
    best, trials = search_families(families, [1], judged, budget=9.0, refine=3)
    assert len(trials) == 3  # nothing was refused, so there is nothing to halve
    assert best.edits[0].layer == "a"


def test_other_candidates_and_fixed_edits_keep_their_strength():
    asked = []
    judged = straight({"a": 1.0, "b": 0.2, "c": 2.0}, {"a": 1.0, "b": 0.1, "c": 0.1}, asked)
    fixed, before = one("b", 3.0), one("c", 1.0)
    best, _ = search_families([one("a")], [1, 2], judged, 1.5, 1, [before], fixed)
    assert asked[1] == [("c", 1.0)]
    assert asked[2:] == [[("b", 3.0), ("a", x)] for x in (1, 2, 1.5)]
    assert [edit.layer for edit in best.edits] == ["c"]  # 2.0 against 1.6
    assert search_families([], [1], judged, 1.0, 2)[0].edits == ()


def noisy(gain, harm, noise):
    """A judge with a curved gain and harm of the strength at layer a, and a fixed error of each
    strength that it is asked about."""

    def judged(edits):
        at = sum(edit.strength for edit in edits if edit.layer == "a")
        fixed = sum(edit.strength for edit in edits if edit.layer != "a")
        off = noise.get(round(at, 3), (0.0, 0.0))
        return gain(at) + fixed + off[0], 1.0 + harm(at) + 0.1 * fixed + off[1]

    return judged


def test_a_curve_through_all_trials_finds_the_strength_of_curved_gain_and_harm():
    judged = noisy(lambda s: 2 * s - 0.1 * s * s, lambda s: 0.2 * s + 0.1 * s * s, {})
    best, trials = search_families([one("a")], [1, 2, 4], judged, 1.2, refine=1, curve=True)
    assert best is trials[-1]
    assert best.edits[0].strength == pytest.approx(2.606, abs=0.01)  # 0.2 s + 0.1 s² = 1.2
    assert best.harm == pytest.approx(1.2, abs=0.01)
    assert best.gain == pytest.approx(4.53, abs=0.02)
    best, _ = search_families([one("a")], [1, 2, 4], judged, 9.0, refine=1, curve=True)
    assert best.edits[0].strength == 4  # nothing beyond what was tried
    top = noisy(lambda s: 2 * s - 0.5 * s * s, lambda s: 0.01 * s, {})
    best, _ = search_families([one("a")], [1, 2, 4], top, 9.0, curve=True)
    assert best.edits[0].strength == pytest.approx(2, abs=0.01)  # the gain's own top
    loss = noisy(lambda s: -s, lambda s: 0.01 * s, {})
    assert search_families([one("a")], [1, 2], loss, 9.0, curve=True)[0].edits == ()


def test_a_lucky_trial_moves_a_curve_less_than_the_best_of_single_trials():
    """At strength 1 the judge is lucky: much gain, no harm."""
    luck = {1.0: (3.0, -0.1)}
    judged = noisy(lambda s: s, lambda s: 0.1 * s, luck)
    how = [one("a")], [0.5, 1, 2, 4], judged, 0.3
    assert search_families(*how, refine=3)[0].edits[0].strength == 1
    best, _ = search_families(*how, refine=3, curve=True)
    assert best.edits[0].strength > 2.5


def test_a_curve_begins_where_fixed_edits_are():
    judged = noisy(lambda s: s, lambda s: 0.1 * s, {})
    fixed = one("b", 2.0)
    best, _ = search_families([one("a")], [1, 2, 4], judged, 0.4, 2, [fixed], fixed, curve=True)
    assert [edit.layer for edit in best.edits] == ["b", "a"]
    assert best.edits[1].strength == pytest.approx(2, abs=0.02)  # 0.2 of the budget is b's
    assert best.gain == pytest.approx(4, abs=0.02)
    spent = search_families([one("a")], [1, 2], judged, 0.1, 2, [fixed], fixed, curve=True)
    assert spent[0].edits == ()


def test_the_likelihood_margin_is_that_of_the_losses():
    speaker = Speaker(causal(), END)
    prompts, better, worse = [[1, 2], [3]], [[4, 5, 6], [7]], [[8, 9], [1, 2, 3]]
    gain, harm = likelihood_margin(speaker, prompts, better, worse)
    sides = [answer_losses(speaker, prompts, side) for side in (better, worse)]
    means = [
        [float(x) / len(a) for x, a in zip(loss, side, strict=True)]
        for loss, side in zip(sides, (better, worse), strict=True)
    ]
    assert gain == pytest.approx(sum(w - b for b, w in zip(*means, strict=True)) / 2)
    assert harm == pytest.approx(sum(means[0]) / 2)
    assert len(set(itertools.chain(*means))) == 4
