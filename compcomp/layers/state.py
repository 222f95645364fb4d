"""The state of one linear layer while techniques act on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.layers import walk
from compcomp.layers.basis import Part, Rotation, Transform, composed
from compcomp.terms import NO_FLOATS, Abs, Choices, Div, Max, Sum, Term, each, nearest, nearest_code, reading

Array = Any
"""A numpy object array of terms for encodings, a torch tensor for kernels."""


@dataclass(frozen=True)
class Grid:
    """The values a quantized weight may take: ``k * step``, ``|k| <= levels``.

    With an offset, the least of them: ``offset + k * step``, ``0 <= k <= levels``. ``step``, ``offset``: shape of the
    weight (those of each weight's group). ``scales``: how many different groups, that is scales to store. ``zero``:
    whether 0 is a value in every group, whatever the weights were; if so ``-offset`` is one of ``k * step``.
    ``codes``: the values are instead ``step * c`` for c in these numbers (ascending, no offset), of which ``levels`` is
    the last place. ``scale_bits``: of one scale where it is stored; ``shared_bits``: of all that scales share.
    """

    step: Array
    levels: int
    scales: int
    offset: Array | None = None
    zero: bool = True
    codes: tuple[Fraction, ...] | None = None
    scale_bits: int = 16
    shared_bits: int = 0

    def nearest(self, x: Term, index: tuple[int, int], choices: Choices) -> Term:
        """The value nearest to a number, for the weight at this index; midpoints to the even k, or as codes have it."""
        if self.codes is not None:
            return nearest_code(x, self.step[index], self.codes, "half_even", choices)
        if self.offset is None:
            return nearest(x, self.step[index], self.levels, "half_even", choices)
        offset = self.offset[index]
        return offset + Max([0, nearest(x - offset, self.step[index], self.levels, "half_even", choices)])


@dataclass(frozen=True)
class Factors:
    """A low-rank term kept beside the weight: ``left`` (out x rank) times ``right`` (rank x in).

    ``left_grid``, ``right_grid``: the grids that their entries lie on, of the shape of each; None where unquantized.
    They say how the factors are stored; techniques see the product alone.
    """

    left: Array
    right: Array
    left_grid: Grid | None = None
    right_grid: Grid | None = None

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])


@dataclass(frozen=True)
class Cut:
    """Whole rows and columns that were removed. ``rows``: out, ``columns``: in; true where one is kept."""

    rows: Array
    columns: Array


@dataclass(frozen=True)
class Format:
    """How a layer would be stored.

    ``mask``: shape of the weight, true where a weight is kept, None when dense. ``grid``: the quantizer's
    grid, None when unquantized. ``factors``: a low-rank term beside the weight. ``rank``: the rank the
    weight itself is known to have at most, None when it has none to keep; 0 where all is in the factors. ``pattern``:
    N:M patterns that pruning gave the mask, as (n, m), one for each m: at most n of every m consecutive weights of a
    row are kept. ``cut``: rows and columns that were removed whole; the mask drops their weights too. ``transform``:
    the change of basis T of the inputs, None where there is none: all else in a format, as the weight itself, is about
    the inputs T x.
    """

    mask: Array | None = None
    grid: Grid | None = None
    factors: Factors | None = None
    rank: int | None = None
    pattern: tuple[tuple[int, int], ...] | None = None
    cut: Cut | None = None
    transform: Transform | None = None

    def get(self, invariant: str) -> Any:
        """What an invariant of :data:`INVARIANTS` speaks of; None where nothing set it up."""
        return getattr(self, INVARIANTS[invariant])

    @property
    def plain(self) -> bool:
        """Whether nothing is recorded but a low-rank term and a transform."""
        return all(self.get(invariant) is None for invariant in INVARIANTS)

    def with_pattern(self, kept: int, size: int) -> tuple[tuple[int, int], ...]:
        """The patterns once at most ``kept`` of every ``size`` weights are left."""
        known = {m: n for n, m in self.pattern or ()}
        known[size] = min(kept, known.get(size, kept))
        return tuple((known[m], m) for m in sorted(known))


INVARIANTS = {"mask": "mask", "n:m": "pattern", "grid": "grid", "rank": "rank", "shape": "cut"}
"""What may survive later steps, and the field of a format that sets it up.

mask: every weight a step dropped is zero at the end. n:m: of every m consecutive weights of a row at most n are not
zero, for every such pattern that a step set up. grid: every weight is a value of the last grid. rank: the weight has
at most the rank of the last truncation. shape: every row and column that a step removed is zero at the end, in the
weight and in the low-rank term.
"""


@dataclass(frozen=True)
class Magnitudes:
    """Of each input feature over the calibration tokens, the largest and the mean magnitude: ``in`` each."""

    largest: Array
    mean: Array


@dataclass(frozen=True)
class LayerState:
    """One linear layer: numpy object arrays of terms for encodings, torch tensors for kernels.

    ``weight``: out x in. ``reference``: the dense weight, out x in. ``gram``: in x in, inputs times their
    transpose, None where a claim speaks of weights alone. ``inputs``: in x tokens, or None when only the
    Gram matrix is known. The layer computes ``effective() @ inputs``. Where a technique has changed the inputs,
    ``inputs`` and ``gram`` are the changed ones and ``reference_inputs`` the dense ones (in x tokens), else None.
    ``magnitudes``: of the inputs, where only they and the Gram matrix are known.

    Where the format holds a transform T, ``weight`` and format speak of the inputs T x, so that the layer computes
    ``weight @ (T @ inputs)``. Reference, inputs and what is known of them stay in the dense layer's coordinates.
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
        """The uncompressed layer. ``inputs`` (in x tokens) gives the Gram matrix when ``gram`` is None."""
        if gram is None and inputs is not None:
            gram = inputs @ inputs.T
        return cls(weight, weight, gram, inputs, Format(), choices or Choices())

    def effective(self) -> Array:
        """The weight the layer computes with: ``weight`` plus the low-rank term, times any transform, out x in."""
        factors, transform = self.format.factors, self.format.transform
        weight = self.weight if factors is None else self.weight + factors.left @ factors.right
        return weight if transform is None else transform.weights_back(weight)

    def require_exact(self) -> None:
        """Raise TypeError where one of its numbers is a float, as it is after an encoding that holds one."""
        for _, numbers in walk.leaves(self, "numbers"):
            if any(isinstance(x, float) for x in np.ravel(numbers)):
                raise TypeError(NO_FLOATS)

    def working(self) -> LayerState:
        """The layer in the coordinates of its weight, without its transform: what techniques see."""
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
        """What a technique made of ``view``, this state's :meth:`working` one, with this state's transform in it.

        What it left alone is as it was here; inputs that it changed come back to these coordinates.
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
        """The same layer for inputs that this part of a transform has changed: it computes what it did.

        A scaling scales factors and grid as well, which then has one scale more for each input feature; mask, rank and
        what was removed stay. A rotation mixes columns: mask, pattern, grid and removed columns are gone.
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
        """Terms as this layer's are read: beside a weight of batches, numbers that are the same in all are floats."""
        if not isinstance(array, np.ndarray) or reading(*self.weight.ravel()) != "batch":
            return array
        return each(lambda x: float(x) if reading(x) == "number" else x, array)

    def with_inputs(self, inputs: Array, gram: Array | None = None) -> LayerState:
        """The state with other inputs (in x tokens) in place of those it has, and their Gram matrix if it has one."""
        dense = self.inputs if self.reference_inputs is None else self.reference_inputs
        if gram is None and self.gram is not None:
            gram = inputs @ inputs.T
        return replace(self, inputs=inputs, gram=gram, reference_inputs=dense)

    def input_norms2(self) -> list[Term]:
        """The squared 2-norm of each current input feature over the calibration tokens: ``in`` terms."""
        if self.gram is not None:
            return [self.gram[j, j] for j in range(self.gram.shape[0])]
        if self.inputs is not None:
            return [Sum(x * x for x in row) for row in self.inputs]
        raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", "layer")

    def input_magnitudes(self) -> Magnitudes:
        """The magnitudes of the current inputs, on terms; InputError where they are not known."""
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
