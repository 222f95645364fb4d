"""Activation quantization to 8-bit floating point, by default with one scale for each token [micikevicius2022]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compcomp.encodings.fp8 import FORMATS, FP8
from compcomp.errors import InputError
from compcomp.language.parameters import one_of
from compcomp.language.technique import Declared, Technique
from compcomp.layers.gram import gram_of
from compcomp.layers.state import Array, LayerState
from compcomp.terms import ROUNDINGS


@dataclass(frozen=True)
class FP8Inputs(Technique):
    """Round the layer's inputs to the nearest of ``s * c``, s = max|x| / max|c|, c a finite value of the format.

    format: "e4m3" (up to 448) or "e5m2" (up to 57344).
    per: The inputs that share a scale: "token" for all features of a token, or "tensor" for all inputs.
    rounding: The rule for midpoints: "half_even" (to the even mantissa), "half_up", "half_away" or "any".
    An all-zero token stays zero. The weight does not change. The inputs themselves are needed, as a Gram matrix does
    not determine them. Source: [micikevicius2022] (the formats).
    """

    format: str = "e4m3"
    per: str = "token"
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.fp8_inputs"

    def __post_init__(self) -> None:
        one_of(self.format, tuple(FORMATS), "FP8Inputs.format")
        one_of(self.per, ("token", "tensor"), "FP8Inputs.per")
        one_of(self.rounding, ROUNDINGS, "FP8Inputs.rounding")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "grid", "rank", "factors"}),
            changes_inputs=True,
            deterministic=self.rounding != "any",
            idempotent=True,
        )

    @property
    def needs_inputs(self) -> bool:
        return True

    def inputs_of(self, layer: LayerState) -> Array:
        """Return the inputs (in x tokens).

        Raises:
            InputError: The layer has no inputs.
        """
        if layer.inputs is None:
            given = "no inputs" if layer.gram is None else "a Gram matrix alone"
            raise InputError(given, "a layer with calibration inputs (in x tokens)", str(self))
        return layer.inputs

    def of_tokens(self) -> FP8:
        """Return the quantizer for the transposed inputs (tokens x in), which it treats as a weight."""
        return FP8(self.format, "row" if self.per == "token" else "tensor", rounding=self.rounding)

    def encode(self, layer: LayerState) -> LayerState:
        tokens = LayerState.dense(self.inputs_of(layer).T, choices=layer.choices)
        rounded = self.of_tokens().encode(tokens).weight.T
        return layer.with_inputs(rounded, None if layer.gram is None else gram_of(rounded))
