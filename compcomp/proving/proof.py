"""What a rule or a reduction hands back: a proof, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from compcomp.language.assumption import Assumption, Kind, assumption
from compcomp.language.claim import Claim
from compcomp.language.query import Query
from compcomp.language.refusal import Reached, Refusal
from compcomp.proving.session import Session

C = TypeVar("C", bound=Claim)


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


@dataclass(frozen=True)
class Rule:
    """A rule that proves claims for every shape.

    Args:
        name: as in docs/proofs/, and in refusals.
        claims: the classes of the claims that it is about.
        needs: what it asks of a claim, in one line.
        prove: the rule itself, for claims of these kinds. A refusal without a rule's name gets this one.
    """

    name: str
    claims: tuple[type[Claim], ...]
    needs: str
    prove: Callable[[Any, Session], Proof | Refusal]

    def __call__(self, claim: Claim, session: Session) -> Proof | Refusal:
        """Prove the claim, or say what is missing."""
        if not isinstance(claim, self.claims):
            kinds = " or ".join(kind.kind for kind in self.claims)
            return Refusal(f"it is about claims of kind {kinds}", self.name, Reached.OTHER_CLAIM)
        found = self.prove(claim, session)
        return replace(found, rule=self.name) if isinstance(found, Refusal) and not found.rule else found


def rule(name: str, *claims: type[C], needs: str) -> Callable[[Callable[[C, Session], Proof | Refusal]], Rule]:
    """Make a function a :class:`Rule` of this name, about claims of these classes."""
    return lambda prove: Rule(name, claims, needs, prove)
