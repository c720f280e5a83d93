"""Root of a falling function, for many rows at once, and the bracket that it was found in."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Temperatures of scaled rows, as logarithms: outside, x/τ or its sums could leave float64.
LOG_RANGE = (math.log(1e-290), math.log(1e290))


def falling_root(
    f: Callable[[Tensor], Tensor], start: Tensor, bounds: tuple[float, float]
) -> Tensor:
    """An x with f(x) = 0, (m,), float64, of a falling f in each row; if f jumps over 0, just behind
    the jump."""
    return falling_bracket(f, start, bounds)[1]


def falling_bracket(
    f: Callable[[Tensor], Tensor], start: Tensor, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Two points around a root of a falling f in each row, (m,) each, float64: f > 0 at the first,
    f ≤ 0 at the second.

    They are neighbours up to rounding, unless f is exactly 0 at the second. If f has one sign
    between the bounds, both are the bound where it is nearest to 0. A row that is done stands
    still, so its answer does not depend on its neighbours.

    Source: Chandrupatla (1997), inverse quadratic interpolation where it is safe, else bisection;
    the bracket is kept.
    """
    a, fa = _march(f, start, bounds, -1)
    b, fb = _march(f, start, bounds, +1)
    # f never gets positive: its lowest x is the answer.
    stuck = fa <= 0
    b, fb = torch.where(stuck, a, b), torch.where(stuck, fa, fb)
    t = torch.full_like(a, 0.5)
    for _ in range(100):
        tolerance = 1e-14 + 4 * torch.finfo(a.dtype).eps * a.abs()
        searching = ~stuck & (fa != 0) & (fb != 0) & ((b - a).abs() > tolerance)
        if not searching.any():
            break
        x = torch.where(searching, a + t * (b - a), a)
        fx = f(x)
        same = (fx > 0) == (fa > 0)
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx  # a is the newest point, b its opposite in sign, c the one before
        xi, level = (a - b) / (c - b), (fa - fb) / (fc - fb)
        # Chandrupatla's condition for an inverse parabola that stays between the ends. A row that
        # is done may divide 0 by 0 here; no comparison with NaN is true, so it takes the other
        # branch.
        smooth = (level.square() < xi) & ((1 - level).square() < 1 - xi)
        quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (
            fc - fb
        )
        # Never so near to an end that rounding would give the end itself.
        edge = (0.5 * tolerance / (b - a).abs()).clamp_max(0.5)
        t = torch.where(smooth, quadratic, 0.5).clamp(edge, 1 - edge)
    behind = fa <= 0
    return torch.where(behind, b, a), torch.where(behind, a, b)


def _march(
    f: Callable[[Tensor], Tensor], start: Tensor, bounds: tuple[float, float], direction: int
) -> tuple[Tensor, Tensor]:
    """Walk from `start` in doubling steps until f > 0 (direction −1) or f ≤ 0 (direction +1); the
    point and its f."""
    x, fx = start.clamp(*bounds), f(start.clamp(*bounds))
    # 1 + 2 + 4 + ... + 2^10 = 2047 is further than `LOG_RANGE` is wide, from any start.
    for power in range(11):
        wrong = (fx > 0) if direction > 0 else (fx <= 0)
        if not wrong.any():
            break
        x = torch.where(wrong, (x + direction * 2.0**power).clamp(*bounds), x)
        fx = f(x)
    return x, fx
