"""A divergence in one file: the squared Hellinger distance. An adversary that pays by it is
milder at the top than KL's.

method: {name: drrho, divergence: "examples/parts/divergence.py:squared_hellinger"}
"""

from dataclasses import dataclass

from steering.dro import DIVERGENCES, Divergence


@DIVERGENCES.register("squared_hellinger")
@dataclass(frozen=True)
class Hellinger(Divergence):
    """φ(t) = 2(√t − 1)², with φ(1) = φ'(1) = 0 and φ''(1) = 1."""

    def phi(self, t):
        return (2 * (t.clamp_min(0).sqrt() - 1).square()).masked_fill(t < 0, float("inf"))

    def conjugate(self, s):
        """sup_t s·t − φ(t): finite below 2 alone."""
        return (s / (1 - s / 2)).masked_fill(s >= 2, float("inf"))

    def ratio(self, s):
        """The derivative of the conjugate: the weight of an item whose score is s, over 1/n."""
        return (1 - s / 2).pow(-2).masked_fill(s >= 2, float("inf"))
