"""Describe one layer of a checkpoint: what it is stored as, what a configuration claims, and how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compcomp.formats.numbers import Array
from compcomp.formats.tensors import Tensor

CHUNK = 1 << 19
"""The most weights that are decoded at a time, unless one row has more."""


@dataclass(frozen=True)
class Block:
    """Hold some rows of a layer.

    Args:
        start: the first row.
        values: the weights, rows x in, as floats.
        levels: the stored integers with their zero point subtracted, rows x in, if the layer is stored as integers.
    """

    start: int
    values: Array
    levels: Array | None = None


@dataclass(frozen=True)
class StoredGrid:
    """State the grid that a layer is stored on.

    Args:
        bits: the bits of one stored weight.
        group: consecutive weights of a row that share a step; 0 if steps are shared in another way.
        kind: ``integers``, ``zero point``, ``minimum`` (an offset that is no multiple of the step) or the name of a
            codebook.
    """

    bits: int
    group: int
    kind: str = "integers"


@dataclass(frozen=True)
class Claim:
    """Hold what a file such as config.json claims of a layer. None: it claims nothing.

    Args:
        source: the file.
        bits: bits of a weight on its grid.
        group: weights that share a step; -1 for a whole row.
        pattern: N:M sparsity as (n, m).
        rank: the rank of the low-rank branch.
    """

    source: str
    bits: int | None = None
    group: int | None = None
    pattern: tuple[int, int] | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Layer:
    """Locate one layer (out x in) of a checkpoint.

    Args:
        name: its name, without ``.weight``.
        shape: (out, in).
        format: the format it is stored in, such as ``GPTQ``; ``dense`` for plain floats.
        nbytes: the bytes of all its tensors.
        read: returns the block of rows from a first one up to, and without, a last one. None if only sizes are known.
        dtype: the dtype whose rounding the weights have been through; None if they are products computed here.
        grid: the grid that it is stored on, if it is.
        claim: the configuration's claim.
        branch_rank: the rank of a low-rank branch that is stored with it.
    """

    name: str
    shape: tuple[int, int]
    format: str
    nbytes: int
    read: Callable[[int, int], Block] | None
    dtype: str | None = None
    grid: StoredGrid | None = None
    claim: Claim | None = None
    branch_rank: int = 0

    @property
    def step(self) -> int:
        """The rows of one block."""
        return max(1, CHUNK // max(1, self.shape[1]))

    def blocks(self) -> Iterator[Block]:
        """Yield the layer in blocks of rows."""
        assert self.read is not None
        for start in range(0, self.shape[0], self.step):
            yield self.read(start, min(start + self.step, self.shape[0]))


@dataclass
class Contents:
    """Hold the layers of a checkpoint.

    Args:
        format: the formats found, such as ``GPTQ``.
        layers: its matrices in the order of their names.
        other_bytes: bytes of tensors that are no matrices, such as norms and biases.
        problems: where the configuration and the tensors as a whole differ.
        config: the configuration, {} if there is none.
    """

    format: str
    layers: list[Layer]
    other_bytes: int
    problems: list[str] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)


def total(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)
