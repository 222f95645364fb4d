"""Hints: where the search for counterexamples looks first. No verdict depends on them: a wrong one costs time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hints:
    """What makes counterexamples to claims about a technique easier to find.

    landmarks: largest magnitudes for which rounding midpoints fall on integers.
    trivial_side: layers with no more rows or columns than this lose nothing.
    """

    landmarks: tuple[int, ...] = ()
    trivial_side: int = 0
