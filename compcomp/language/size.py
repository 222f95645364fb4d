"""Compute the bits of a format, compared with 16 bits a weight, for one layer or as a function of its shape.

The conventions are these.

- A dense weight, an entry of a factor without a grid and the scaling of an input feature take :data:`DENSE` bits. A
  scale takes as many as its grid says, and so does an offset without a zero point.
- A value of a grid takes the bits that distinguish the values of the grid.
- The positions of kept weights are stored as one bit a weight (a bitmap) or, if an N:M pattern is known, by groups
  (:data:`POSITIONS`).
- Removed rows and columns take nothing.
- The smallest of several ways to store a layer counts.

Kernels that must align, pad or index more take more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import ceil, comb, lcm, prod
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.language.parameters import one_of
from compcomp.language.technique import Sequence, Technique, as_sequence, unknowns
from compcomp.layers import walk
from compcomp.layers.batches import stack, unstack
from compcomp.layers.state import Cut, Factors, Format, Grid, LayerState
from compcomp.terms import Array, Batch, BatchChoices, each

DENSE = 16
"""The bits of a dense weight, of most scales and offsets, and of an entry of a factor."""

POSITIONS = ("index", "combination")
"""The ways to store an N:M pattern.

- "index": for each of the N kept values its position among the M, with ceil(log2 M) bits, as the 2:4 hardware does with
  2 bits [mishra2021].
- "combination": for each group the number of its combination among C(M, N), with ceil(log2 C(M, N)) bits. This is the
  least for a whole number of bits a group (3 for 2:4).
"""

Bits = Any
"""An integer, or a sympy expression in m and n (out, in)."""


def dense_bits(shape: tuple[Bits, Bits]) -> Bits:
    """Return the bits of an uncompressed weight of this shape (out, in)."""
    return DENSE * shape[0] * shape[1]


def values_of(grid: Grid) -> int:
    """Return the number of values of a group of the grid."""
    return grid.levels - grid.lowest + 1


def value_bits(grid: Grid | None) -> int:
    """Return the bits of one weight: enough for the values of its grid, or 16 without a grid."""
    return DENSE if grid is None else max(1, (values_of(grid) - 1).bit_length())


def group_bits(grid: Grid | None) -> int:
    """Return the bits that a group's weights share: its scale and its offset.

    An offset takes as many bits as a scale, or the bits of a weight if it is an integer number of steps below zero.
    """
    if grid is None:
        return 0
    return grid.scale_bits + (0 if grid.offset is None else value_bits(grid) if grid.zero else grid.scale_bits)


def position_bits(kept: int, size: int, positions: str = "index") -> int:
    """Return the bits for the positions of ``kept`` weights in a group of ``size``.

    Args:
        kept: the number of stored weights of a group.
        size: the number of weights of a group.
        positions: one of :data:`POSITIONS`.

    Raises:
        InputError: ``positions`` is not known.
    """
    if one_of(positions, POSITIONS, "position_bits.positions") == "index":
        return kept * (size - 1).bit_length()
    return (comb(size, kept) - 1).bit_length()


@dataclass(frozen=True)
class Entries:
    """Count numbers to store, with their bits.

    Args:
        count: how many numbers there are.
        bits: the bits of each number.
        shared: the bits that the numbers of a group share.
        groups: the number of groups.
        once: the bits that all groups share.
    """

    count: Bits
    bits: int
    shared: int = 0
    groups: Bits = 0
    once: int = 0

    @property
    def scales(self) -> Bits:
        """The bits of all that groups share."""
        return self.shared * self.groups + self.once

    @property
    def total(self) -> Bits:
        """The sum of all bits."""
        return self.count * self.bits + self.scales

    @classmethod
    def on(cls, grid: Grid | None, count: Bits, groups: Bits) -> Entries:
        """Return ``count`` numbers of a grid in ``groups`` groups, or dense numbers if there is no grid."""
        if grid is None:
            return cls(count, DENSE)
        return cls(count, value_bits(grid), group_bits(grid), groups, grid.shared_bits)


@dataclass(frozen=True)
class Size:
    """Hold the bits of one layer by purpose, as numbers or as sympy expressions in m and n (out, in).

    Args:
        shape: the shape of the dense weight.
        values: the bits of the values of the weight.
        positions: the bits for the positions of stored values.
        scales: the bits of scales and offsets.
        factors: the bits of the low-rank branch, with its scales.
        basis: the bits of scalings of input features.
        left: the number of weights that pruning has left.
        width: the bits of each weight.
        apart: the bits of arrays of a format that are stored as they are.
    """

    shape: tuple[Bits, Bits]
    values: Bits
    positions: Bits
    scales: Bits
    factors: Bits
    basis: Bits
    left: Bits
    width: int
    apart: Bits = 0

    @property
    def bits(self) -> Bits:
        """The sum of all bits."""
        return self.values + self.positions + self.scales + self.factors + self.basis + self.apart

    @property
    def rate(self) -> Bits:
        """The compression rate 1 - bits / dense bits. It is negative if the layer has grown."""
        return 1 - _ratio(self.bits, dense_bits(self.shape))

    @property
    def per_weight(self) -> Bits:
        """The bits per weight of the dense layer, for this shape."""
        return _ratio(self.bits, self.shape[0] * self.shape[1])

    @property
    def limit(self) -> Bits:
        """The limit of :attr:`per_weight` as both sides grow and stay equal."""
        return _limit(self.bits, self.shape)

    @property
    def theoretical_rate(self) -> Bits:
        """The TCr of [laborde2025]: 1 - (bits / 16) (1 - sparsity), for the width and the sparsity of the weight."""
        return 1 - Fraction(self.width, DENSE) * _limit(self.left, self.shape)


def theoretical_rate(bits: int, sparsity: Fraction | float) -> float:
    """Return TCr = 1 - (bits / 16) (1 - sparsity), which counts no masks, scales and factors [laborde2025].

    Their SrCr combines a rate with a retention. It is not implemented, as no exact formula for it was found.
    """
    return float(1 - Fraction(bits, DENSE) * (1 - Fraction(sparsity)))


# ------------------------------------------------------------------------------------------------ one layer


@dataclass(frozen=True)
class _Counts:
    """Hold the numbers of a format on which its size depends.

    Args:
        rows: the number of rows that are not removed.
        columns: the number of columns that are not removed.
        kept: the number of weights that the mask keeps, or None without a mask.
        groups: the number of stored scales of the weight.
        left: the number of entries of the left factor.
        right: the number of entries of the right factor.
        left_groups: the number of scales of the left factor.
        right_groups: the number of scales of the right factor.
        scalings: the number of numbers that scale input features.
        apart: the bits of arrays that are stored as they are.
    """

    rows: Bits
    columns: Bits
    kept: Bits | None
    groups: Bits
    left: Bits
    right: Bits
    left_groups: Bits
    right_groups: Bits
    scalings: Bits
    apart: Bits


def layer_size(form: Format, shape: tuple[int, int], positions: str = "index") -> Size:
    """Return the size of a layer in a format.

    A mask that costs more than the zeros it saves is not stored. If zero is no value of the grid, the mask is needed to
    know which weights are zero; it is then stored, and the values of all weights count. A weight that is only known to
    have low rank is stored as two factors if these are smaller. An N:M pattern counts if no column has been removed, as
    its groups are those of the dense layer.

    A format does not guarantee that weights under a mask are still zero, or that a pattern still holds:
    :func:`compcomp.keeps` and :func:`compcomp.fits` decide that.

    Args:
        form: the format.
        shape: the shape of the layer (out, in).
        positions: one of :data:`POSITIONS`.
    """
    return _size(form, _counted(form, shape), shape, positions)


def _counted(form: Format, shape: tuple[int, int]) -> _Counts:
    rows, columns = _sides(form.cut, shape)
    scalings = 0 if form.transform is None else form.transform.scalings
    grids = (None, None) if form.factors is None else (form.factors.left_grid, form.factors.right_grid)
    left_groups, right_groups = (0 if grid is None else grid.scales for grid in grids)
    return _Counts(
        rows=rows,
        columns=columns,
        kept=None if form.mask is None else _kept(form.mask, form.cut),
        groups=0 if form.grid is None else _groups(form.grid, form.cut if not scalings else None, shape),
        left=0 if form.factors is None else rows * form.factors.rank,
        right=0 if form.factors is None else columns * form.factors.rank,
        left_groups=left_groups,
        right_groups=right_groups,
        scalings=scalings * shape[1],
        apart=sum(prod(array.shape) * (1 if field.kind == "truths" else DENSE) for field, array in walk.apart_of(form)),
    )


def _sides(cut: Cut | None, shape: tuple[int, int]) -> tuple[int, int]:
    return shape if cut is None else (int(cut.rows.sum()), int(cut.columns.sum()))


def _kept(mask: Any, cut: Cut | None) -> int:
    """Return the number of weights that a mask keeps in the rows and columns that are not removed."""
    if cut is None:
        return int(mask.sum())
    return int((mask * cut.rows.reshape(-1, 1) * cut.columns.reshape(1, -1)).sum())


def _groups(grid: Grid, cut: Cut | None, shape: tuple[int, int]) -> int:
    """Return the number of stored scales. For groups inside rows, only scales of rows that are not removed count.

    The scale of a group with removed columns is stored, even if the whole group was removed. If input features are
    scaled (the cut is then None here), some scales may belong to columns, and all are counted.
    """
    rows = shape[0] if cut is None else int(cut.rows.sum())
    inside = grid.scales > 1 and grid.scales % shape[0] == 0
    return grid.scales // shape[0] * rows if inside else grid.scales


def _factor_entries(factors: Factors | None, counts: _Counts) -> list[Entries]:
    """Return the entries of both factors."""
    if factors is None:
        return []
    return [
        Entries.on(factors.left_grid, counts.left, counts.left_groups),
        Entries.on(factors.right_grid, counts.right, counts.right_groups),
    ]


def _size(form: Format, counts: _Counts, shape: tuple[Bits, Bits], positions: str) -> Size:
    one_of(positions, POSITIONS, "layer_size.positions")
    count, width = counts.rows * counts.columns, value_bits(form.grid)
    weight = Entries.on(form.grid, count, counts.groups)
    factors = sum((part.total for part in _factor_entries(form.factors, counts)), start=0)
    ways = [(count, 0)]  # number of stored values, bits of their positions
    if form.mask is not None and form.grid is not None and not form.grid.zero:
        ways = [(count, count)]
    elif form.mask is not None:
        ways.append((counts.kept, count))
        if counts.columns == shape[1]:
            ways += [
                (count * Fraction(n, m), count * Fraction(position_bits(n, m, positions), m))
                for n, m in form.pattern or ()
            ]
    elif form.rank is not None and form.grid is None:
        ways.append(((counts.rows + counts.columns) * form.rank, 0))
    stored, where = _least(ways, width, shape)
    left = count if counts.kept is None else counts.kept
    return Size(
        shape, stored * width, where, weight.scales, factors, DENSE * counts.scalings, left, width, counts.apart
    )


def _least(ways: list[tuple[Bits, Bits]], width: int, shape: tuple[Bits, Bits]) -> tuple[Bits, Bits]:
    """Return the way with the fewest bits; for an open shape, with the fewest in the limit."""
    if all(isinstance(side, int) for side in shape):
        kept, where = min(ways, key=lambda way: way[0] * width + way[1])
        return ceil(kept), ceil(where)
    return min(ways, key=lambda way: _limit(way[0] * width + way[1], shape))


def _ratio(one: Bits, other: Bits) -> Any:
    return Fraction(one, other) if isinstance(one, int) and isinstance(other, int) else one / other


def _limit(count: Bits, shape: tuple[Bits, Bits]) -> Any:
    """Return the limit of count / (out in) as both sides grow and stay equal; for numbers, the quotient itself."""
    if all(isinstance(side, int) for side in shape):
        return Fraction(count) / (shape[0] * shape[1])
    import sympy

    side = sympy.Symbol("s", positive=True)
    at = sympy.sympify(count).subs(dict(zip(shape, (side, side), strict=True)), simultaneous=True)
    found = sympy.limit(at / side**2, side, sympy.oo)
    return Fraction(int(found.p), int(found.q)) if isinstance(found, sympy.Rational) else found


def layer_bits(form: Format, shape: tuple[int, int], positions: str = "index") -> int:
    """Return the sum of all bits of a layer of this shape (out, in); see :func:`layer_size`."""
    return int(layer_size(form, shape, positions).bits)


def stored_as_factors(form: Format, shape: tuple[int, int]) -> bool:
    """Return True if the weight itself takes fewest bits as two factors of its known rank."""
    plain = form.rank is not None and form.mask is None and form.grid is None
    return plain and (form.rank or 0) * sum(shape) < shape[0] * shape[1]


SLACK = 0.01
"""The relative difference up to which two numbers of kept weights count as equal.

Tied weights are few on layers of a model.
"""


def no_larger(one: Format, other: Format, layers: int, slack: float = SLACK) -> bool:
    """Return True if layers take no more bits in one format than in another.

    Formats are compared field by field, so that the answer also holds for the results of the same techniques on layers
    of other shapes. It is False if one field is smaller and another larger.

    Args:
        one: the format of batches that may be smaller.
        other: the format of batches that it is compared with.
        layers: the number of layers in a batch.
        slack: the share by which masks may keep more weights, over all layers.
    """
    grids = {_grid_sizes(form.grid) for form in (one, other)}
    factors = [form.factors for form in (one, other)]
    scalings = [0 if form.transform is None else form.transform.scalings for form in (one, other)]
    if len(grids) > 1 or scalings[0] > scalings[1]:
        return False
    if factors[0] is not None and (factors[1] is None or not _no_more(factors[0], factors[1])):
        return False
    if other.rank is not None and (one.rank is None or one.rank > other.rank):
        return False
    if one.pattern != other.pattern or (one.cut is None) != (other.cut is None):
        return False
    if (one.mask is None) != (other.mask is None):  # a mask costs where zero is no value of the grid
        return other.mask is None and (one.grid is None or one.grid.zero)
    pairs: list[tuple[Any, Any]] = [] if one.mask is None else [(one.mask, other.mask)]
    if one.cut is not None and other.cut is not None:
        pairs += [(one.cut.rows, other.cut.rows), (one.cut.columns, other.cut.columns)]
    return all(stack(a, layers).sum() <= (1 + slack) * stack(b, layers).sum() for a, b in pairs)


def _grid_sizes(grid: Grid | None) -> Any:
    """Return all that the size of values on a grid depends on, except their number."""
    return grid and (values_of(grid), value_bits(grid), group_bits(grid), grid.zero, grid.scales, grid.shared_bits)


def _no_more(one: Factors, other: Factors) -> bool:
    grids = [(_grid_sizes(f.left_grid), _grid_sizes(f.right_grid)) for f in (one, other)]
    return one.rank <= other.rank and grids[0] == grids[1]


# --------------------------------------------------------------------------------------------- any shape

WIDEST = 1024
"""The number of columns of the largest layer on which the counts of a sequence are taken."""
CANDIDATES = 3
"""The number of layers of each shape on which counts are taken. All of them must have the same counts."""


def size(sequence: Technique | Sequence, shape: tuple[int, int] | None = None, *, positions: str = "index") -> Size:
    """Return the size of a layer in the format that a sequence ends in.

    The counts (values kept, scales, factor entries) are taken on small random layers of five shapes. Each count must be
    the same for all layers of a shape, and of the form a mn + b m + c n + d for some numbers a, b, c, d. So the result
    is a calculation, not a proof. At a given shape a count that is not an integer is rounded up.

    Args:
        sequence: a technique or sequence.
        shape: the shape of the layer (out, in). None: any shape. Every size is then a sympy expression in the symbols m
            and n (out, in). It is for layers whose groups divide as the shares require, and that are so large that the
            way to store them that is best in the limit is best.
        positions: one of :data:`POSITIONS`.

    Returns:
        The size.

    Raises:
        InputError: a parameter is Any, the sequence does not fit the shape, or a count is not of that form.
    """
    sequence = as_sequence(sequence)
    if open_ := [name for t in sequence for name in unknowns(t)]:
        raise InputError(f"{open_[0]}=Any", "a number", "size")
    if shape is not None:
        sequence.check(shape)
    form, laws = _laws(sequence)
    if shape is not None:
        return _size(form, _Counts(**{name: _at_shape(law, shape) for name, law in laws.items()}), shape, positions)
    import sympy

    m, n = sympy.symbols("m n", integer=True, positive=True)
    counts = {name: None if law is None else sympy.sympify(_value(law, m, n)) for name, law in laws.items()}
    return _size(form, _Counts(**counts), (m, n), positions)


_Law = tuple[Fraction, Fraction, Fraction, Fraction]
"""The coefficients a, b, c, d of a count a mn + b m + c n + d."""


def _value(law: _Law, rows: Bits, columns: Bits) -> Bits:
    a, b, c, d = law
    return a * (rows * columns) + b * rows + c * columns + d


def _at_shape(law: _Law | None, shape: tuple[int, int]) -> int | None:
    return None if law is None else ceil(_value(law, *shape))


def _laws(sequence: Sequence) -> tuple[Format, dict[str, _Law | None]]:
    """Return the format that a sequence ends in, and the coefficients of each of its counts.

    Raises:
        InputError: the groups need too many columns, or a count is not of the form a mn + b m + c n + d.
    """
    shares = [getattr(t, f.name) for t in sequence for f in fields(t)]
    whole = lcm(*(x.denominator for x in shares if isinstance(x, Fraction)))
    unit = lcm(whole, *(t.unit for t in sequence))
    if 3 * unit > WIDEST:
        raise InputError(f"{sequence}, whose groups need {unit} columns", f"at most {WIDEST // 3}", "size")
    (r1, r2, r3), (c1, c2, c3) = ([k * side for k in (1, 2, 3)] for side in (whole, max(2, unit)))
    form, first = _sampled(sequence, (r1, c1))
    corners = [first, *(_sampled(sequence, shape)[1] for shape in ((r1, c2), (r2, c1), (r2, c2)))]
    last = _sampled(sequence, (r3, c3))[1]
    laws: dict[str, _Law | None] = {}
    for f in fields(_Counts):
        f11, f12, f21, f22 = (getattr(corner, f.name) for corner in corners)
        if f11 is None:
            laws[f.name] = None
            continue
        a = Fraction(f22 - f12 - f21 + f11, (r2 - r1) * (c2 - c1))
        b, c = Fraction(f21 - f11, r2 - r1) - a * c1, Fraction(f12 - f11, c2 - c1) - a * r1
        law = (a, b, c, f11 - a * r1 * c1 - b * r1 - c * c1)
        if _value(law, r3, c3) != getattr(last, f.name):
            raise InputError(f"{sequence}: {f.name} in no simple relation to the shape", "a shape of its own", "size")
        laws[f.name] = law
    return form, laws


def _sampled(sequence: Sequence, shape: tuple[int, int]) -> tuple[Format, _Counts]:
    """Return the format of random layers of a shape, and the counts that all of them have.

    Raises:
        InputError: the layers have different counts.
    """
    random = np.random.default_rng(0)
    weight = unstack(random.standard_normal((CANDIDATES, *shape)))
    inputs = unstack(random.standard_normal((CANDIDATES, shape[1], 2)))
    form = sequence.encode(LayerState.dense(weight, inputs, choices=BatchChoices(CANDIDATES, random))).format
    counts = [_counted(_one(form, k), shape) for k in range(CANDIDATES)]
    if len(set(counts)) > 1:
        raise InputError(f"{sequence}, of which what is stored depends on the weights", "a layer of its own", "size")
    return form, counts[0]


def _one(form: Format, k: int) -> Format:
    """Return the k-th of the formats that a format of batches represents, with the fields that counts depend on."""

    def bools(array: Array) -> Array:
        value: Callable[[Any], Any] = lambda x: bool(x.values[k]) if isinstance(x, Batch) else bool(x)  # noqa: E731
        return each(value, array).astype(bool)

    cut = form.cut and Cut(bools(form.cut.rows), bools(form.cut.columns))
    return replace(form, mask=None if form.mask is None else bools(form.mask), cut=cut)
