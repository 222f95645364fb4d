"""Structured pruning of neurons on tensors."""

from __future__ import annotations

from compcomp.encodings.prune_neurons import PruneNeurons
from compcomp.kernels._units import drop_rows, pruned
from compcomp.language.layer import LayerState
from compcomp.language.whole import WholeModel


def kernel(technique: PruneNeurons, layer: LayerState) -> LayerState:
    """Drop the rows of least score of one stacked matrix (units x weights).

    The result has a bool mask (out x in) and a cut of bool tensors. ``ties="any"`` drops the lowest index first. Raises
    InputError when a weight is not finite.
    """
    return drop_rows(technique, layer, technique.sparsity, technique.score, technique.ties)


def kernel_model(technique: PruneNeurons, whole: WholeModel) -> dict[str, LayerState]:
    """Drop the neurons of least score from all layers that they have weights in. InputError where there are none."""
    return pruned(technique, whole, whole.neurons())
