"""Define scopes, the sets of layers that claims speak of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from compcomp.errors import InputError

LARGEST_SIDE = 1024
LARGEST_BLOCK = 4096


@dataclass(frozen=True)
class Scope:
    """Describe the layers that a claim speaks of.

    Args:
        kind: "any" for every shape that the techniques fit; "shape" for layers of ``rows`` x ``columns`` weights;
            "block" for one block of ``columns`` weights inside which every technique acts.
        rows: the number of rows (out).
        columns: the number of columns (in), or of weights in the block.
    """

    kind: str
    rows: int = 1
    columns: int = 0

    @classmethod
    def of(cls, given: Any) -> Scope:
        """Return the scope for ``"any"``, ``"2x4"``, ``"block:32"``, ``(2, 4)``, ``("block", 32)`` or a Scope.

        Raises:
            InputError: the argument is none of these, or the layer is too large.
        """
        if isinstance(given, Scope):
            return given
        if isinstance(given, str):
            text = given.strip().lower()
            if text in ("any", "any shape"):
                return cls("any")
            if match := re.fullmatch(r"(\d{1,6})x(\d{1,6})", text):
                return cls._shape(int(match[1]), int(match[2]), given)
            if match := re.fullmatch(r"block:(\d{1,6})", text):
                return cls._block(int(match[1]), given)
        if isinstance(given, tuple) and len(given) == 2 and type(given[1]) is int:
            if given[0] == "block":
                return cls._block(given[1], given)
            if type(given[0]) is int:
                return cls._shape(given[0], given[1], given)
        raise _bad_scope(given)

    @classmethod
    def _shape(cls, rows: int, columns: int, given: Any) -> Scope:
        if not (1 <= rows <= LARGEST_SIDE and 1 <= columns <= LARGEST_SIDE):
            raise _bad_scope(given)
        return cls("shape", rows, columns)

    @classmethod
    def _block(cls, size: int, given: Any) -> Scope:
        if not 1 <= size <= LARGEST_BLOCK:
            raise _bad_scope(given)
        return cls("block", 1, size)

    @property
    def shape(self) -> tuple[int, int] | None:
        """The shape (out, in) of the layers, or None for any shape."""
        return None if self.kind == "any" else (self.rows, self.columns)

    def describe(self) -> str:
        """Return the scope as a phrase."""
        if self.kind == "any":
            return "any shape"
        return f"block of {self.columns}" if self.kind == "block" else f"shape {self.rows} x {self.columns}"

    def __str__(self) -> str:
        if self.kind == "any":
            return "any"
        return f"block:{self.columns}" if self.kind == "block" else f"{self.rows}x{self.columns}"


def _bad_scope(given: Any) -> InputError:
    allowed = f"any, 2x4 (out x in, up to {LARGEST_SIDE}) or block:32 (up to {LARGEST_BLOCK})"
    return InputError(f"scope {str(given)[:40]!r}", allowed, "scope")
