"""Compute Gram matrices of a layer's inputs, and errors that they measure."""

from __future__ import annotations

import numpy as np

from compcomp.layers.batches import batch_size, stack, unstack
from compcomp.layers.state import LayerState
from compcomp.terms import Array, Sum, Term, reading


def gram_of(inputs: Array) -> Array:
    """Return the Gram matrix (in x in) of inputs (in x tokens)."""
    if reading(*inputs.ravel()) == "batch":
        values = stack(inputs, batch_size(inputs))
        return unstack(values @ values.transpose(0, 2, 1))
    gram: Array = inputs @ inputs.T
    return gram


def squared_error(error: Array, gram: Array | None) -> Term:
    """Return ``trace(error @ gram @ error.T)``, or the squared Frobenius norm if ``gram`` is None.

    Args:
        error: a matrix (out x in).
        gram: a Gram matrix (in x in), or None.
    """
    return Sum(((error if gram is None else error @ gram) * error).ravel())


def dense_products(layer: LayerState) -> Array:
    """Return ``W X X'^T`` (out x in), the dense outputs times the current inputs X', for a layer with a Gram matrix."""
    if layer.reference_inputs is None or layer.inputs is None:
        found: Array = layer.reference @ layer.gram
        return found
    return np.asarray(layer.reference @ (layer.reference_inputs @ layer.inputs.T))
