"""Distillation of the whole model on its hidden states [romero2015, sun2019]."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

from compcomp.algebra.free import any_weights, is_any_weights
from compcomp.encodings.distill_logits import OPEN, check_training
from compcomp.errors import InputError
from compcomp.language.parameters import Exact, default, parametrized
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import Term


@parametrized
class DistillHidden(Technique):
    """Train the compressed model towards the dense one's hidden states: sum over blocks of |H - H'|_F^2 / |H|_F^2.

    H and H' (tokens x width) are the outputs of a block of the dense and of the compressed model. In a model without
    blocks, they are the outputs of a layer. Padding is left out. The trained weights, and the facts that claims may
    depend on, are those of DistillLogits.
    iterations, rate, targets, seed: As for DistillLogits, which also has a temperature.
    Acts on the whole model. Source: [romero2015]; a sum over layers with normalised states [sun2019]; own data
    [liu2024].
    """

    iterations: int
    rate: Exact = default(Fraction(1, 1000))
    targets: str = "data"
    seed: int = 0

    kernel_module: ClassVar[str] = "compcomp.kernels.distill_hidden"
    whole_model: ClassVar[bool] = True
    declared: ClassVar[Declared] = OPEN
    fixtures: ClassVar[Fixtures] = Fixtures(values={"iterations": (2,)})

    def __post_init__(self) -> None:
        check_training(self)

    @property
    def needs_inputs(self) -> bool:
        return True

    def encode(self, layer: LayerState) -> LayerState:
        if layer.gram is None and layer.inputs is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        return any_weights(layer)

    def feasible(self, before: LayerState, after: LayerState) -> Term:
        return is_any_weights(before, after)
