"""Activation quantization: the inputs rounded to symmetric grids, by default one for each token [yao2022]."""

from __future__ import annotations

from typing import ClassVar

from compcomp.encodings.absmax import AbsMax
from compcomp.errors import InputError
from compcomp.language.parameters import BitsOrAny, Unknown, bit_width, one_of, parametrized, shown, whole
from compcomp.language.technique import Declared, Technique
from compcomp.layers.gram import gram_of
from compcomp.layers.state import Array, LayerState
from compcomp.terms import ROUNDINGS


@parametrized
class AbsMaxInputs(Technique):
    """Round the layer's inputs to the nearest of ``-L * s ... L * s``, L = 2^(bits-1) - 1, s = max|x| / L.

    bits: The bit width, 2 to 16, or Any in claims.
    per: The inputs that share a scale: "token" for all features of a token, or "tensor" for all inputs.
    group: The number of consecutive features of a token that share a scale. None stands for all of them.
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    An all-zero group stays zero. The weight does not change. The inputs themselves are needed, as a Gram matrix does
    not determine them. Source: [yao2022] (token-wise); the grid is that of [dettmers2022].
    """

    bits: BitsOrAny
    per: str = "token"
    group: int | None = None
    rounding: str = "half_even"

    kernel_module: ClassVar[str] = "compcomp.kernels.absmax_inputs"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (4, 3, 2, 8)}

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bit_width(self.bits, "AbsMaxInputs.bits"))
        one_of(self.per, ("token", "tensor"), "AbsMaxInputs.per")
        if self.group is not None:
            whole(self.group, 1, 2**20, "AbsMaxInputs.group")
            if self.per != "token":
                raise InputError(f"group={self.group} with per={shown(self.per)}", "per='token'", "AbsMaxInputs")
        one_of(self.rounding, ROUNDINGS, "AbsMaxInputs.rounding")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "grid", "rank", "factors"}),
            changes_inputs=True,
            input_bits=None if isinstance(self.bits, Unknown) or self.group is not None else self.bits,
            deterministic=self.rounding != "any",
            idempotent=True,
        )

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def unit(self) -> int:
        return self.group or 1

    def check(self, shape: tuple[int, ...]) -> None:
        if shape[1] % self.unit:
            where = f"{self} on a layer of shape {shape[0]}x{shape[1]} (out x in)"
            raise InputError(f"{shape[1]} features", f"features that divide into groups of {self.unit}", where)

    def inputs_of(self, layer: LayerState) -> Array:
        """Return the inputs (in x tokens).

        Raises:
            InputError: The layer has no inputs.
        """
        if layer.inputs is None:
            given = "no inputs" if layer.gram is None else "a Gram matrix alone"
            raise InputError(given, "a layer with calibration inputs (in x tokens)", str(self))
        return layer.inputs

    def of_tokens(self, features: int) -> AbsMax:
        """Return the quantizer for the transposed inputs (tokens x in), which it treats as a weight."""
        return AbsMax(self.bits, None if self.per == "tensor" else self.group or features, self.rounding)

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        tokens = LayerState.dense(self.inputs_of(layer).T, choices=layer.choices)
        rounded = self.of_tokens(layer.weight.shape[1]).encode(tokens).weight.T
        return layer.with_inputs(rounded, None if layer.gram is None else gram_of(rounded))
