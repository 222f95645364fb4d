"""Convert object arrays of batches to float arrays whose first axis is the candidates, and back."""

from __future__ import annotations

import numpy as np

from compcomp.terms import Array, Batch


def stack(terms: Array, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return an object array of batches as one float array of shape (size, *shape), with one row a candidate."""
    columns = [
        np.broadcast_to(np.asarray(x.values if isinstance(x, Batch) else float(x), dtype=float), (size,))
        for x in terms.ravel()
    ]
    return np.stack(columns, axis=1).reshape(size, *terms.shape)


def unstack(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Array:
    """Return the object array of batches whose :func:`stack` is the given array."""
    result = np.empty(values.shape[1:], dtype=object)
    for index in np.ndindex(*result.shape):
        result[index] = Batch(values[(slice(None), *index)])
    return result


def batch_size(*arrays: Array) -> int:
    """Return the number of candidates of the batches among these terms."""
    return next(len(x.values) for array in arrays for x in array.ravel() if isinstance(x, Batch))
