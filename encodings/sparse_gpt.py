"""SparseGPT: prune block by block, left to right, with later columns compensating for the error [frantar2023a]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra import second_order
from compcomp.language.parameters import (
    AnyValue,
    Exact,
    ExactOrAny,
    Parameter,
    Unknown,
    bit_width,
    damping,
    default,
    known,
    one_of,
    parametrized,
    selection_partition,
    sparsity,
    whole,
)
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.grids import GRIDS, UNSIGNED
from compcomp.layers.partition import Partition
from compcomp.layers.scales import SCALES, scale_bits
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import ROUNDINGS, TIES, Array, If, Not, Or


@parametrized
class SparseGPT(Technique):
    """Set weights of the weight W to zero, column by column, and update those that follow.

    Let H = X X^T + damping * mean(diag(X X^T)) * I, and U be the upper Cholesky factor of H^-1. A weight w of column j
    scores w^2 / U_jj^2. When a block of columns is reached, the ``int(n * sparsity)`` of its n weights (all rows) that
    score least are chosen, from the weights as updated so far. Changing column j from w to q, 0 where it was chosen,
    changes every later column k by ``-(w - q) / U_jj * U_jk``. It starts from the current weight, not the dense one.
    The low-rank branch does not change and is not accounted for.

    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row. These are chosen when the first
        of them is reached; ``block`` then has no effect.
    block: The number of columns that a choice is made over. The last block may be narrower.
    damping: The share of the mean diagonal entry that is added to the diagonal, above 0.
    bits: A bit width, 2 to 16, also rounds the remaining weights in the same pass. None does not round. The grid is
        that of absmax, with one scale for each row, from the weights at the start. Without ``bits`` the rounding, the
        grid and the scales have no effect.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    ties: The weights dropped among equal scores at the threshold: "first" (lowest row, then lowest column), "all" or
        "any".
    mask: The treatment of weights dropped before. With "ignored", as published, updates may fill them, and mask, N:M
        pattern and cut are those of this pass alone. With "kept" they are chosen first, and all of them are dropped.
    grid: The levels and the step from the largest magnitude, as of AbsMax: "narrow", "full_range", "narrow_step" or
        "clipped". Updates may take a weight beyond the last value; it goes to that value.
    scales: The format in which steps are stored, as of AbsMax: "exact", "float32", "float16", "bfloat16" or
        "power_of_two".

    The weights of an input that is always zero go to 0, and its diagonal entry to 1, as published. This comes first,
    but after the scales are computed. The released code drops one more weight of each block, and all that tie with it.
    Needs calibration inputs. Source: [frantar2023a].
    """

    sparsity: ExactOrAny
    pattern: str = "unstructured"
    block: int = 128
    damping: Exact = default(Fraction(1, 100))
    bits: Parameter[int | Unknown | None, int | AnyValue | None] = default(None)
    rounding: str = "half_even"
    ties: str = "first"
    mask: str = "ignored"
    grid: str = "narrow"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.sparse_gpt"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"sparsity": ("1/2", "1/4", "3/4", "1/3"), "bits": (4, 3, 2, 8)}
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2),),
            "pattern": ("unstructured", "2:4"),
            "block": (2,),
            "bits": (None, 3),
            "rounding": ("half_even",),
            "ties": ("first", "all"),
            "mask": second_order.MASKS,
            "grid": ("narrow", "clipped"),
            "scales": ("exact", "bfloat16"),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "SparseGPT.sparsity"))
        selection_partition(self.pattern, "row", self.sparsity, "SparseGPT")
        whole(self.block, 1, 2**20, "SparseGPT.block")
        object.__setattr__(self, "damping", damping(self.damping, "SparseGPT.damping"))
        if self.bits is not None:
            object.__setattr__(self, "bits", bit_width(self.bits, "SparseGPT.bits"))
        one_of(self.rounding, ROUNDINGS, "SparseGPT.rounding")
        one_of(self.ties, TIES, "SparseGPT.ties")
        one_of(self.mask, second_order.MASKS, "SparseGPT.mask")
        one_of(self.grid, UNSIGNED, "SparseGPT.grid")
        one_of(self.scales, tuple(SCALES), "SparseGPT.scales")

    @property
    def levels(self) -> int | None:
        """L, the number of grid values above zero; None without a grid."""
        return None if self.bits is None else int(2 ** (known(self.bits, "SparseGPT.bits") - 1) - 1)

    @property
    def partition(self) -> Partition:
        """The groups of an N:M pattern, or rows if unstructured."""
        return selection_partition(self.pattern, "row", self.sparsity, "SparseGPT")

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.partition,)

    def promises(self) -> Declared:
        kept = self.mask == "kept"
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"} if kept else {"factors"}),
            restores=frozenset({"mask"} if kept else ()),
            zeros=frozenset({"rows"}),
            homogeneous=self.bits is None or self.scales == "exact",
            deterministic=self.ties != "any" and (self.bits is None or self.rounding != "any"),
        )

    def hints(self) -> Hints:
        if isinstance(self.bits, Unknown) or self.levels is None:
            return Hints()
        return Hints(landmarks=(int(2 * GRIDS[self.grid].reach(self.levels)),))

    def count(self, size: int) -> int:
        """Return how many weights of a group of this size are dropped."""
        return int(size * known(self.sparsity, "SparseGPT.sparsity"))

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        if isinstance(self.sparsity, Unknown) or not self.sparsity:
            return None
        size = self.partition.size or shape[0] * min(self.block, shape[1])
        return self.count(size), size

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        levels, choices, shape = self.levels, layer.choices, layer.weight.shape
        gram, dead = second_order.damped(layer, self.damping, str(self))
        kept = second_order.kept_weights(layer, self.mask)
        of, step = GRIDS[self.grid], None
        if levels is not None:
            step = second_order.row_steps(layer.weight, kept, of.reach(levels), choices, self.scales)
        lower, pivots = second_order.inverse_factor(gram, choices)
        dropped = np.empty(shape, dtype=object)
        group = self.partition.size

        def choose(start: int, work: Array) -> None:
            columns = range(start, min(start + (group or self.block), shape[1]))
            rows = [[i] for i in range(shape[0])] if group else [list(range(shape[0]))]
            for chosen in rows:
                places = [(i, j) for i in chosen for j in columns]
                scores = [
                    If(kept[i, j], second_order.quotient(work[i, j] * work[i, j], pivots[j], choices), -1)
                    for i, j in places
                ]
                taken = second_order.least(scores, self.count(len(places)), self.ties, choices, exact_zeros=start == 0)
                for place, gone in zip(places, taken, strict=True):
                    dropped[place] = Or(gone, Not(kept[place]))

        def final_values(j: int, work: Array) -> Array:
            if j % (group or self.block) == 0:
                choose(j, work)
            column = list(work[:, j])
            if step is not None:
                assert levels is not None
                column = [
                    second_order.rounded(w, s, levels, self.rounding, choices, of.below)
                    for w, s in zip(column, step[:, j], strict=True)
                ]
            return np.array([If(gone, 0, w) for w, gone in zip(column, dropped[:, j], strict=True)], dtype=object)

        alive = second_order.without_dead(layer.weight, dead, choices)
        weight = second_order.spread(alive, lower, final_values, choices)
        grid = None
        if step is not None and levels is not None:
            grid = Grid(step, levels, shape[0], scale_bits=scale_bits(self.scales), below=of.below)
        form = replace(layer.format, grid=grid, rank=None)
        if self.mask == "ignored":
            form = replace(form, mask=None, pattern=None, cut=None)
        if group is not None:
            form = replace(form, pattern=form.with_pattern(group - self.count(group), group))
        mask = second_order.all_of(form.mask, dropped)
        return replace(layer, weight=weight, format=replace(form, mask=mask))
