"""What can be claimed of sequences, and where."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from compcomp.errors import InputError
from compcomp.language.loss import Loss, loss_named
from compcomp.language.technique import Sequence, Technique, as_sequence

INVARIANTS = ("mask", "grid", "rank")
"""mask: every weight a step dropped is zero at the end. grid: every weight is a value of the last grid.
rank: the weight has at most the rank of the last truncation."""

LARGEST_SIDE = 1024
LARGEST_BLOCK = 4096


@dataclass(frozen=True)
class Claim:
    """A statement about every dense layer in a scope and every choice the techniques leave free.

    kind "dominates": ``left`` loses no more than ``right``. kind "equal": both give the same state (weight,
    mask, grid and low-rank product). kind "keeps": what ``invariant`` names survives to the end of ``left``.
    """

    kind: str
    left: Sequence
    right: Sequence = field(default_factory=Sequence)
    loss: Loss | None = None
    invariant: str | None = None

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        return (self.left,) if self.kind == "keeps" else (self.left, self.right)

    @property
    def needs_inputs(self) -> bool:
        """Whether the claim speaks of layers together with their inputs."""
        return bool(self.loss and self.loss.needs_inputs) or any(s.needs_inputs for s in self.sequences)

    def __str__(self) -> str:
        if self.kind == "keeps":
            return f"{self.left} keeps {self.invariant}"
        return f"{self.left} {'equals' if self.kind == 'equal' else 'dominates'} {self.right}"


def dominates(left: Technique | Sequence, right: Technique | Sequence, loss: str = "weight_l2") -> Claim:
    """The claim that ``left`` never loses more than ``right``."""
    return Claim("dominates", as_sequence(left), as_sequence(right), loss_named(loss))


def equal(left: Technique | Sequence, right: Technique | Sequence) -> Claim:
    """The claim that both sequences always give the same state."""
    return Claim("equal", as_sequence(left), as_sequence(right))


def keeps(sequence: Technique | Sequence, invariant: str) -> Claim:
    """The claim that an invariant established along the sequence holds at its end."""
    if invariant not in INVARIANTS:
        raise InputError(f"invariant {invariant!r}", ", ".join(INVARIANTS), "claim")
    return Claim("keeps", as_sequence(sequence), invariant=invariant)


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
