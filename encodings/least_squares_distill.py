"""Layer-wise distillation: fit the compressed layer to the dense layer's outputs [hubara2021, frantar2022]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compcomp.algebra.descent import descend_on_grid
from compcomp.algebra.least_squares import least_squares_change, output_target
from compcomp.errors import InputError
from compcomp.language.technique import Declared, Technique
from compcomp.layers.state import LayerState

SWEEPS = 3
"""Passes of coordinate descent over the input features."""


@dataclass(frozen=True)
class LeastSquaresDistill(Technique):
    """Choose the free weights to minimise |W X - W' X'|_F^2 against the dense layer's outputs.

    X are the dense calibration inputs, X' the current ones, which differ once a technique has changed them. Without a
    grid, the result is the exact minimiser over the weights that the mask keeps, the one of least change if there are
    several. On a grid, each free weight moves along its grid by coordinate descent, column after column, and only if
    that strictly decreases the error. That result need not be a minimiser, but is never worse than the start. The
    low-rank branch does not change and is accounted for. Needs calibration inputs. Source: [hubara2021] (within a
    mask), [frantar2022] (the layer-wise objective).
    """

    kernel_module: ClassVar[str] = "compcomp.kernels.least_squares_distill"
    declared: ClassVar[Declared] = Declared(
        keeps=frozenset({"mask", "shape", "grid", "factors"}),
        never_increases=frozenset({"output_l2"}),
        any_inputs=True,
        no_op_on_dense=True,
        holds_reference=True,
    )

    @property
    def needs_inputs(self) -> bool:
        return True

    def encode(self, layer: LayerState) -> LayerState:
        if layer.gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        form, error = layer.format, output_target(layer) - layer.effective()
        if form.grid is None:
            change = least_squares_change(error, layer.gram, form.mask, layer.choices)
            weight = layer.weight + change
        else:
            weight = descend_on_grid(layer.weight, -error, layer.gram, form.grid, form.mask, SWEEPS, layer.choices)
        return replace(layer, weight=weight, format=replace(form, rank=None))
