"""Draw layers that random small integers rarely produce.

They are values of number formats and numbers between these, and matrices with rational decompositions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise
from math import lcm

import numpy as np

from compcomp.language.claim import Claim, Scope
from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Technique
from compcomp.proving.candidates import Candidates, Values

TALL = (4, 9, 16)
"""Rows of layers to try."""
WIDE = 16
"""Columns of the widest of these layers, if techniques allow that."""


def special_shapes(claim: Claim, scope: Scope) -> list[tuple[int, int]]:
    """Return the scope's own shape, or the smallest ones, square ones and ones of many rows that fit."""
    if scope.shape is not None:
        return [scope.shape]
    unit, rows = claim.unit, claim.row_unit
    columns = sorted({unit, 4 * unit, unit * -(-4 // unit), unit * -(-8 // unit)})
    columns = [c for c in columns if c <= max(unit, WIDE)] if unit <= 64 else []
    every = ((rows * -(-tall // rows), c) for c in columns for tall in (1, 2, *TALL))
    return [shape for shape in dict.fromkeys(every) if claim.fits(shape)]


def special(
    techniques: Iterable[Technique],
    shape: tuple[int, int],
    needs_inputs: bool,
    random: np.random.Generator,
    size: int,
) -> Iterator[Candidates]:
    """Yield in turn: values of each table and midpoints, matrices of rational singular values, integers of every size.

    Args:
        techniques: their steps give the tables of codes.
        shape: (out, in) of each layer.
        needs_inputs: draw inputs too.
        random: the source of the draws.
        size: layers a batch.
    """
    techniques = list(techniques)
    tables = list(dict.fromkeys(t.codes for q in techniques for t in q.steps() if isinstance(t, CodebookMap)))
    kinds: list[Callable[[], Values]] = [partial(_of_table, _values(t), shape, random, size) for t in tables]
    if any(t.hints().trivial_side for t in techniques):
        kinds.append(partial(_rational, shape, random, size))
    kinds.append(partial(_of_every_size, shape, random, size))
    for turn in range(10**6):
        weights = kinds[turn % len(kinds)]()
        sparse = random.random(weights[: size // 3].shape) < 0.4
        weights[: size // 3][sparse] = 0
        inputs = None
        if needs_inputs:
            tokens = (1, 2, min(shape[1], 4))[turn % 3]
            inputs = random.integers(-3, 4, size=(size, shape[1], tokens)).astype(float)
        yield Candidates(weights, inputs)


def _values(codes: Sequence[Fraction]) -> Values:
    """Return the magnitudes of a table, its midpoints, and numbers beyond its last value, scaled to integers."""
    sizes = sorted({abs(code) for code in codes})
    middles = [(low + high) / 2 for low, high in pairwise(sizes)]
    beyond = [sizes[-1] + step * (sizes[-1] - sizes[-2]) for step in (1, 2)]
    every = sorted({*sizes, *middles, *beyond})
    unit = lcm(*(x.denominator for x in every))
    return np.array([float(x * unit) for x in every])


def _of_table(values: Values, shape: tuple[int, int], random: np.random.Generator, size: int) -> Values:
    """Draw uniformly by position in the table, so that every power of two is as frequent.

    One candidate in three comes from a short stretch of the table.
    """
    places = random.integers(len(values), size=(size, *shape))
    start = random.integers(len(values), size=(size // 3, 1, 1))
    places[: size // 3] = np.minimum(start + random.integers(6, size=(size // 3, *shape)), len(values) - 1)
    found: Values = values[places] * random.choice((-1.0, 1.0), size=places.shape)
    found[::4] += random.integers(-1, 2, size=found[::4].shape)  # and next to them
    rows = random.random((size, shape[0])) < 0.7  # the largest value of the table somewhere in a row
    at = random.integers(shape[1], size=(size, shape[0]))
    where = np.nonzero(rows)
    found[where[0], where[1], at[where]] = values[-3]
    return found


def _of_every_size(shape: tuple[int, int], random: np.random.Generator, size: int) -> Values:
    """Draw small integers times powers of two: large and tiny weights in one group."""
    reach = random.integers(1, 13, size=(size, 1, 1))
    powers = np.floor(random.random((size, *shape)) * reach)
    found: Values = random.integers(-9, 10, size=(size, *shape)) * 2.0**powers
    return found


def _rational(shape: tuple[int, int], random: np.random.Generator, size: int) -> Values:
    """Draw matrices of whole numbers with rational singular values.

    They are diagonal matrices between reflections, or have one entry in every row and column.
    """
    rows, columns = shape
    least = min(shape)
    middle = np.zeros((size, *shape))
    middle[:, range(least), range(least)] = random.integers(0, 7, size=(size, least))
    half = size // 2
    found = np.empty((size, *shape))
    found[:half] = reflections(half, rows, random, 1) @ middle[:half] @ reflections(half, columns, random, 1)
    order = random.permuted(np.broadcast_to(np.arange(columns), (size - half, columns)), axis=1)
    lines = random.permuted(np.broadcast_to(np.arange(rows), (size - half, rows)), axis=1)
    mixed = np.take_along_axis(middle[half:], lines[:, :, None], axis=1)
    found[half:] = np.take_along_axis(mixed, order[:, None, :], axis=2)
    signed: Values = found * random.choice((-1.0, 1.0), size=(size, 1, 1))
    return signed


def reflections(size: int, side: int, random: np.random.Generator, largest: int = 2) -> Values:
    """Return matrices of whole numbers (side x side) whose rows are orthogonal and of one length."""
    normal = random.integers(-largest, largest + 1, size=(size, side)).astype(float)
    normal[~normal.any(axis=1)] = 1
    squares: Values = (normal**2).sum(axis=1)
    found: Values = 2 * normal[:, :, None] * normal[:, None, :] - squares[:, None, None] * np.eye(side)
    return found
