"""Answers of the exercises: what is right, what helps, and the line of code that finds it."""

from typing import Any, NamedTuple


class Answer(NamedTuple):
    """expected: number, list or letter; hint for a wrong answer; why, for a right one; code, a Python
    expression whose value it is (`torch`, `math` and `steering` are there), or "" for a letter."""

    expected: Any
    tolerance: float
    hint: str
    why: str
    code: str = ""


ANSWERS = {
    "1.1": Answer(
        0.731,
        0.006,
        "the two weights are as 1 to e.",
        "e/(1 + e): with two examples the softmax is the logistic function of the difference.",
        "1 / (1 + math.exp(-1))",
    ),
    "1.2": Answer(
        0.0,
        1e-6,
        "write the softmax with 5 added everywhere, and cancel.",
        "A constant moves the value and no weight.",
        "(torch.tensor([5.0, 5.69, 6.39]).softmax(0) - torch.tensor([0.0, 0.69, 1.39]).softmax(0)).abs().max()",
    ),
    "1.3": Answer(
        6.91,
        0.01,
        "put all weight on one example in the formula of D(p).",
        "log n, which grows slowly: a radius of 7 nats is no limit here.",
        "math.log(1000)",
    ),
    "1.4": Answer(
        1.8,
        0.05,
        "half of the weight means exp(3/τ) = 3 exp(1/τ).",
        "τ = 2/ln 3.",
        "2 / math.log(3)",
    ),
    "2.1": Answer(
        2.0,
        0.0,
        "the level is the share of the examples that get weight.",
        "The worst 20 % of ten examples, each with weight 1/2.",
        "(steering.worst_case(torch.arange(10.0), 'cvar', level=0.2).weights > 0).sum().item()",
    ),
    "2.2": Answer(
        1.333,
        0.006,
        "mean 1, variance 2/3; multiply 2R by the variance before the root.",
        "1 + √(2 · 1/12 · 2/3) = 4/3.",
        "1 + math.sqrt(2 / 12 * 2 / 3)",
    ),
    "2.3": Answer(
        "a",
        0.0,
        "the ceiling at level 0.5 is a ratio of 2; the mass that moved here is 1/3.",
        "Both ratios are below the ceiling 2, but a third of the mass has moved, more than 0.2.",
    ),
    "2.4": Answer(
        [0.0, 0.25, 0.25, 0.5],
        1e-6,
        "take a quarter of the mass from the smallest loss and lay it on the largest.",
        "The whole share of the smallest loss goes to the largest.",
        "steering.worst_case(torch.arange(4.0), 'tv', radius=0.25).weights",
    ),
    "3.1": Answer(
        0.45,
        0.006,
        "softmax with groups: shares times exp(loss/τ).",
        "0.1 e² / (0.1 e² + 0.9).",
        "0.1 * math.exp(2) / (0.1 * math.exp(2) + 0.9)",
    ),
    "3.2": Answer(
        0.989,
        0.006,
        "as in 3.1 with 2/0.3 in the exponent.",
        "At a low price a small group takes nearly all of the weight.",
        "0.1 * math.exp(2 / 0.3) / (0.1 * math.exp(2 / 0.3) + 0.9)",
    ),
    "3.3": Answer(
        0.632,
        0.006,
        "at τ = 1 the weight is 1 over the probability of the given label.",
        "Right labels weigh 1/0.8, wrong ones 1/0.2: 0.3 · 5 / (0.3 · 5 + 0.7 · 1.25).",
        "0.3 / 0.2 / (0.3 / 0.2 + 0.7 / 0.8)",
    ),
    "3.4": Answer(
        "b",
        0.0,
        "a surer model makes the losses of wrong labels larger.",
        "A high price keeps the adversary near equal weights, where the mass is 0.3.",
    ),
    "4.1": Answer(
        1.822,
        0.006,
        "the excess losses are 0.2 and 0.8.",
        "exp(0.8 − 0.2).",
        "math.exp((0.9 - 0.1) - (2.3 - 2.1))",
    ),
    "4.2": Answer(
        0.247,
        0.006,
        "now the losses themselves stand in the exponent.",
        "exp(0.9 − 2.3): DRO prefers the first by a factor of four.",
        "math.exp(0.9 - 2.3)",
    ),
    "4.3": Answer(
        "b",
        0.0,
        "what does adding a constant to all losses do to the weights (lesson 1)?",
        "A constant moves no weight, so the reference says nothing and DRO is left.",
    ),
    "4.4": Answer(
        0.005,
        1e-9,
        "all excess losses are zero.",
        "Equal losses get equal weights, 1/200: plain training.",
        "steering.worst_case(torch.zeros(200), 'kl', penalty=1.0).weights[0].item()",
    ),
    "5.1": Answer(
        0.693,
        0.001,
        "the mean of log 1, log 2 and log 4.",
        "log 2: smaller than 0.847, as Jensen says.",
        "(math.log(1) + math.log(2) + math.log(4)) / 3",
    ),
    "5.2": Answer(
        0.807,
        0.001,
        "the batches have the means 1.5, 2.5 and 3.",
        "Closer to 0.847 than with batches of one.",
        "(math.log(1.5) + math.log(2.5) + math.log(3)) / 3",
    ),
    "5.3": Answer(
        2.75,
        1e-6,
        "halfway twice.",
        "1 → 1.5 → 2.75.",
        "0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 4",
    ),
    "5.4": Answer(99.0, 0.5, "(2 − γ)/γ.", "1.98/0.02.", "(2 - 0.02) / 0.02"),
    "6.1": Answer(
        2.5,
        1e-6,
        "covariance 5/3 and variance 2/3, both with 1/n.",
        "The slope of the regression line.",
        "(5 / 3) / (2 / 3)",
    ),
    "6.2": Answer(
        0.36,
        1e-6,
        "1 − r².",
        "1 − 0.64.",
        "1 - 0.8**2",
    ),
    "6.3": Answer(
        2.0,
        1e-6,
        "keep α/τ + κ.",
        "1/0.5 + 0 = 0 + 2.",
        "1 / 0.5",
    ),
    "6.4": Answer(
        "c",
        0.0,
        "a constant moves no weight.",
        "A reference that says the same of everybody says nothing.",
    ),
    "7.1": Answer(
        0.005,
        1e-6,
        "σ/√n.",
        "0.5/100.",
        "0.5 / math.sqrt(10_000)",
    ),
    "7.2": Answer(100.0, 1e-6, "the root of the factor must be ten.", "10².", "10**2"),
    "7.3": Answer(
        10.0, 1e-6, "the factor itself must be ten.", "That is why the rate matters.", "10"
    ),
    "7.4": Answer(
        0.25,
        1e-6,
        "the excess loss is then (1 − α) times the reference loss.",
        "(1 − α)²: half the strength keeps the slow rate.",
        "(1 - 0.5) ** 2",
    ),
    "8.1": Answer(-0.5, 1e-6, "negative minus positive.", "The right caption wins.", "0.3 - 0.8"),
    "8.2": Answer(
        0.23,
        0.006,
        "τ times the natural logarithm of 1/ε.",
        "0.05 · ln 100.",
        "0.05 * math.log(100)",
    ),
    "8.3": Answer(
        1 / 256,
        1e-5,
        "one over the number of negatives.",
        "1/(B − 1).",
        "1 / (257 - 1)",
    ),
    "8.4": Answer(
        "b",
        0.0,
        "compare −0.1 + 0.1 with −0.2 + 0.9.",
        "The reference tells the second apart and the target does not yet.",
    ),
    "9.1": Answer(
        [2.0, 2.0],
        1e-6,
        "x = 1/τ, y = α/τ + κ.",
        "x = 2 and y = 1 + 1.",
        "[1 / 0.5, 0.5 / 0.5 + 1]",
    ),
    "9.2": Answer(2.0, 1e-6, "y must stay 2.", "α/τ = 2 goes, κ = 2 comes.", "1.0 * 2"),
    "9.3": Answer(
        "b",
        0.0,
        "a filter has no adversary.",
        "With λ → ∞ only the prior is left.",
    ),
    "9.4": Answer(
        0.2,
        1e-6,
        "1 over (n times the sum of the squared weights).",
        "1/(10 · 1/2): two of ten.",
        "1 / (10 * (0.5**2 + 0.5**2))",
    ),
    "10.1": Answer(
        0.71,
        0.006,
        "standard deviation (with n − 1) over √5.",
        "1.58/2.24.",
        "torch.arange(1.0, 6.0).std().item() / math.sqrt(5)",
    ),
    "10.2": Answer(
        "b",
        0.0,
        "the mean is 3 and the half width 2.78 · 0.71.",
        "3 ± 2.0 does not reach zero.",
    ),
    "10.3": Answer(
        "b",
        0.0,
        "lesson 6 has a reference of this kind.",
        "It doubts what the target learns: at full strength that is a disaster.",
    ),
}
