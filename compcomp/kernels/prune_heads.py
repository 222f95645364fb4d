"""Structured pruning of heads on tensors."""

from __future__ import annotations

from compcomp.encodings.prune_heads import PruneHeads
from compcomp.kernels._units import pruned, without_units
from compcomp.layers.state import LayerState
from compcomp.layers.whole import WholeModel


def kernel(technique: PruneHeads, layer: LayerState) -> LayerState:
    """Drop the rows of least score of one stacked matrix (units x weights).

    ``layer.gram`` is in x in, for score "activation". Scores are float64. The result has a bool mask (out x in) and a
    cut of bool tensors. ``ties="any"`` drops the lowest index first.

    Raises:
        InputError: Inputs are missing, or a weight is not finite.
    """
    return without_units(technique, layer)


def kernel_model(technique: PruneHeads, whole: WholeModel) -> dict[str, LayerState]:
    """Drop the heads of least score from all layers that contain their weights.

    "activation" is measured on the calibration inputs of the layer that reads the heads.

    Raises:
        InputError: There are no heads, or no such inputs.
    """
    return pruned(technique, whole, whole.heads())
