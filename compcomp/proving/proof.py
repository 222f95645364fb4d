"""What a rule or a reduction hands back when it has proved a claim."""

from __future__ import annotations

from dataclasses import dataclass

from compcomp.language.verdict import Query


@dataclass(frozen=True)
class Proof:
    """A proof of a claim. ``reach``: what it covers, in words. ``rule``: its name, as in docs/proofs.md.

    ``congruent``: it holds from every state, see :class:`compcomp.language.verdict.Verdict`.
    """

    rule: str
    reach: str
    assumptions: tuple[str, ...]
    queries: tuple[Query, ...] = ()
    congruent: bool = False


EXACT = "exact arithmetic (reals, not floats)"
DENSE_INPUTS = "where this is used inside a longer sequence, nothing in that changes the inputs"
SAME_BASIS = "where this is used inside a longer sequence, nothing in that changes the basis of the inputs"
