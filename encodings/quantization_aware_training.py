"""Quantization-aware training of one layer: straight-through gradients on its output loss [bengio2013, jacob2018]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra.free import alike
from compcomp.errors import InputError
from compcomp.language.parameters import Exact, default, grid_partition, number, one_of, parametrized, shown, whole
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers import walk
from compcomp.layers.grids import GRIDS, UNSIGNED, step_of
from compcomp.layers.partition import Partition
from compcomp.layers.scales import SCALES, scale_bits
from compcomp.layers.state import Format, Grid, LayerState
from compcomp.terms import And, Choices, Equal, If, Term, each, nearest

RATES = "a number above 0, up to 1000000"


@parametrized
class QuantizationAwareTraining(Technique):
    """Train the weights (out x in) on the grid of AbsMax.

    The grid is that of the current weights, group by group, and stays fixed during training. The result of
    training depends on its course, so the encoding leaves it open: any values of the grid, 0 where the mask drops. A
    claim about it holds for each of them.
    The kernel keeps latent weights V, which start as the current weights, and rounds them to Q(V), midpoints to the
    even level. A step updates those that the mask keeps as if rounding had slope 1, clipped to the range of the grid: V
    <- V - rate / trace(G) (E(V) G - W X X'^T). W is the reference, X are the dense inputs, X' the current ones, G = X'
    X'^T, and E(V) is Q(V) plus the low-rank branch. Each row keeps the Q(V) of least output loss among all steps; the
    first Q(V) is round to nearest. Nothing in it is random.
    bits: The bit width, 2 to 16.
    group: The number of consecutive weights of a row that share a scale. If None, ``per`` decides.
    per: The weights that share a scale if there is no group: "tensor" or "channel" (an output row).
    iterations: The number of steps, 0 (round to nearest) to 100000.
    rate: The relative step length, a number above 0, up to 10^6.
    grid: The levels and the step from the largest magnitude, as of AbsMax: "narrow", "full_range", "narrow_step" or
        "clipped".
    scales: The format in which steps are stored, as of AbsMax: "exact", "float32", "float16", "bfloat16" or
        "power_of_two".
    An all-zero group stays zero. Needs calibration inputs. Source: the estimator [bengio2013], for uniform grids of
    weights [jacob2018, esser2020]; clipping [courbariaux2015].
    """

    bits: int
    group: int | None = None
    per: str = "tensor"
    iterations: int = 100
    rate: Exact = default(Fraction(1))
    grid: str = "narrow"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.quantization_aware_training"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "bits": (2, 4),
            "group": (None, 2),
            "per": ("tensor", "channel"),
            "iterations": (0, 5),
            "grid": ("narrow", "full_range", "clipped"),
            "scales": ("exact", "float16"),
        }
    )

    def __post_init__(self) -> None:
        whole(self.bits, 2, 16, "QuantizationAwareTraining.bits")
        grid_partition(self.group, self.per, "QuantizationAwareTraining")
        whole(self.iterations, 0, 100_000, "QuantizationAwareTraining.iterations")
        rate = number(self.rate, "QuantizationAwareTraining.rate", RATES)
        if not 0 < rate <= 10**6:
            raise InputError(shown(self.rate), RATES, "QuantizationAwareTraining.rate")
        object.__setattr__(self, "rate", rate)
        one_of(self.grid, UNSIGNED, "QuantizationAwareTraining.grid")
        one_of(self.scales, tuple(SCALES), "QuantizationAwareTraining.scales")

    @property
    def levels(self) -> int:
        """L, the number of grid values above zero."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def partition(self) -> Partition:
        return grid_partition(self.group, self.per, "QuantizationAwareTraining")

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.partition,)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            restores=frozenset({"mask"}),
            zeros=frozenset() if self.partition.kind == "tensor" else frozenset({"rows"}),
            homogeneous=self.scales == "exact",
            deterministic=False,
        )

    def hints(self) -> Hints:
        return Hints(landmarks=(int(2 * GRIDS[self.grid].reach(self.levels)),))

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        if layer.gram is None and layer.inputs is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        form = self._format_after(layer)
        assert form.grid is not None
        below = form.grid.below

        def trained(w: Term, step: Term) -> Term:
            return layer.choices.grid_value(w, step, self.levels, below)

        weight = each(trained, layer.weight, form.grid.step)
        if form.mask is not None:
            weight = each(lambda keep, w: If(keep, w, 0), form.mask, weight)
        return replace(layer, weight=weight, format=form)

    def _format_after(self, layer: LayerState) -> Format:
        of, step = GRIDS[self.grid], np.empty(layer.weight.shape, dtype=object)
        groups = self.partition.groups(layer.weight.shape)
        for group in groups:
            unit = step_of([layer.weight[index] for index in group], of, self.levels, self.scales, layer.choices)
            for index in group:
                step[index] = unit
        grid = Grid(step, self.levels, len(groups), scale_bits=scale_bits(self.scales), below=of.below)
        return replace(layer.format, grid=grid, rank=None)

    def feasible(self, before: LayerState, after: LayerState) -> Term:
        """Return a term: ``after`` is on the grid of ``before``, zero where the mask drops, and else unchanged.

        For states of floats, the steps of that grid are rounded to floats.
        """
        form = self._format_after(before)
        assert form.grid is not None
        steps = each(lambda step, w: float(step) if isinstance(w, float) else step, form.grid.step, before.weight)
        form = replace(form, grid=replace(form.grid, step=steps))
        same: list[Term] = [alike(form, after.format), before.weight.shape == after.weight.shape]
        same += [alike(field.of(before), field.of(after)) for field in walk.FIELDS if field.given]
        for index in np.ndindex(*before.weight.shape):
            value, step = after.weight[index], steps[index]
            on = nearest(value, step, self.levels, "half_even", Choices(), form.grid.below)  # type: ignore[union-attr]
            same.append(Equal(on, value))
            if form.mask is not None:
                same.append(If(form.mask[index], True, Equal(value, 0)))
        return And(*same)
