"""Define schemes, the formats such as ``W4A16`` and ``2:4`` that a sequence can be claimed to fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.language.parameters import number, shown
from compcomp.language.size import DENSE, position_bits
from compcomp.layers.partition import Partition

ALLOWED = "parts such as W4, W4A8, 2:4, 50%, 50%/row, r8, +r8, each kind once"
LONGEST = 200


@dataclass(frozen=True)
class Scheme:
    """State the format that a compressed layer must have. Each part of its text states one requirement.

    - ``W4``: the layer ends with a grid of at most 2^4 values a group, and every weight is one of its group's values.
    - ``A8``: the inputs of every token, in the basis of the weight, are k s for a step s of that token. The k are
      integers among 2^8 consecutive ones, which include 0.
    - ``W16`` and ``A16``: no requirement.
    - ``2:4``: of every 4 consecutive weights of a row at most 2 are not zero.
    - ``50%``: at least int(n / 2) of the layer's n weights are zero. ``50%/row``: the same for the n weights of every
      row.
    - ``r8``: the weight has at most rank 8.
    - ``+r8``: the low-rank branch has at most rank 8. Without this part there must be no low-rank branch.
    """

    weights: int = DENSE
    inputs: int = DENSE
    pattern: tuple[int, int] | None = None
    sparsity: Fraction = Fraction(0)
    per: str = "tensor"
    rank: int | None = None
    branch_rank: int = 0

    @classmethod
    def of(cls, given: Any) -> Scheme:
        """Return the scheme of a text, or a scheme as it is; raise InputError for anything else."""
        if isinstance(given, Scheme):
            return given
        parts = given.split() if isinstance(given, str) and len(given) <= LONGEST else []
        found: dict[str, object] = {}
        for part in parts:
            read = _read(part)
            if read is None or found.keys() & read.keys():
                raise InputError(shown(part), ALLOWED, "scheme")
            found |= read
        if not found:
            raise InputError(shown(given), ALLOWED, "scheme")
        return cls(**found)  # type: ignore[arg-type]

    @property
    def unit(self) -> int:
        """The number that divides the number of columns of every layer that the scheme speaks of."""
        return 1 if self.pattern is None else self.pattern[1]

    @property
    def needs_inputs(self) -> bool:
        """True if the scheme requires a format of the inputs."""
        return self.inputs < DENSE

    @property
    def share_of(self) -> Partition:
        """The partition into groups that must each have the sparsity."""
        return Partition.rows() if self.per == "row" else Partition.tensor()

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partitions into groups that the scheme speaks of."""
        found = [] if self.pattern is None else [Partition.blocks(self.pattern[1])]
        whole = [] if self.rank is None else [Partition.tensor()]
        return (*found, *([self.share_of] if self.sparsity else []), *whole)

    def bits(self, shape: tuple[int, int], scales: int = 0, positions: str = "index", scalings: int = 0) -> int:
        """Return a number of bits in which every layer that fits the scheme can be stored.

        The shortest way to store which weights are not zero counts (not at all, one bit a weight, or by N:M groups).
        The inputs are not part of a layer, but scalings of them are.

        Args:
            shape: the shape of the layer (out, in).
            scales: the number of groups of its grid, with at most two numbers of 16 bits each.
            positions: one of :data:`compcomp.language.size.POSITIONS`.
            scalings: the number of scalings of the inputs, with a number of 16 bits for each feature.
        """
        rows, columns = shape
        count = rows * columns
        size = self.share_of.group_size(shape)
        ways = [count * self.weights]
        if self.sparsity:
            ways.append((size - int(size * self.sparsity)) * (count // size) * self.weights + count)
        if self.pattern is not None:
            n, m = self.pattern
            ways.append(count // m * (n * self.weights + position_bits(n, m, positions)))
        if self.rank is not None:
            ways.append(DENSE * self.rank * (rows + columns))
        shared = 2 * DENSE * scales if self.weights < DENSE else 0
        extra = DENSE * (self.branch_rank * (rows + columns) + scalings * columns)
        return min(min(ways) + shared, DENSE * count) + extra

    def __str__(self) -> str:
        parts = []
        if self.weights < DENSE or self.inputs < DENSE:
            parts.append(f"W{self.weights}" + (f"A{self.inputs}" if self.inputs < DENSE else ""))
        if self.pattern is not None:
            parts.append("{}:{}".format(*self.pattern))
        if self.sparsity:
            parts.append(_percent(self.sparsity) + ("/row" if self.per == "row" else ""))
        if self.rank is not None:
            parts.append(f"r{self.rank}")
        if self.branch_rank:
            parts.append(f"+r{self.branch_rank}")
        return " ".join(parts) or f"W{DENSE}"


def _read(part: str) -> dict[str, object] | None:
    """Return the fields that one part of the text sets, or None if it cannot be parsed."""
    if match := re.fullmatch(r"W(\d{1,2})(?:A(\d{1,2}))?|A(\d{1,2})", part):
        weights, with_inputs, alone = match.groups()
        widths = {"weights": weights, "inputs": with_inputs or alone}
        read: dict[str, object] = {name: int(width) for name, width in widths.items() if width}
        return read if all(1 <= int(width) <= DENSE for width in widths.values() if width) else None
    if match := re.fullmatch(r"(\d{1,3}):(\d{1,3})", part):
        n, m = int(match[1]), int(match[2])
        return {"pattern": (n, m)} if 0 < n <= m <= 256 else None
    if match := re.fullmatch(r"(\d{1,3}(?:\.\d{1,12})?%|\d{1,9}/\d{1,9})(/row)?", part):
        share = number(match[1][:-1], "scheme", ALLOWED) / 100 if "%" in part else number(match[1], "scheme", ALLOWED)
        return {"sparsity": share, "per": "row" if match[2] else "tensor"} if 0 < share < 1 else None
    if match := re.fullmatch(r"(\+?)r(\d{1,5})", part):
        rank = int(match[2])
        return {"branch_rank" if match[1] else "rank": rank} if rank else None
    return None


def _percent(share: Fraction) -> str:
    """Return a share as a percentage such as 50% if that is exact in few digits, else as a fraction such as 1/3."""
    text = f"{float(100 * share):.12f}".rstrip("0").rstrip(".")
    return f"{text}%" if Fraction(text) == 100 * share else str(share)
