"""The state of one linear layer while techniques act on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.terms import Choices, Max, Sum, Term, nearest, nearest_code

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
    """A low-rank term kept beside the weight: ``left`` (out x rank) times ``right`` (rank x in)."""

    left: Array
    right: Array

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
    weight itself is known to have at most, None when it has none to keep. ``pattern``: N:M patterns that pruning
    gave the mask, as (n, m), one for each m: at most n of every m consecutive weights of a row are kept. ``cut``: rows
    and columns that were removed whole; the mask drops their weights too.
    """

    mask: Array | None = None
    grid: Grid | None = None
    factors: Factors | None = None
    rank: int | None = None
    pattern: tuple[tuple[int, int], ...] | None = None
    cut: Cut | None = None

    def get(self, invariant: str) -> Any:
        """What an invariant of :data:`INVARIANTS` speaks of; None where nothing set it up."""
        return getattr(self, INVARIANTS[invariant])

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
class LayerState:
    """One linear layer: numpy object arrays of terms for encodings, torch tensors for kernels.

    ``weight``: out x in. ``reference``: the dense weight, out x in. ``gram``: in x in, inputs times their
    transpose, None where a claim speaks of weights alone. ``inputs``: in x tokens, or None when only the
    Gram matrix is known. The layer computes ``effective() @ inputs``. Where a technique has changed the inputs,
    ``inputs`` and ``gram`` are the changed ones and ``reference_inputs`` the dense ones (in x tokens), else None.
    """

    weight: Array
    reference: Array
    gram: Array | None = None
    inputs: Array | None = None
    format: Format = field(default_factory=Format)
    choices: Choices = field(default_factory=Choices, compare=False)
    reference_inputs: Array | None = None

    @classmethod
    def dense(cls, weight: Any, inputs: Any = None, gram: Any = None, choices: Choices | None = None) -> LayerState:
        """The uncompressed layer. ``inputs`` (in x tokens) gives the Gram matrix when ``gram`` is None."""
        if gram is None and inputs is not None:
            gram = inputs @ inputs.T
        return cls(weight, weight, gram, inputs, Format(), choices or Choices())

    def effective(self) -> Array:
        """The weight the layer computes with: ``weight`` plus the low-rank term, out x in."""
        factors = self.format.factors
        return self.weight if factors is None else self.weight + factors.left @ factors.right

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
