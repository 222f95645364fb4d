"""Define hints, the values from which the search for counterexamples starts.

No verdict depends on them: a wrong hint costs time only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hints:
    """Hold values that make counterexamples to claims about a technique easier to find.

    Args:
        landmarks: largest magnitudes for which rounding midpoints fall on integers.
        trivial_side: layers with at most this many rows or columns have loss zero.
    """

    landmarks: tuple[int, ...] = ()
    trivial_side: int = 0
