"""Changes of basis of a layer's inputs: the layer computes ``weight @ (T @ inputs)``.

Each works on numpy object arrays of terms and on torch tensors alike; a tensor keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from compcomp.errors import NotExactError
from compcomp.terms import Term, each, reading

Array = Any


@dataclass(frozen=True)
class Scaling:
    """T = diag(1 / scales): each input feature divided by its scale. ``scales``: in, all > 0."""

    scales: Array

    def inputs(self, x: Array) -> Array:
        """T x, for inputs (in x tokens)."""
        return _like(x, x / self.scales[:, None])

    def inputs_back(self, x: Array) -> Array:
        """T^-1 x."""
        return _like(x, x * self.scales[:, None])

    def weights(self, w: Array) -> Array:
        """w T^-1, for a matrix of ``in`` columns."""
        return _like(w, w * self.scales)

    def weights_back(self, w: Array) -> Array:
        """w T."""
        return _like(w, w / self.scales)


@dataclass(frozen=True)
class Rotation:
    """T = diag(H, ..., H) / sqrt(block), H the Hadamard matrix of Sylvester of side ``block``, a power of two.

    T is symmetric and its own inverse. In exact numbers 1 / sqrt(block) has to be rational, else NotExactError.
    """

    block: int

    def inputs(self, x: Array) -> Array:
        """T x, for inputs (in x tokens)."""
        return self.weights(x.T).T

    def weights(self, w: Array) -> Array:
        """w T^-1, for a matrix of ``in`` columns."""
        return _like(w, self._normed(self._transformed(_wide(w).reshape(-1, self.block))).reshape(w.shape))

    def inputs_back(self, x: Array) -> Array:
        """T^-1 x."""
        return self.inputs(x)

    def weights_back(self, w: Array) -> Array:
        """w T."""
        return self.weights(w)

    def _transformed(self, rows: Array) -> Array:
        """Rows (count x block) times H, by sums and differences of halves."""
        size = 1
        while size < self.block:
            pairs = rows.reshape(-1, self.block // (2 * size), 2, size)
            one, other = pairs[:, :, 0], pairs[:, :, 1]
            rows = _stacked([one + other, one - other]).reshape(-1, self.block)
            size *= 2
        return rows

    def _normed(self, rows: Array) -> Array:
        root, rest = divmod(self.block.bit_length() - 1, 2)
        if not isinstance(rows, np.ndarray):
            return rows / float(self.block) ** 0.5
        if not rest:
            return each(lambda x: x * Fraction(1, 2**root), rows)
        if any(not isinstance(x, float) and reading(x) != "batch" for x in rows.ravel()):
            raise NotExactError(f"the root of {self.block}, the side of the Hadamard matrix, is not rational")
        return each(lambda x: x * float(self.block) ** -0.5, rows)


Part = Scaling | Rotation


@dataclass(frozen=True)
class Transform:
    """A change of basis T made of parts, in the order in which they act on the inputs."""

    parts: tuple[Part, ...]

    def inputs(self, x: Array) -> Array:
        """T x, for inputs (in x tokens)."""
        for part in self.parts:
            x = part.inputs(x)
        return x

    def inputs_back(self, x: Array) -> Array:
        """T^-1 x."""
        for part in reversed(self.parts):
            x = part.inputs_back(x)
        return x

    def weights(self, w: Array) -> Array:
        """w T^-1, for a matrix of ``in`` columns."""
        for part in self.parts:
            w = part.weights(w)
        return w

    def weights_back(self, w: Array) -> Array:
        """w T."""
        for part in reversed(self.parts):
            w = part.weights_back(w)
        return w

    def gram(self, g: Array) -> Array:
        """T g T^T, for a Gram matrix (in x in)."""
        return _symmetric(self.inputs(self.inputs(g).T))

    def gram_back(self, g: Array) -> Array:
        """T^-1 g T^-T."""
        return _symmetric(self.inputs_back(self.inputs_back(g).T))

    def matrix(self, features: int, number: Callable[[int], Term] = Fraction) -> Array:
        """T itself (in x in), on terms. ``number``: float for where no root has to be rational."""
        identity = [[number(int(i == j)) for j in range(features)] for i in range(features)]
        return self.inputs(np.array(identity, dtype=object))

    @property
    def scalings(self) -> int:
        """How many of its parts are scalings."""
        return sum(isinstance(part, Scaling) for part in self.parts)

    def map(self, function: Callable[..., Array], *others: Transform) -> Transform:
        """The same with the function of every array and its fellows in other transforms of the same kind."""
        parts = []
        for part, *fellows in zip(self.parts, *(other.parts for other in others), strict=True):
            if isinstance(part, Scaling):
                scales = (fellow.scales for fellow in fellows if isinstance(fellow, Scaling))
                part = replace(part, scales=function(part.scales, *scales))
            parts.append(part)
        return Transform(tuple(parts))


def composed(first: Transform | None, second: Transform | None) -> Transform | None:
    """What acts on the inputs as the first and then the second; None where that is nothing at all."""
    parts = list(first.parts if first is not None else ())
    for part in second.parts if second is not None else ():
        last = parts[-1] if parts else None
        if isinstance(part, Scaling) and isinstance(last, Scaling):
            parts[-1] = Scaling(last.scales * part.scales)
        elif isinstance(part, Rotation) and part == last:
            parts.pop()
        else:
            parts.append(part)
    return Transform(tuple(parts)) if parts else None


def unlike(
    one: Transform | None, other: Transform | None, features: int, number: Callable[[int], Term] = Fraction
) -> list[tuple[Term, Term]]:
    """Pairs of numbers that are equal, each with its fellow, exactly where both transforms are the same matrix.

    ``number``: as for :meth:`Transform.matrix`.
    """
    first, second = (Transform(()) if t is None else t for t in (one, other))
    if all(isinstance(part, Rotation) for part in (*first.parts, *second.parts)) and first == second:
        return []
    sides = [t.matrix(features, number).ravel() for t in (first, second)]
    return list(zip(*sides, strict=True))


def _like(given: Array, result: Array) -> Array:
    return result if isinstance(given, np.ndarray) else result.to(given.dtype)


def _wide(given: Array) -> Array:
    """A tensor in at least float32."""
    if isinstance(given, np.ndarray):
        return given
    import torch

    return given.to(torch.promote_types(given.dtype, torch.float32))


def _stacked(pair: list[Array]) -> Array:
    if isinstance(pair[0], np.ndarray):
        return np.stack(pair, axis=2)
    import torch

    return torch.stack(pair, dim=2)


def _symmetric(gram: Array) -> Array:
    """A tensor without what rounding makes of it."""
    return gram if isinstance(gram, np.ndarray) else (gram + gram.T) / 2
