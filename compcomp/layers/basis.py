"""Define changes of basis T of a layer's inputs: the layer computes ``weight @ (T @ inputs)``.

All functions accept numpy object arrays of terms and torch tensors. A tensor keeps its dtype.
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
    """Divide each input feature by its scale: T = diag(1 / scales). ``scales`` has shape (in,), all > 0."""

    scales: Array

    def inputs(self, x: Array) -> Array:
        """Return T x, for inputs (in x tokens)."""
        return _like(x, x / self.scales[:, None])

    def inputs_back(self, x: Array) -> Array:
        """Return T^-1 x, for inputs (in x tokens)."""
        return _like(x, x * self.scales[:, None])

    def weights(self, w: Array) -> Array:
        """Return w T^-1, for a matrix with ``in`` columns."""
        return _like(w, w * self.scales)

    def weights_back(self, w: Array) -> Array:
        """Return w T, for a matrix with ``in`` columns."""
        return _like(w, w / self.scales)


@dataclass(frozen=True)
class Rotation:
    """Rotate input features in blocks: T = diag(H, ..., H) / sqrt(block).

    H is Sylvester's Hadamard matrix of side ``block``, a power of two. T is symmetric and its own inverse. Methods
    raise NotExactError for exact numbers if 1 / sqrt(block) is not rational.
    """

    block: int

    def inputs(self, x: Array) -> Array:
        """Return T x, for inputs (in x tokens)."""
        return self.weights(x.T).T

    def weights(self, w: Array) -> Array:
        """Return w T^-1, for a matrix with ``in`` columns."""
        return _like(w, self._normed(self._transformed(_wide(w).reshape(-1, self.block))).reshape(w.shape))

    def inputs_back(self, x: Array) -> Array:
        """Return T^-1 x, for inputs (in x tokens)."""
        return self.inputs(x)

    def weights_back(self, w: Array) -> Array:
        """Return w T, for a matrix with ``in`` columns."""
        return self.weights(w)

    def _transformed(self, rows: Array) -> Array:
        """Return rows (count x block) times H, computed by sums and differences of halves."""
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
    """Compose a change of basis T of parts, in the order in which they act on the inputs."""

    parts: tuple[Part, ...]

    def inputs(self, x: Array) -> Array:
        """Return T x, for inputs (in x tokens)."""
        for part in self.parts:
            x = part.inputs(x)
        return x

    def inputs_back(self, x: Array) -> Array:
        """Return T^-1 x, for inputs (in x tokens)."""
        for part in reversed(self.parts):
            x = part.inputs_back(x)
        return x

    def weights(self, w: Array) -> Array:
        """Return w T^-1, for a matrix with ``in`` columns."""
        for part in self.parts:
            w = part.weights(w)
        return w

    def weights_back(self, w: Array) -> Array:
        """Return w T, for a matrix with ``in`` columns."""
        for part in reversed(self.parts):
            w = part.weights_back(w)
        return w

    def gram(self, g: Array) -> Array:
        """Return T g T^T, for a Gram matrix (in x in)."""
        return _symmetric(self.inputs(self.inputs(g).T))

    def gram_back(self, g: Array) -> Array:
        """Return T^-1 g T^-T, for a Gram matrix (in x in)."""
        return _symmetric(self.inputs_back(self.inputs_back(g).T))

    def matrix(self, features: int, number: Callable[[int], Term] = Fraction) -> Array:
        """Return T itself (in x in), on terms.

        Args:
            features: the number of input features.
            number: makes the entries of the identity: Fraction for exact numbers, float if roots need not be rational.

        Raises:
            NotExactError: a root is not rational, for exact numbers.
        """
        identity = [[number(int(i == j)) for j in range(features)] for i in range(features)]
        return self.inputs(np.array(identity, dtype=object))

    @property
    def scalings(self) -> int:
        """The number of parts that are scalings."""
        return sum(isinstance(part, Scaling) for part in self.parts)

    def map(self, function: Callable[..., Array], *others: Transform) -> Transform:
        """Return the transform with every array replaced by a function of the arrays of all transforms.

        Args:
            function: maps an array, and those of the other transforms, to an array.
            others: transforms with parts of the same kinds.
        """
        parts = []
        for part, *fellows in zip(self.parts, *(other.parts for other in others), strict=True):
            if isinstance(part, Scaling):
                scales = (fellow.scales for fellow in fellows if isinstance(fellow, Scaling))
                part = replace(part, scales=function(part.scales, *scales))
            parts.append(part)
        return Transform(tuple(parts))


def composed(first: Transform | None, second: Transform | None) -> Transform | None:
    """Return the transform that acts as the first and then the second, or None if it has no parts."""
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
    """Return pairs of numbers that are all equal if and only if both transforms are the same matrix.

    Args:
        one: a transform, or None for the identity.
        other: the transform that it is compared with.
        features: the number of input features.
        number: as for :meth:`Transform.matrix`.
    """
    first, second = (Transform(()) if t is None else t for t in (one, other))
    if all(isinstance(part, Rotation) for part in (*first.parts, *second.parts)) and first == second:
        return []
    sides = [t.matrix(features, number).ravel() for t in (first, second)]
    return list(zip(*sides, strict=True))


def _like(given: Array, result: Array) -> Array:
    return result if isinstance(given, np.ndarray) else result.to(given.dtype)


def _wide(given: Array) -> Array:
    """Return a tensor in at least float32, and an object array as it is."""
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
    """Return a tensor made symmetric, as rounding may have made it slightly asymmetric; an object array as it is."""
    return gram if isinstance(gram, np.ndarray) else (gram + gram.T) / 2
