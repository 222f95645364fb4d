"""LPLR: the weight as a product of two quantized factors, from a random sketch of its range [saha2023]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from compcomp.algebra.least_squares import right_factor
from compcomp.language.parameters import one_of, whole
from compcomp.language.steps import GridMap
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import Factors, Format, Grid, LayerState
from compcomp.terms import ROUNDINGS, Abs, Array, Choices

SKETCHES = ("gaussian", "signs")

FINENESS = 2**10
"""The entries of a Gaussian sketch are whole multiples of 1 / this, so that they are exact in every reading."""


@dataclass(frozen=True)
class LPLR(Technique):
    """Replace the effective weight W (out x in) by L R: L = Q(W S), R = Q'(pinv(L) W), with a random S (in x rank).

    Q and Q' round to the nearest of ``-K * s ... K * s``, K = 2^(bits-1) - 1, s = max|.| / K, one scale a factor. The
    weight itself is zero, of rank 0. The factors (out x rank, rank x in) form the low-rank branch, with their grids.
    Any mask, grid and factors from before are replaced. pinv(L) W is the least-squares fit of least norm.
    rank: The rank of the product, at least 1.
    bits: The bit width of the left factor, 2 to 16.
    right_bits: The bit width of the right factor. None stands for the same.
    sketch: The entries of S: "gaussian" (round(1024 * x), x standard normal; a common factor changes nothing) or
        "signs" (1 or -1).
    seed: The seed of S, from numpy's ``default_rng``, the same for encoding and kernel.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    Differs from the published algorithm in its rounding, which there has a random dither. Source: [saha2023].
    """

    rank: int
    bits: int
    right_bits: int | None = None
    sketch: str = "gaussian"
    seed: int = 0
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.lplr"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "rank": (1, 2),
            "bits": (3,),
            "right_bits": (None, 2),
            "sketch": SKETCHES,
            "seed": (0, 1),
            "rounding": ("half_even",),
        }
    )

    def __post_init__(self) -> None:
        whole(self.rank, 1, 2**16, "LPLR.rank")
        whole(self.bits, 2, 16, "LPLR.bits")
        if self.right_bits is not None:
            whole(self.right_bits, 2, 16, "LPLR.right_bits")
        one_of(self.sketch, SKETCHES, "LPLR.sketch")
        whole(self.seed, 0, 2**32 - 1, "LPLR.seed")
        one_of(self.rounding, ROUNDINGS, "LPLR.rounding")

    @property
    def both_bits(self) -> tuple[int, int]:
        """The bit widths of the left and of the right factor."""
        return self.bits, self.bits if self.right_bits is None else self.right_bits

    def promises(self) -> Declared:
        return Declared(zeros=frozenset({"weights", "rows", "columns"}), deterministic=self.rounding != "any")

    def sketched(self, columns: int) -> npt.NDArray[np.int64]:
        """Return S (in x rank) for this number of input features, as whole numbers."""
        random = np.random.default_rng(self.seed)
        if self.sketch == "signs":
            return 2 * random.integers(2, size=(columns, self.rank)) - 1
        return np.rint(random.standard_normal((columns, self.rank)) * FINENESS).astype(np.int64)

    def encode(self, layer: LayerState) -> LayerState:
        weight = layer.effective()
        bits, right_bits = self.both_bits
        left, left_grid = self._quantized(weight @ self.sketched(weight.shape[1]).astype(object), bits, layer.choices)
        fitted = right_factor(left, weight, layer.choices)
        right, right_grid = self._quantized(fitted, right_bits, layer.choices)
        factors = Factors(left, right, left_grid, right_grid)
        return replace(layer, weight=weight * 0, format=Format(factors=factors, rank=0))

    def _quantized(self, factor: Array, bits: int, choices: Choices) -> tuple[Array, Grid | None]:
        rounded = GridMap(Abs, 2 ** (bits - 1) - 1, self.rounding, Partition.tensor())
        after = rounded.apply(LayerState(factor, factor, choices=choices))
        return after.weight, after.format.grid
