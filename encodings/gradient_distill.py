"""Layer-wise distillation by gradient descent on the outputs of the dense layer [frantar2022, nesterov2018]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

from compcomp.errors import InputError
from compcomp.language.parameters import Exact, default, parametrized, step_length, whole
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.gram import dense_products
from compcomp.layers.state import LayerState
from compcomp.terms import Div, If, Sum, each


@parametrized
class GradientDistill(Technique):
    """Take gradient steps W' <- W' - eta grad |W X - W' X'|_F^2 against the dense layer's outputs.

    iterations: The number of steps, 1 to 10000.
    rate: The relative step length, in (0, 2): eta = rate / (2 trace(X' X'^T)).
    X are the dense calibration inputs, X' the current ones, which differ once a technique has changed them. The
    gradient is 2 (W' G - W X X'^T), G = X' X'^T (in x in). So a step is W' <- W' - rate / trace(G) (W' G - W X X'^T),
    for all weights at once that the mask keeps. The curvature of the loss is at most 2 trace(G), so no step increases
    it. Without a mask, while the inputs are the dense ones, W'_K = W + (W'_0 - W) (I - rate / trace(G) G)^K. The grid
    is given up, as the weights leave it. The low-rank branch does not change and is accounted for. If all inputs are
    zero, nothing changes. Needs calibration inputs. Source: the layer-wise objective [frantar2022]; the step
    [nesterov2018].
    """

    iterations: int
    rate: Exact = default(Fraction(1))

    # n:m is not kept: if the mask is broken, updates of weights that it keeps may exceed the pattern.
    kernel_module: ClassVar[str] = "compcomp.kernels.gradient_distill"
    declared: ClassVar[Declared] = Declared(
        keeps=frozenset({"mask", "shape", "factors"}),
        never_increases=frozenset({"output_l2"}),
        any_inputs=True,
        holds_reference=True,
        no_op=frozenset({"plain dense"}),
    )
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "iterations": (1, 3),
            "rate": (Fraction(1, 2), Fraction(1), Fraction(3, 2)),
        }
    )

    def __post_init__(self) -> None:
        whole(self.iterations, 1, 10_000, "GradientDistill.iterations")
        object.__setattr__(self, "rate", step_length(self.rate, "GradientDistill.rate"))

    @property
    def needs_inputs(self) -> bool:
        return True

    def encode(self, layer: LayerState) -> LayerState:
        if layer.gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        weight, gram, form, target = layer.weight, layer.gram, layer.format, dense_products(layer)
        low_rank, step = layer.effective() - weight, Div(self.rate, Sum(gram.diagonal()))
        for _ in range(self.iterations):
            moved = weight - ((weight + low_rank) @ gram - target) * step
            weight = moved if form.mask is None else each(If, form.mask, moved, weight)
        return replace(layer, weight=weight, format=replace(form, rank=None, grid=None))
