"""Pruning of whole rows on tensors [li2017, ma2023]."""

from __future__ import annotations

from compcomp.encodings.prune_rows import PruneRows
from compcomp.kernels._cuts import least, remove, row_scores
from compcomp.kernels._shared import check
from compcomp.layers.state import LayerState


def kernel(technique: PruneRows, layer: LayerState) -> LayerState:
    """Set the groups of rows of least score to zero.

    ``layer.weight`` is out x in; out divides into groups of ``size``. ``layer.gram`` is in x in, for score
    "activation". Scores are float64. The result has a bool mask, out x in, and a cut. ``ties="any"`` drops the lowest
    index first. Source: [li2017, ma2023].

    Raises:
        InputError: The groups do not fit, inputs are missing, or an entry is not finite.
    """
    check(technique, layer)
    scores = row_scores(layer, technique.size, technique.score)
    return remove(layer, least(scores, technique.sparsity, technique.size, technique.ties), axis=0)
