"""Measure the losses of a layer on tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compcomp.errors import InputError
from compcomp.language.loss import loss_named
from compcomp.layers.state import LayerState

RELATIVE = "relative_output_l2"


def effective_weight(layer: LayerState) -> Tensor:
    """Return the weight that the layer applies, out x in: in float64 with factors or a transform, else as stored."""
    weight, transform = layer.weight, layer.format.transform
    if layer.format.factors is not None:
        left: Any = layer.format.factors.left
        right: Any = layer.format.factors.right
        weight = weight.double() + left.double() @ right.double()
    if transform is not None:
        weight = transform.map(lambda scales: scales.double()).weights_back(weight.double())
    return weight  # type: ignore[no-any-return]


MEASURED = ("weight_l1", "weight_l2", "output_l2")
"""The losses that are measured if none is named."""


def layer_losses(
    layer: LayerState, names: tuple[str, ...] = MEASURED, norms: dict[str, float] | None = None
) -> dict[str, float]:
    """Return each named loss of one layer of torch tensors, in float64: exactly 0 if nothing changed.

    With "output_l2" comes "output_norm2", |W X|_F^2 of the dense weight, for comparison. ``norms`` receives it, and
    gives it to later calls about states of the same layer.
    """
    norms = {} if norms is None else norms
    reference: Any = layer.reference
    reference = reference.double()
    effective = effective_weight(layer).double()
    result = dict[str, float]()
    for name in names:
        part = loss_named(name).element
        if part is not None:
            result[name] = float(part(reference, effective).sum())
        else:
            if layer.reference_inputs is not None:
                raise InputError("inputs that a technique has changed", "the dense ones", name)
            result[name] = _squared(effective - reference, layer)
            if "output_norm2" not in norms:
                norms["output_norm2"] = _squared(reference, layer)
            result |= norms
    return result


def total(losses: list[dict[str, float]]) -> dict[str, float]:
    """Return the sums over layers. "relative_output_l2" is the summed output_l2 over the summed |W X|_F^2."""
    result = {name: sum(layer[name] for layer in losses) for name in (losses[0] if losses else {})}
    if (norm2 := result.pop("output_norm2", None)) is not None:
        result[RELATIVE] = result["output_l2"] / norm2 if norm2 else 0.0
    return result


def _squared(error: Tensor, layer: LayerState) -> float:
    """Return |E X|_F^2 from the Gram matrix, at least 0 despite rounding."""
    if layer.gram is None:
        raise InputError("no calibration", "calibration data", "output_l2")
    gram: Any = layer.gram
    return max(0.0, float(((error @ gram.double()) * error).sum()))
