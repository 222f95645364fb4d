"""Which layers a claim speaks of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from compcomp.errors import InputError

LARGEST_SIDE = 1024
LARGEST_BLOCK = 4096


@dataclass(frozen=True)
class Scope:
    """Which layers a claim speaks of.

    kind "any": every shape the techniques fit. kind "shape": ``rows`` x ``columns`` (out x in). kind
    "block": one block of ``columns`` weights inside which every technique acts.
    """

    kind: str
    rows: int = 1
    columns: int = 0

    @classmethod
    def of(cls, given: Any) -> Scope:
        """From ``"any"``, ``"2x4"``, ``"block:32"``, ``(2, 4)``, ``("block", 32)`` or a Scope."""
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
        """(out, in) of the layers that have to be looked at; None for any shape."""
        return None if self.kind == "any" else (self.rows, self.columns)

    def describe(self) -> str:
        """The scope in words."""
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
