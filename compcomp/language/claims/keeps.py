"""Define the claim ``A keeps mask``: an invariant that a step sets up holds at the end."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from compcomp.algebra.low_rank import rank_exceeds
from compcomp.errors import InputError
from compcomp.language.claims.claim import Claim, holds_some
from compcomp.language.claims.entries import more_than, off_its_grid
from compcomp.language.conditions import Condition, Given, Run, conditions
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers.state import INVARIANTS, Format
from compcomp.layers.walk import apart
from compcomp.terms import And, Not, Term


@dataclass(frozen=True)
class Keeps(Claim):
    """State that ``invariant`` (of :data:`compcomp.layers.state.INVARIANTS`) still holds at the end of ``left``."""

    invariant: str

    kind: ClassVar[str] = "keeps"
    verb: ClassVar[str] = "keeps"
    scales: ClassVar[bool] = True
    example: ClassVar[str] = "mask"
    any_ties: ClassVar[bool] = True

    @classmethod
    def read(
        cls, left: Sequence, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
    ) -> Claim:
        return keeps(left, after.strip(), given=given)

    @property
    def object(self) -> str:
        return self.invariant

    @property
    def compares_inputs(self) -> bool:
        return False

    @property
    def adds(self) -> bool:
        return self.invariant != "rank"

    def says_nothing(self, formats: Callable[[], Items[Format] | None]) -> str:
        along = formats()
        empty = along is not None and all(form.get(self.invariant) is None for form in along)
        return f"no step establishes a {self.invariant}" if empty else ""

    def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
        return holds_some(_broken(self.invariant, runs[0], tolerance))

    def reason(self, runs: Items[Run]) -> str:
        return f"the {self.invariant} is broken at the end"


def _broken(invariant: str, run: Run, tolerance: float) -> list[Term]:
    """Return truth-valued terms, one of which is true if the invariant is broken at the end of the run."""
    end = run[-1]
    if invariant == "mask":
        return [
            And(Not(keep), apart(w, 0, tolerance))
            for state in run
            if state.format.mask is not None
            for keep, w in zip(state.format.mask.ravel(), end.weight.ravel(), strict=True)
        ]
    formats = [state.format for state in run if state.format.get(invariant) is not None]
    if invariant == "n:m":
        patterns = dict.fromkeys(pattern for form in formats for pattern in form.pattern or ())
        return [too_many for n, m in patterns for too_many in more_than(n, m, end.weight, tolerance)]
    if invariant == "shape":
        terms = [end.weight, *([] if end.format.factors is None else [end.effective() - end.weight])]
        return [
            And(Not(keep), apart(term[index], 0, tolerance))
            for form in formats
            if form.cut is not None
            for term in terms
            for index in np.ndindex(*term.shape)
            for keep in (form.cut.rows[index[0]], form.cut.columns[index[1]])
        ]
    if invariant == "rank":
        assert formats[-1].rank is not None
        return [rank_exceeds(end.weight, formats[-1].rank)]
    grid = formats[-1].grid
    assert grid is not None
    return off_its_grid(grid, end.weight, tolerance)


def keeps(sequence: Technique | Sequence, invariant: str, *, given: Given = ()) -> Keeps:
    """Return the claim that an invariant which some step sets up holds at the end of the sequence.

    Args:
        sequence: a technique or sequence.
        invariant: a name from :data:`compcomp.layers.state.INVARIANTS`.
        given: conditions or their names. The claim speaks only of layers on which all of them hold.

    Returns:
        The claim.

    Raises:
        InputError: the invariant or a condition is not known.
    """
    if invariant not in INVARIANTS:
        raise InputError(f"invariant {invariant!r}", ", ".join(INVARIANTS), "claim")
    return Keeps(as_sequence(sequence), invariant, given=conditions(given))
