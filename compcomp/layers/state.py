"""Define the state of one linear layer while techniques act on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.layers import walk
from compcomp.layers.basis import Part, Rotation, Transform, composed
from compcomp.terms import (
    NO_FLOATS,
    Abs,
    Choices,
    Div,
    Max,
    Sum,
    Term,
    each,
    nearest,
    nearest_code,
    nearest_mirrored,
    reading,
)

Array = Any
"""A numpy object array of terms for encodings, a torch tensor for kernels."""


@dataclass(frozen=True)
class Grid:
    """Define the values that quantized weights may take.

    Without offset and codes the values are ``k * step``, ``-levels - below <= k <= levels``.

    Args:
        step: the step of each weight's group, in the shape of the weight. Steps may be negative if ``below`` is not 0.
        levels: the number of positive multiples of the step; with offset or codes, the number of values minus 1.
        scales: the number of groups, which is the number of scales to store.
        offset: the least value of each weight's group, in the shape of the weight. The values are then
            ``offset + k * step``, ``0 <= k <= levels``.
        zero: True if 0 is a value in every group for any weights. ``-offset`` is then one of ``k * step``.
        codes: numbers in ascending order. The values are then ``step * c`` for c in these numbers, without an offset,
            and ``levels`` is the position of the last one.
        scale_bits: the bits of one stored scale.
        shared_bits: the bits of everything that the scales share.
        below: without offset and codes, how many more negative multiples of the step there are than positive ones.
    """

    step: Array
    levels: int
    scales: int
    offset: Array | None = None
    zero: bool = True
    codes: tuple[Fraction, ...] | None = None
    scale_bits: int = 16
    shared_bits: int = 0
    below: int = 0

    @property
    def lowest(self) -> int:
        """The least k: the values are k steps, from the offset if there is one, or the codes at k."""
        return 0 if self.offset is not None or self.codes is not None else -self.levels - self.below

    def nearest(self, x: Term, index: tuple[int, int], choices: Choices) -> Term:
        """Return the value of the grid that is nearest to a number.

        Midpoints go to the even k, or for codes as in :func:`compcomp.terms.nearest_code`.

        Args:
            x: the number.
            index: the position of the weight.
            choices: records the margin.
        """
        if self.codes is not None:
            return nearest_code(x, self.step[index], self.codes, "half_even", choices)
        if self.offset is None:
            multiple = nearest_mirrored if self.below else nearest
            return multiple(x, self.step[index], self.levels, "half_even", choices, self.below)
        offset = self.offset[index]
        return offset + Max([0, nearest(x - offset, self.step[index], self.levels, "half_even", choices)])


@dataclass(frozen=True)
class Factors:
    """Hold the low-rank branch: ``left`` (out x rank) times ``right`` (rank x in) is added to the weight.

    Args:
        left: the left factor.
        right: the right factor.
        left_grid: the grid of the left factor's entries, in its shape, or None if it is not quantized. Grids describe
            how factors are stored; techniques see only the product.
        right_grid: the same for the right factor.
    """

    left: Array
    right: Array
    left_grid: Grid | None = None
    right_grid: Grid | None = None

    @property
    def rank(self) -> int:
        """The number of columns of the left factor."""
        return int(self.left.shape[1])


@dataclass(frozen=True)
class Cut:
    """Record whole rows and columns that were removed.

    Args:
        rows: truth values of shape (out,), true for rows that are kept.
        columns: truth values of shape (in,), true for columns that are kept.
    """

    rows: Array
    columns: Array


@dataclass(frozen=True)
class Format:
    """Record the structure of a layer that storage uses.

    Args:
        mask: truth values in the shape of the weight, true for weights that are kept. None: dense.
        grid: the grid of the weights. None: not quantized.
        factors: the low-rank branch, or None.
        rank: a bound on the rank of the weight itself. None: no rank is recorded. 0: the whole effective weight is in
            the factors.
        pattern: the N:M patterns that pruning gave the mask, as (n, m), one for each m: at most n of every m
            consecutive weights of a row are kept.
        cut: whole rows and columns that were removed. The mask drops their weights too.
        transform: the change of basis T of the inputs, or None. All other fields of the format, and the weight itself,
            are then about the inputs T x.
    """

    mask: Array | None = None
    grid: Grid | None = None
    factors: Factors | None = None
    rank: int | None = None
    pattern: tuple[tuple[int, int], ...] | None = None
    cut: Cut | None = None
    transform: Transform | None = None

    def get(self, invariant: str) -> Any:
        """Return the field that sets up an invariant of :data:`INVARIANTS`, or None if nothing set it up."""
        return getattr(self, INVARIANTS[invariant])

    @property
    def plain(self) -> bool:
        """True if nothing is recorded except a low-rank term and a transform."""
        return all(self.get(invariant) is None for invariant in INVARIANTS)

    def with_pattern(self, kept: int, size: int) -> tuple[tuple[int, int], ...]:
        """Return the patterns after a pruning that keeps at most ``kept`` of every ``size`` consecutive weights."""
        known = {m: n for n, m in self.pattern or ()}
        known[size] = min(kept, known.get(size, kept))
        return tuple((known[m], m) for m in sorted(known))


INVARIANTS = {"mask": "mask", "n:m": "pattern", "grid": "grid", "rank": "rank", "shape": "cut"}
"""The invariants that may survive later steps, and the field of a format that sets up each.

- mask: every weight that a step dropped is zero at the end.
- n:m: of every m consecutive weights of a row at most n are not zero, for every such pattern that a step set up.
- grid: every weight is a value of the last grid.
- rank: the weight has at most the rank of the last truncation.
- shape: every row and column that a step removed is zero at the end, in the weight and in the low-rank term.
"""


@dataclass(frozen=True)
class Magnitudes:
    """Hold the largest and the mean magnitude of each input feature over the calibration tokens, of shape (in,)."""

    largest: Array
    mean: Array


@dataclass(frozen=True)
class LayerState:
    """Hold one linear layer, as numpy object arrays of terms for encodings or as torch tensors for kernels.

    The layer computes ``effective() @ inputs``. If the format holds a transform T, weight and format are about the
    inputs T x, so that the layer computes ``weight @ (T @ inputs)``. Reference, inputs, Gram matrix and magnitudes stay
    in the dense layer's coordinates.

    Args:
        weight: the weight (out x in).
        reference: the dense weight (out x in).
        gram: the inputs times their transpose (in x in), or None for claims about weights alone.
        inputs: the inputs (in x tokens), or None if only their Gram matrix is known.
        format: the structure that storage uses.
        choices: makes the choices that techniques leave free.
        reference_inputs: the dense inputs (in x tokens) if a technique has changed the inputs, else None. ``inputs``
            and ``gram`` are then the changed ones.
        magnitudes: the magnitudes of the inputs, if only they and the Gram matrix are known.
    """

    weight: Array
    reference: Array
    gram: Array | None = None
    inputs: Array | None = None
    format: Format = field(default_factory=Format)
    choices: Choices = field(default_factory=Choices, compare=False)
    reference_inputs: Array | None = None
    magnitudes: Magnitudes | None = None

    @classmethod
    def dense(cls, weight: Any, inputs: Any = None, gram: Any = None, choices: Choices | None = None) -> LayerState:
        """Return the uncompressed layer.

        Args:
            weight: the weight (out x in).
            inputs: the inputs (in x tokens), or None.
            gram: the Gram matrix (in x in). None: it is computed from the inputs, if there are any.
            choices: makes the choices that techniques leave free. None: always the first option.
        """
        if gram is None and inputs is not None:
            gram = inputs @ inputs.T
        return cls(weight, weight, gram, inputs, Format(), choices or Choices())

    def effective(self) -> Array:
        """Return the effective weight (out x in): ``weight`` plus the low-rank term, times the transform if any."""
        factors, transform = self.format.factors, self.format.transform
        weight = self.weight if factors is None else self.weight + factors.left @ factors.right
        return weight if transform is None else transform.weights_back(weight)

    def require_exact(self) -> None:
        """Raise TypeError if one of its numbers is a float. An encoding that contains a float leads to one."""
        for _, numbers in walk.leaves(self, "numbers"):
            if any(isinstance(x, float) for x in np.ravel(numbers)):
                raise TypeError(NO_FLOATS)

    def working(self) -> LayerState:
        """Return the layer in the coordinates of its weight, without its transform, as techniques see it."""
        transform = self.format.transform
        if transform is None:
            return self
        known = self.magnitudes
        if known is not None:
            rotated = any(isinstance(part, Rotation) for part in transform.parts)
            of = (known.largest, known.mean)
            known = None if rotated else Magnitudes(*(transform.inputs(x[:, None])[:, 0] for x in of))
        seen = {field.path: getattr(transform, field.dense)(value) for field, value in walk.leaves(self) if field.dense}
        return replace(self, magnitudes=known, format=replace(self.format, transform=None), **seen)

    def taken_back(self, view: LayerState, result: LayerState) -> LayerState:
        """Return the result of a technique on :meth:`working`, with this state's transform put back.

        Fields that the technique did not change are those of this state. Inputs that it changed are transformed back
        to the dense layer's coordinates.

        Args:
            view: the state that :meth:`working` returned.
            result: the state that the technique returned for ``view``.
        """
        transform = self.format.transform
        if transform is None:
            return result
        names = ["magnitudes", *(field.path for field in walk.FIELDS if field.dense)]
        known = {id(getattr(view, name)): getattr(self, name) for name in names}
        back = {field.path: getattr(transform, f"{field.dense}_back") for field in walk.FIELDS if field.dense}

        def original(name: str) -> Any:
            now = getattr(result, name)
            if now is None or id(now) in known:
                return None if now is None else known[id(now)]
            return back[name](now) if name in back else None

        form = replace(result.format, transform=composed(transform, result.format.transform))
        return replace(result, format=form, **{name: original(name) for name in names})

    def rebased(self, part: Part) -> LayerState:
        """Return the layer in the basis that this part of a transform changes to. It computes the same function.

        A scaling also scales factors and grid; the grid then has one more scale for each input feature. Mask, rank and
        cut do not change. A rotation mixes columns, so that mask, pattern, grid and removed columns are no longer
        recorded.
        """
        form = self.format
        grid, mask, pattern, cut = form.grid, form.mask, form.pattern, form.cut
        if isinstance(part, Rotation):
            grid = mask = pattern = None
            if cut is not None:
                terms, rows, columns = isinstance(cut.rows, np.ndarray), cut.rows[:, None], cut.columns
                mask = np.repeat(rows, len(columns), axis=1) if terms else rows.expand(-1, len(columns)).clone()
                cut = Cut(cut.rows, each(lambda _: True, columns) if terms else columns.new_ones(len(columns)))
        elif grid is not None:
            offset = None if grid.offset is None else part.weights(grid.offset)
            count = grid.scales + int(self.weight.shape[1])
            grid = replace(grid, step=part.weights(grid.step), offset=offset, scales=count)
        factors = form.factors and Factors(form.factors.left, part.weights(self._as_here(form.factors.right)))
        transform = composed(form.transform, Transform((part,)))
        form = replace(form, mask=mask, grid=grid, factors=factors, pattern=pattern, cut=cut, transform=transform)
        return replace(self, weight=part.weights(self.weight), format=form)

    def _as_here(self, array: Array) -> Array:
        """Return terms in the reading of this layer: next to batches, exact numbers become floats."""
        if not isinstance(array, np.ndarray) or reading(*self.weight.ravel()) != "batch":
            return array
        return each(lambda x: float(x) if reading(x) == "number" else x, array)

    def with_inputs(self, inputs: Array, gram: Array | None = None) -> LayerState:
        """Return the state with other inputs.

        Args:
            inputs: the new inputs (in x tokens).
            gram: their Gram matrix. None: it is computed if the state has a Gram matrix.
        """
        dense = self.inputs if self.reference_inputs is None else self.reference_inputs
        if gram is None and self.gram is not None:
            gram = inputs @ inputs.T
        return replace(self, inputs=inputs, gram=gram, reference_inputs=dense)

    def input_norms2(self) -> list[Term]:
        """Return the squared 2-norm of each current input feature over the calibration tokens, as ``in`` terms.

        Raises:
            InputError: neither inputs nor Gram matrix are known.
        """
        if self.gram is not None:
            return [self.gram[j, j] for j in range(self.gram.shape[0])]
        if self.inputs is not None:
            return [Sum(x * x for x in row) for row in self.inputs]
        raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", "layer")

    def input_magnitudes(self) -> Magnitudes:
        """Return the magnitudes of the current inputs, on terms; raise InputError if they are not known."""
        if self.inputs is not None:
            tokens = int(self.inputs.shape[1])
            largest, mean = (np.empty(len(self.inputs), dtype=object) for _ in range(2))
            for j, row in enumerate(self.inputs):
                sizes = [Abs(x) for x in row]
                largest[j], mean[j] = Max(sizes), Div(Sum(sizes), tokens)
            return Magnitudes(largest, mean)
        if self.magnitudes is None:
            raise InputError("no inputs", NEEDS_INPUTS, "layer")
        return self.magnitudes


NEEDS_INPUTS = "a layer with calibration inputs or their magnitudes, which a rotation takes from a model's layer"
