"""Decide if numbers, such as the inputs of a layer, lie on some grid that is not recorded."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from compcomp.errors import NotExactError
from compcomp.layers.batches import stack
from compcomp.terms import Batch, Term, reading


def off_grid(values: Iterable[Term], bits: int, tolerance: float = 0) -> Term:
    """Return a term that is true if no step has 2^bits neighbouring multiples that contain 0 and all these numbers.

    For exact numbers, the largest step of which all are multiples is their greatest common divisor. For floats, the
    step is the width from the least to the largest number (0 included) divided by an integer.

    Args:
        values: the numbers.
        bits: the number of bits.
        tolerance: slack for floats, relative to the width; 0 is exact.

    Raises:
        NotExactError: the numbers are symbolic terms.
    """
    terms = list(values)
    kind = reading(*terms)
    if kind == "batch" or (kind == "number" and tolerance):
        return _off_grid_floats(terms, bits, tolerance)
    if kind != "number":
        raise NotExactError("whether inputs lie on some grid is asked of numbers alone")
    exact = [Fraction(x) for x in terms]
    unit = lcm(*(x.denominator for x in exact))
    whole = [int(x * unit) for x in exact]
    return max(0, *whole) - min(0, *whole) > (2**bits - 1) * gcd(*whole)


def _off_grid_floats(terms: list[Term], bits: int, tolerance: float) -> Term:
    size = next((len(x.values) for x in terms if isinstance(x, Batch)), 1)
    table = stack(np.array(terms, dtype=object), size)  # candidates, values
    width = table.max(axis=1, initial=0) - table.min(axis=1, initial=0)
    table = table / np.where(width == 0, 1, width)[:, None]
    found = width == 0
    for steps in range(1, 2**bits):
        apart = np.abs(table * steps - np.rint(table * steps)).max(axis=1)
        found |= apart <= tolerance * steps
    return Batch(~found) if any(isinstance(x, Batch) for x in terms) else not bool(found[0])
