"""Tables, verdict and figure of the study of data recipes, from its records."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from steering.analysis.intervals import Interval, seeds_interval
from steering.analysis.page import Table
from steering.analysis.ranks import over_items, pair_agreement, regret, spearman
from steering.analysis.recipes_axis import Axis, converged, known
from steering.analysis.recipes_mixtures import fit, mean_of_others, mixtures_of, rms
from steering.analysis.trials import diverged

DROP = 0.005  # of the training loss: a run that falls less has not trained
FEW = 8  # recipes, below which a bootstrap over them covers less than it says
SIGNAL = 2.0  # spread of the recipes over the deviation of the seeds, below which ranks are luck


def tables(axis: Axis) -> list[Table]:
    found = [_ranking(axis), *by_weights(axis)]
    if axis.has_truth:
        found += [_agreements(axis), *by_metric(axis), _costs(axis)]
    return found


def by_metric(axis: Axis) -> list[Table]:
    """The same of every other loss, such as that of a domain, and of means over examples, such as
    an accuracy."""
    records = [*axis.proxies, *axis.targets]
    meaning = converged(axis.proxies)[0].meaning
    others = [name for name, one in meaning.items() if not one.higher_is_better or one.of]
    names = list(dict.fromkeys([axis.metric, *others]))
    lines = []
    for name in names:
        one = Axis(records, name, axis.ratio)
        small, usual = (one.proxy[rate].mean(-1) for rate in (axis.small, axis.usual))
        lines.append(
            [
                name,
                *(_bracketed(over_items(spearman, values, one.truth)) for values in (small, usual)),
                *(_number(regret(values, one.truth, 1)) for values in (small, usual)),
                f"{one.ceiling():.2f}",
            ]
        )
    header = [
        "metric",
        "Spearman, small",
        "usual",
        "regret@1, small",
        "usual",
        "two seeds of the target",
    ]
    return [Table("by metric", header, lines)] if len(lines) > 1 else []


def _ranking(axis: Axis) -> Table:
    """Every recipe with its losses, the best by the recommended rate first."""
    small, usual = (axis.proxy[rate].mean(-1) for rate in (axis.small, axis.usual))
    columns = {f"proxy at {axis.small:g}": small, f"proxy at {axis.usual:g}": usual}
    if axis.has_truth:
        columns["target, tuned"] = axis.truth
    by_frequency = axis.by_order0()
    if by_frequency is not None:
        columns["order 0"] = axis.sign * by_frequency  # a loss, whatever the metric is
    lines = [
        [axis.recipes[n], *(_number(axis.sign * values[n]) for values in columns.values())]
        for n in np.argsort(known(axis.proxy[recommended(axis)].mean(-1)), kind="stable")
    ]
    which = "usual" if doubts(axis) else "small"
    note = diverged([*axis.proxies, *axis.targets])
    header = ["recipe", *columns]
    return Table(f"recipes, the best by the {which} rate first", header, lines, note=note)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"


def by_weights(axis: Axis) -> list[Table]:
    """A linear fit of the losses on the weights, where the recipes are mixtures and nothing else."""
    mixtures = mixtures_of(axis)
    if mixtures is None:
        return []
    rates = list(dict.fromkeys([axis.small, axis.usual]))
    losses = {rate: axis.proxy[rate].mean(-1) for rate in rates}
    if any(np.isnan(one).any() for one in losses.values()):
        return []
    fits = {rate: fit(mixtures.shares, losses[rate]) for rate in rates}
    errors = {rate: rms(fits[rate].left_out - losses[rate]) for rate in rates}
    plain = {rate: rms(mean_of_others(losses[rate]) - losses[rate]) for rate in rates}
    lines = [
        ["error on a recipe left out", *(f"{errors[rate]:.4f}" for rate in rates)],
        ["of the mean of the others", *(f"{plain[rate]:.4f}" for rate in rates)],
        ["first by the fit", *(axis.recipes[int(fits[rate].fitted.argmin())] for rate in rates)],
    ]
    if axis.has_truth:
        fitted = [fits[rate].fitted for rate in rates]
        lines += [
            ["Spearman with the truth", *(f"{spearman(one, axis.truth):.2f}" for one in fitted)],
            ["regret@1", *(f"{regret(one, axis.truth, 1):.4f}" for one in fitted)],
        ]
    shifts = [axis.sign * fits[rate].shift(0.1) for rate in rates]
    for number, domain in enumerate(mixtures.domains):
        lines.append([f"10 points more of {domain}", *(f"{one[number]:+.4f}" for one in shifts)])
    note = (
        "Root mean square errors, of predictions whose fit and penalty have not seen the recipe. The "
        "last lines say by how much the proxy changes when a domain's share grows from the mean "
        "mixture at the cost of the others in proportion."
    )
    if vain := [f"{rate:g}" for rate in rates if errors[rate] >= plain[rate]]:
        note += (
            f" **At {' and '.join(vain)} the fit is no better than the mean on recipes left out**: do "
            "not go by it."
        )
    header = ["", *(f"proxy at {rate:g}" for rate in rates)]
    return [Table("a linear fit on the weights", header, lines, note=note)]


def _agreements(axis: Axis) -> Table:
    lines = []
    for rate in axis.rates:
        mark = {axis.small: " (small)", axis.usual: " (usual)"}.get(rate, "")
        values = axis.proxy[rate].mean(-1)
        signal, fall = axis.signal(rate), axis.drop(rate)
        own = [
            _alone(axis, rate),
            "–" if np.isnan(signal) else f"{signal:.1f}",
            "–" if np.isnan(fall) else f"{100 * fall:.1f} %",
        ]
        lines.append([f"{rate:g}{mark}", *_against(axis, values), *own])
    by_frequency = axis.by_order0()
    if by_frequency is not None:
        lines.append(["order 0", *_against(axis, by_frequency), "–", "–", "–"])
    agreement = axis.agreement(axis.usual)
    note = (
        f"Clear pairs ({agreement.clear_pairs} of {agreement.pairs}) differ by more than two standard "
        f"deviations of the truth. {_ceiling(axis)}One seed alone has the Spearman that is given, in the "
        "mean, and so many seeds find a best recipe (none is better by two standard deviations of "
        "the truth). Signal is the spread of the recipes over the noise "
        "of the seeds; fall is that of the training loss."
    )
    if len(axis.recipes) < FEW:
        note += f" With fewer than {FEW} recipes a bootstrap over them is too sure."
    if edge := axis.at_the_edge():
        note += (
            f" **The target is best at the edge of `target_rates` for {', '.join(edge)}**: it may not "
            "be tuned; try rates beyond."
        )
    header = [
        "proxy's rate",
        "Spearman",
        "pairs",
        "clear pairs",
        "regret@1",
        "regret@2",
        "one seed",
        "signal",
        "fall",
    ]
    return Table("how well the target's order is predicted", header, lines, note=note)


def _ceiling(axis: Axis) -> str:
    """What there is to reach; nothing where the target has one seed."""
    if np.isnan(axis.ceiling()):
        return ""
    return (
        f"Two seeds of the tuned target correlate by {axis.ceiling():.2f}, so a proxy without noise "
        f"would reach about {axis.attainable():.2f}. "
    )


def _alone(axis: Axis, rate: float) -> str:
    """How well the seeds rank alone, and how many of them put a best recipe first."""
    found = axis.proxy[rate]
    if np.isnan(found).any() or axis.without_truth():
        return "–"
    near = 2 * float(np.sqrt(2) * axis.noise[0])
    right = [regret(losses, axis.truth, 1) <= near for losses in found.T]
    return f"{axis.alone(rate).mean():.2f}, {sum(right)} of {len(right)}"


def _against(axis: Axis, values: np.ndarray) -> list[str]:
    if np.isnan(values).any() or axis.without_truth():  # a run has diverged: no order
        return ["–"] * 5
    agreement = pair_agreement(values, axis.truth, axis.noise)
    return [
        _bracketed(over_items(spearman, values, axis.truth)),
        f"{agreement.all:.2f}",
        "–" if np.isnan(agreement.clear) else f"{agreement.clear:.2f}",
        f"{regret(values, axis.truth, 1):.4f}",
        f"{regret(values, axis.truth, 2):.4f}",
    ]


def _bracketed(found: Interval) -> str:
    if np.isnan(found.value):
        return "–"
    if np.isnan(found.low):
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _costs(axis: Axis) -> Table:
    proxy = sum(r.cost.flops for r in axis.proxies if r.axes["rate"] == axis.small)
    target = sum(r.cost.flops for r in axis.targets)
    lines = [
        ["proxies at the small rate", f"{proxy:.2e}", f"{proxy / max(target, 1):.4f}"],
        ["the target tuned on every recipe", f"{target:.2e}", "1"],
    ]
    return Table("what the decision costs", ["", "FLOPs", "of the truth's"], lines)


def doubts(axis: Axis) -> list[str]:
    """Why the small rate cannot rank here; known without the truth."""
    reasons = []
    if axis.drop(axis.small) < DROP:
        reasons.append("at the small rate the training loss hardly falls")
    if np.isnan(axis.proxy[axis.small]).any():
        reasons.append("at the small rate a proxy is no number")
    elif np.isnan(axis.signal(axis.small)):
        reasons.append("one seed of the proxy does not tell how far seeds differ")
    elif axis.signal(axis.small) < SIGNAL:
        reasons.append("the recipes differ by less than the seeds do")
    return reasons


def recommended(axis: Axis) -> float:
    """The rate that chooses: the small one, or where it cannot rank the proxy's own best."""
    return axis.usual if doubts(axis) else axis.small


def verdict_of(axis: Axis) -> str:
    """One or two sentences: does the small rate rank better here, and why it may not say."""
    if not axis.has_truth:
        return "There is no truth to compare with: the target was not trained."
    small, usual = (axis.proxy[rate].mean(-1) for rate in (axis.small, axis.usual))
    if lost := axis.without_truth():
        return f"Inconclusive here: the target of {', '.join(lost)} diverged at every rate."
    if axis.small == axis.usual:
        return f"Inconclusive: no rate among `rates` is {axis.ratio:g} times below the best one."
    if reasons := doubts(axis):
        return f"Inconclusive here: {' and '.join(reasons)}. The usual rate chooses."
    found = _difference(small, usual, axis.truth)
    numbers = f"Spearman {found.value:+.2f}"
    if np.isfinite(found.low):
        numbers += f" [{found.low:+.2f}, {found.high:+.2f}]"
    numbers += " against the usual rate"
    paired = seeds_interval([*(axis.alone(axis.small) - axis.alone(axis.usual))])
    if np.isfinite(paired.low):
        numbers += f"; of one seed alone {paired.value:+.2f} [{paired.low:+.2f}, {paired.high:+.2f}] over seeds"
    costs = regret(small, axis.truth, 1) - regret(usual, axis.truth, 1)
    if found.low > 0 and costs <= 0:
        return f"Supported here: the small rate ranks better ({numbers})."
    if found.high < 0 or costs > 0:
        return (
            "Not supported here: the small rate ranks no better, or its first choice is worse "
            f"({numbers}; regret@1 {costs:+.4f})."
        )
    return f"Not supported here: no difference beyond chance ({numbers})."


def _difference(one: np.ndarray, other: np.ndarray, truth: np.ndarray) -> Interval:
    both = np.stack([one, other], 1)
    return over_items(lambda x, t: spearman(x[:, 0], t) - spearman(x[:, 1], t), both, truth)


def winner_config(axis: Axis) -> str:
    """The recipe that the recommended rate puts first, as a config that `steering train` takes."""
    rate = recommended(axis)
    first = axis.recipes[int(known(axis.proxy[rate].mean(-1)).argmin())]
    pool = axis.targets or axis.proxies
    mine = [r for r in pool if r.axes["recipe"] == first]
    best = min(mine, key=lambda r: float(known(np.array(axis.loss(r)))))
    values: dict[str, Any] = best.config()
    values.pop("studies", None)
    head = f"# The recipe {first!r}, first by the proxy at learning rate {rate:g}.\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
