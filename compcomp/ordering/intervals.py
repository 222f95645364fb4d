"""Bound the error of a mean over few independent parts: Student's t interval, also on paired differences.

A part is a pair (sum, count); a mean over parts is the ratio of the two totals. The argument is in docs/measuring.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from compcomp.bench import Pair


def mean(pairs: Sequence[Pair]) -> float:
    """Return the mean over everything in the parts: the total of the sums over the total of the counts."""
    return sum(part for part, _ in pairs) / sum(count for _, count in pairs)


def half_width(pairs: Sequence[Pair], level: float) -> float:
    """Return half the width of the confidence interval around a mean over parts.

    Args:
        pairs: The parts.
        level: The probability that the interval misses the true mean.
    """
    return _half(_residuals(pairs), level)


def difference(pairs: Sequence[Pair], others: Sequence[Pair], level: float) -> tuple[float, float]:
    """Return the first mean less the second, over the same parts, and half the width of its interval.

    If the differences are not zero but the same on every part, they say nothing about their spread. The width is
    infinite then.

    Args:
        pairs: The parts of the first mean.
        others: The parts of the second mean, aligned with ``pairs``.
        level: The probability that the interval misses the true difference.
    """
    middle = mean(pairs) - mean(others)
    spread = [a - b for a, b in zip(_residuals(pairs), _residuals(others), strict=True)]
    half = _half(spread, level)
    return middle, math.inf if half == 0 != middle else half


def _residuals(pairs: Sequence[Pair]) -> list[float]:
    """Return the contribution of each part to the error of the mean: the ratio of two totals, linearised."""
    middle = mean(pairs)
    size = sum(count for _, count in pairs) / len(pairs)
    return [(part - middle * count) / size for part, count in pairs]


def _half(residuals: Sequence[float], level: float) -> float:
    count = len(residuals)
    if count < 2:
        return math.inf
    if not all(map(math.isfinite, residuals)):
        return math.nan
    spread = sum(one * one for one in residuals) / (count - 1)
    return t_quantile(level, count - 1) * math.sqrt(spread / count)


@cache
def t_quantile(level: float, degrees: int) -> float:
    """Return the t that \\|T\\| exceeds with probability ``level``, for Student's T with so many degrees of freedom."""
    high = 1.0
    while _beyond(high, degrees) > level:
        high *= 2
    low = 0.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _beyond(middle, degrees) > level else (low, middle)
    return high


def _beyond(t: float, degrees: int) -> float:
    """Return P(\\|T\\| > t) by the finite series for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = total = (cosine if odd else 1.0) if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 1 - inside
