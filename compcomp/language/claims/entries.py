"""Return truth-valued terms about the weights of one layer, for the kinds of claims about formats."""

from __future__ import annotations

import numpy as np

from compcomp.layers.partition import Partition
from compcomp.layers.state import Grid
from compcomp.layers.walk import apart
from compcomp.terms import Array, Choices, If, Sum, Term


def off_its_grid(grid: Grid, weight: Array, tolerance: float) -> list[Term]:
    """Return a term for every weight that is true if the weight is no value of the grid."""
    return [
        apart(w, grid.nearest(w, (index[0], index[1]), Choices()), tolerance) for index, w in np.ndenumerate(weight)
    ]


def more_than(kept: int, size: int, weight: Array, tolerance: float) -> list[Term]:
    """Return a term for every ``size`` consecutive weights of a row, true if more than ``kept`` are not zero."""
    groups = Partition.blocks(size).groups((weight.shape[0], weight.shape[1]))
    return [Sum(If(apart(weight[index], 0, tolerance), 1, 0) for index in group) > kept for group in groups]
