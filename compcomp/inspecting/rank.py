"""Find the rank of a layer from a sketch of it, one block of rows at a time [halko2011]."""

from __future__ import annotations

import numpy as np

from compcomp.formats.numbers import SIGNIFICANT, Array

SKETCH = 64
"""The largest rank that is found exactly, unless a larger one is asked for. Beyond it the rank is "at least"."""
LOST = 2.0**-18
"""The relative error of products in float32, which is the least that is taken for rounding."""


class RankSketch:
    """Gather S W T for random matrices S (3k x out) and T (in x 1.5k), whose rank is W's with probability 1 up to k.

    Where a layer has no more rows or columns than that, this side is left as it is. A singular value counts as
    zero if rounding the weights to their dtype may have made it. Square sketches would have small ones by chance.
    """

    def __init__(self, shape: tuple[int, int], dtype: str | None, size: int = SKETCH) -> None:
        rows, columns = shape
        self.most = min(rows, columns, size)
        self._random = np.random.default_rng(0)
        wide, tall = size + size // 2, 3 * size
        self._right = self._random.standard_normal((columns, wide), np.float32) if columns > wide else None
        self._tall = tall if rows > tall else None
        self._parts: list[Array] = []
        self._sum = np.zeros((tall, min(columns, wide)))
        self._squares = 0.0
        self._error = max(LOST, 2.0 ** -SIGNIFICANT.get(dtype or "F32", 24))
        self._shape = shape

    def add(self, values: Array) -> None:
        """Take the next rows, float32."""
        self._squares += float(np.square(values, dtype=np.float64).sum())
        right = values if self._right is None else values @ self._right
        if self._tall is None:
            self._parts.append(right.astype(np.float64))
        else:
            left = self._random.standard_normal((self._tall, len(values)), np.float32)
            self._sum += left @ right

    def rank(self) -> int:
        """Return the rank, at most ``most``."""
        sketch = self._sum if self._tall is not None else np.concatenate(self._parts)
        found = np.linalg.svd(sketch, compute_uv=False)
        rows, columns = self._shape
        each = self._squares**0.5 / max(1.0, rows * columns) ** 0.5 * self._error
        if self._right is not None:
            each *= columns**0.5
        if self._tall is not None:
            each *= rows**0.5
        noise = each * (sketch.shape[0] ** 0.5 + sketch.shape[1] ** 0.5)
        return min(self.most, int((found > noise).sum()))
