"""What a rule or a reduction hands back when it has proved a claim."""

from __future__ import annotations

from dataclasses import dataclass

from compcomp.language.assumption import Assumption, Kind, assumption
from compcomp.language.verdict import Query


@dataclass(frozen=True)
class Proof:
    """A proof of a claim. ``reach``: what it covers, in words. ``rule``: its name, as in docs/proofs/.

    ``congruent``: it holds from every state, see :class:`compcomp.language.verdict.Verdict`.
    """

    rule: str
    reach: str
    assumptions: tuple[Assumption, ...]
    queries: tuple[Query, ...] = ()
    congruent: bool = False


EXACT = assumption(Kind.EXACT)
DENSE_INPUTS = assumption(Kind.DENSE_INPUTS)
SAME_BASIS = assumption(Kind.SAME_BASIS)
