"""Distillation of the whole model on its logits [hinton2015]."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

from compcomp.algebra.free import any_weights, is_any_weights
from compcomp.errors import InputError
from compcomp.language.parameters import Exact, default, number, one_of, parametrized, shown, whole
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import Term

TARGETS = ("data", "self")

OPEN = Declared(
    keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}),
    homogeneous=False,
    deterministic=False,
    no_op=frozenset({"on a grid"}),
)
"""The invariants that hold for any weights that training may lead to."""


@parametrized
class DistillLogits(Technique):
    """Train the compressed model towards the dense one's next tokens: T^2 KL(p || p'), a mean over tokens.

    p and p' are the softmax of the dense and of the compressed model's logits over the temperature T. The optimizer is
    AdamW [loshchilov2019] without weight decay. Its rate falls linearly to zero. Each step takes the next batch of the
    calibration data.
    iterations: The number of steps, 1 to 10^6.
    rate: AdamW's rate, in (0, 1].
    temperature: T, above 0 and at most 100.
    targets: "data" learns on the calibration sequences. "self" learns on the dense model's own continuations of the
        first quarter of each sequence, sampled at temperature 1 [liu2024].
    seed: The seed of this sampling.
    The trained weights are those that masks keep, in layers without a grid. Dropped weights are zero at every step.
    Factors, layers on a grid and everything else in the model do not change.
    Acts on the whole model. The encoding leaves the result for a layer open: any weights within the mask. So a claim
    holds only if it does for every outcome. On a single layer, as counterexamples are run, it takes as many gradient
    steps on the layer's output loss.
    Source: [hinton2015]; within a mask [hubara2021]; own data [liu2024].
    """

    iterations: int
    rate: Exact = default(Fraction(1, 1000))
    temperature: Exact = default(Fraction(1))
    targets: str = "data"
    seed: int = 0

    kernel_module: ClassVar[str] = "compcomp.kernels.distill_logits"
    whole_model: ClassVar[bool] = True
    declared: ClassVar[Declared] = OPEN
    fixtures: ClassVar[Fixtures] = Fixtures(values={"iterations": (2,), "temperature": (1, 2)})

    def __post_init__(self) -> None:
        check_training(self)
        allowed = "a number above 0, up to 100"
        temperature = number(self.temperature, "DistillLogits.temperature", allowed)
        if not 0 < temperature <= 100:
            raise InputError(shown(self.temperature), allowed, "DistillLogits.temperature")
        object.__setattr__(self, "temperature", temperature)

    @property
    def needs_inputs(self) -> bool:
        return True

    def encode(self, layer: LayerState) -> LayerState:
        if layer.gram is None and layer.inputs is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        return any_weights(layer)

    def feasible(self, before: LayerState, after: LayerState) -> Term:
        return is_any_weights(before, after)


def check_training(technique: Technique) -> None:
    """Check the parameters that techniques share which train the whole model, and make the rate a Fraction.

    Raises:
        InputError: A parameter is out of its range.
    """
    name, given = type(technique).__name__, vars(technique)
    whole(given["iterations"], 1, 10**6, f"{name}.iterations")
    whole(given["seed"], 0, 2**31 - 1, f"{name}.seed")
    one_of(given["targets"], TARGETS, f"{name}.targets")
    allowed = "a number above 0, up to 1, such as 1/1000"
    rate = number(given["rate"], f"{name}.rate", allowed)
    if not 0 < rate <= 1:
        raise InputError(shown(given["rate"]), allowed, f"{name}.rate")
    object.__setattr__(technique, "rate", rate)
