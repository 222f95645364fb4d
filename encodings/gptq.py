"""GPTQ: quantize column by column, with later columns compensating for the error of each [frantar2023]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra import second_order
from compcomp.errors import InputError
from compcomp.language.parameters import (
    ANY,
    BitsOrAny,
    Exact,
    Unknown,
    bit_width,
    damping,
    default,
    known,
    one_of,
    parametrized,
    shown,
    whole,
)
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.grids import GRIDS, UNSIGNED
from compcomp.layers.partition import Partition
from compcomp.layers.scales import SCALES, scale_bits
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import ROUNDINGS, Array, If

ORDERS = ("left_to_right", "activation")


@parametrized
class GPTQ(Technique):
    """Round the columns of the weight W one after the other, each to its grid, and update those that follow.

    Let H = X X^T + damping * mean(diag(X X^T)) * I, and U be the upper Cholesky factor of H^-1. Rounding column j from
    w to q changes every later column k by ``-(w - q) / U_jj * U_jk``. This aims at a small |W X - W' X|_F, where W is
    the current weight, not the dense one. The low-rank branch does not change and is not accounted for.

    bits: The bit width, 2 to 16, or Any in claims.
    group: The number of consecutive columns that share a scale in each row. None stands for one scale for each row,
        from the weights at the start.
    damping: The share of the mean diagonal entry that is added to the diagonal, above 0.
    order: "activation" (act_order) for the columns by descending diagonal entry of X X^T, equal ones by index, or
        "left_to_right", as first published.
    static_groups: True computes the scales of all groups before the first update, from columns consecutive in W. With
        False, a scale is computed when the first column of its group is reached, from the weights as updated so far;
        the columns of a group are consecutive in the order in which they are rounded. Without a group it has no effect.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    mask: The treatment of weights dropped before. With "ignored", as published, updates fill them, and mask, N:M
        pattern and cut are gone. With "kept" a dropped weight becomes 0, its error is spread like any other, and no
        scale depends on it.
    grid: The levels and the step from the largest magnitude, as of AbsMax: "narrow", "full_range" (llm-compressor),
        "narrow_step" or "clipped". Updates may take a weight beyond the last value; it goes to that value.
    scales: The format in which steps are stored, as of AbsMax: "exact", "float32", "float16", "bfloat16" or
        "power_of_two".

    The weights of an input that is always zero go to 0, and its diagonal entry to 1, as published. This comes first,
    but after the scales of rows are computed. Unlike the released code, a group narrower than its block of 128 columns
    is computed after every update so far, and zero is exactly a value. Needs calibration inputs.
    Source: [frantar2023].
    """

    bits: BitsOrAny
    group: int | None = None
    damping: Exact = default(Fraction(1, 100))
    order: str = "activation"
    static_groups: bool = True
    rounding: str = "half_even"
    mask: str = "ignored"
    grid: str = "narrow"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.gptq"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "bits": (3,),
            "group": (None, 2),
            "order": ORDERS,
            "static_groups": (False, True),
            "rounding": ("half_even", "any"),
            "mask": second_order.MASKS,
            "grid": ("narrow", "clipped"),
            "scales": ("exact", "float16", "power_of_two"),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "GPTQ.bits"))
        if self.group is not None:
            whole(self.group, 1, 2**20, "GPTQ.group")
        object.__setattr__(self, "damping", damping(self.damping, "GPTQ.damping"))
        one_of(self.order, ORDERS, "GPTQ.order")
        if not isinstance(self.static_groups, bool):
            raise InputError(shown(self.static_groups), "True or False", "GPTQ.static_groups")
        one_of(self.rounding, ROUNDINGS, "GPTQ.rounding")
        one_of(self.mask, second_order.MASKS, "GPTQ.mask")
        one_of(self.grid, UNSIGNED, "GPTQ.grid")
        one_of(self.scales, tuple(SCALES), "GPTQ.scales")

    @property
    def levels(self) -> int | Unknown:
        """L, the number of grid values above zero."""
        return ANY if isinstance(self.bits, Unknown) else int(2 ** (self.bits - 1) - 1)

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return () if self.group is None else (Partition.blocks(self.group),)

    def promises(self) -> Declared:
        kept = self.mask == "kept"
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"} if kept else {"factors"}),
            restores=frozenset({"mask"} if kept else ()),
            zeros=frozenset({"rows"}),
            homogeneous=self.scales == "exact",
            deterministic=self.rounding != "any",
        )

    def hints(self) -> Hints:
        return (
            Hints()
            if isinstance(self.levels, Unknown)
            else Hints(landmarks=(int(2 * GRIDS[self.grid].reach(self.levels)),))
        )

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        levels, choices = known(self.levels, "GPTQ.bits"), layer.choices
        gram, dead = second_order.damped(layer, self.damping, str(self))
        kept = second_order.kept_weights(layer, self.mask)
        of = GRIDS[self.grid]
        step = second_order.row_steps(layer.weight, kept, of.reach(levels), choices, self.scales)
        weight = second_order.without_dead(layer.weight, dead, choices)
        if self.static_groups and self.group is not None:
            for start in range(0, weight.shape[1], self.group):
                self._set_steps(step, weight, kept, start, layer)
        order = None
        if self.order == "activation":
            assert layer.gram is not None
            keys = [If(gone, 1, layer.gram[j, j]) for j, gone in enumerate(dead)]
            order = second_order.descending(keys, choices)
            gram = second_order.rearranged(second_order.rearranged(gram, order, choices).T, order, choices)
            weight, kept, step = (second_order.rearranged(array, order, choices) for array in (weight, kept, step))
        lower, _ = second_order.inverse_factor(gram, choices)

        def final_values(j: int, work: Array) -> Array:
            if self.group is not None and not self.static_groups and j % self.group == 0:
                self._set_steps(step, work, kept, j, layer)
            column = [
                If(keep, second_order.rounded(w, s, levels, self.rounding, choices, of.below), 0)
                for w, s, keep in zip(work[:, j], step[:, j], kept[:, j], strict=True)
            ]
            return np.array(column, dtype=object)

        weight = second_order.spread(weight, lower, final_values, choices)
        if order is not None:
            back = second_order.undone(order)
            weight, step = (second_order.rearranged(array, back, choices) for array in (weight, step))
        scales = len(weight) * (weight.shape[1] // (self.group or weight.shape[1]))
        grid = Grid(step, levels, scales, scale_bits=scale_bits(self.scales), below=of.below)
        form = replace(layer.format, grid=grid, rank=None)
        if self.mask == "ignored":
            form = replace(form, mask=None, pattern=None, cut=None)
        return replace(layer, weight=weight, format=form)

    def _set_steps(self, step: Array, weight: Array, kept: Array, start: int, layer: LayerState) -> None:
        """Set the steps of the group that starts at a column from the weights in it."""
        levels, part = known(self.levels, "GPTQ.bits"), slice(start, start + (self.group or 1))
        for i in range(len(weight)):
            context = second_order.largest(weight[i, part], kept[i, part], layer.choices)
            step[i, part] = second_order.step_of(context, GRIDS[self.grid].reach(levels), layer.choices, self.scales)
