"""How many bits a format takes, against 16 bits a weight."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from compcomp.language.layer import Factors, Format, Grid

DENSE = 16
"""Bits of a dense weight, of an offset, of most scales, and of an entry of a factor."""


def dense_bits(shape: tuple[int, int]) -> int:
    """Bits of an uncompressed weight of this shape (out, in)."""
    return DENSE * shape[0] * shape[1]


def value_bits(grid: Grid | None) -> int:
    """Bits of one weight: enough for the 2L + 1 values of its grid (L + 1 with an offset or codes), 16 without one."""
    if grid is None:
        return DENSE
    counted = grid.offset is not None or grid.codes is not None
    return max(1, (grid.levels if counted else 2 * grid.levels).bit_length())


def group_bits(grid: Grid | None) -> int:
    """Bits that a group's weights share: its scale, and where its offset lies.

    An offset takes 16 bits, or the bits of a weight where it is the whole number of steps below zero.
    """
    if grid is None:
        return 0
    return grid.scale_bits + (0 if grid.offset is None else value_bits(grid) if grid.zero else DENSE)


def layer_bits(form: Format, shape: tuple[int, int]) -> int:
    """Bits of a layer of this shape (out, in): its values, its scales, and its factors.

    With a mask, the kept values and one bit a weight for the mask itself: nothing in a mask says that it is
    N:M, which would take less. A mask that costs more than the zeros it saves is not stored, unless zero is no
    value of the grid. Nor does a format say whether the weights still are zero under a mask then: the values of all
    are counted. Offsets of a grid: see :func:`group_bits`. A weight that is only known to be of low rank is stored as
    two factors when these are smaller. A transform takes 16 bits for each scale of an input feature, a rotation none.
    """
    count = shape[0] * shape[1]
    values = count * value_bits(form.grid)
    basis = 0 if form.transform is None else DENSE * shape[1] * form.transform.scalings
    if form.mask is not None and form.grid is not None and not form.grid.zero:
        values += count
    elif form.mask is not None:
        values = min(values, int(form.mask.sum()) * value_bits(form.grid) + count)
    elif stored_as_factors(form, shape):
        values = DENSE * sum(shape) * (form.rank or 0)
    return values + scales_bits(form.grid) + factor_bits(form.factors, shape) + basis


def scales_bits(grid: Grid | None) -> int:
    """Bits of all that groups of weights share, and of what their scales share."""
    return 0 if grid is None else group_bits(grid) * grid.scales + grid.shared_bits


def factor_bits(factors: Factors | None, shape: tuple[int, int]) -> int:
    """Bits of a low-rank term beside a weight of this shape (out, in), with the scales of factors on a grid."""
    if factors is None:
        return 0
    grids = zip(shape, (factors.left_grid, factors.right_grid), strict=True)
    return sum(side * factors.rank * value_bits(grid) + scales_bits(grid) for side, grid in grids)


def stored_as_factors(form: Format, shape: tuple[int, int]) -> bool:
    """Whether the weight itself is best stored as two factors of its known rank."""
    plain = form.rank is not None and form.mask is None and form.grid is None
    return plain and (form.rank or 0) * sum(shape) < shape[0] * shape[1]


def compression_rate(layers: Iterable[tuple[Format, tuple[int, int]]]) -> float:
    """1 - bits / dense bits over all layers, each a format and a shape (out, in). Below 0: it grew."""
    layers = list(layers)
    dense = sum(dense_bits(shape) for _, shape in layers)
    return 1 - sum(layer_bits(form, shape) for form, shape in layers) / dense


def theoretical_rate(bits: int, sparsity: Fraction | float) -> float:
    """The rate 1 - (bits / 16) (1 - sparsity), which counts no masks and scales [laborde2025]."""
    return float(1 - Fraction(bits, DENSE) * (1 - Fraction(sparsity)))
