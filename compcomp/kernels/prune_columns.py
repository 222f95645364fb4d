"""Pruning of whole columns on tensors [he2017]."""

from __future__ import annotations

from compcomp.encodings.prune_columns import PruneColumns
from compcomp.kernels._cuts import column_scores, least, remove
from compcomp.kernels._shared import check
from compcomp.layers.state import LayerState


def kernel(technique: PruneColumns, layer: LayerState) -> LayerState:
    """Set the groups of columns of least score to zero.

    ``layer.weight`` is out x in; in divides into groups of ``size``. ``layer.gram`` is in x in, for score "activation".
    Scores are float64. The result has a bool mask, out x in, and a cut. ``ties="any"`` drops the lowest index first.
    Source: [he2017].

    Raises:
        InputError: The groups do not fit, inputs are missing, or an entry is not finite.
    """
    check(technique, layer)
    scores = column_scores(layer, technique.size, technique.score)
    return remove(layer, least(scores, technique.sparsity, technique.size, technique.ties), axis=1)
