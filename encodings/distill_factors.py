"""Distillation of a low-rank branch: alternating least squares on the dense layer's outputs [hubara2021]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compcomp.algebra.least_squares import least_solution, output_target, right_factor
from compcomp.errors import InputError
from compcomp.language.parameters import whole
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import Factors, LayerState


@dataclass(frozen=True)
class DistillFactors(Technique):
    """Fit the factors L (out x rank) and R (rank x in) in turn to minimise |W X - (W' + L R) X'|_F^2.

    X are the dense calibration inputs, X' the current ones. Each sweep fits L for the given R, then R for the given L.
    Each fit makes the change of least norm among the minimisers, so no fit increases the error. The weight W' does not
    change. A layer without factors does not change. The factors' grids are given up.
    sweeps: The number of sweeps, at least 1.
    Needs calibration inputs. Source: [hubara2021] (the layer-wise objective).
    """

    sweeps: int = 1

    kernel_module: ClassVar[str] = "compcomp.kernels.distill_factors"
    fixtures: ClassVar[Fixtures] = Fixtures(values={"sweeps": (1, 2)})
    declared: ClassVar[Declared] = Declared(
        keeps=frozenset({"mask", "n:m", "grid", "rank"}),
        never_increases=frozenset({"output_l2"}),
        any_inputs=True,
        no_op_on_dense=True,
        holds_reference=True,
        leaves_weight=True,
        no_op=frozenset({"without factors"}),
        sees_factors=True,
    )

    def __post_init__(self) -> None:
        whole(self.sweeps, 1, 1000, "DistillFactors.sweeps")

    @property
    def needs_inputs(self) -> bool:
        return True

    def encode(self, layer: LayerState) -> LayerState:
        gram, factors, choices = layer.gram, layer.format.factors, layer.choices
        if gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        if factors is None:
            return layer
        target = output_target(layer) - layer.weight
        left, right = factors.left, factors.right
        for _ in range(self.sweeps):
            outputs = gram @ right.T  # in x rank
            left = left + least_solution((target - left @ right) @ outputs, right @ outputs, choices)
            seen = least_solution(
                (target - left @ right) @ gram, gram, choices
            )  # the remaining error, in the span of the inputs
            right = right + right_factor(left, seen, choices)
        return replace(layer, format=replace(layer.format, factors=Factors(left, right)))
