"""Define the result of a rule or a reduction: a proof, or a refusal with its reason."""

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
    """A proof of a claim.

    Args:
        rule: the name of the rule, as in docs/proofs/.
        reach: the layers that the proof covers, as text.
        assumptions: the statements that the proof depends on.
        queries: the solver queries that were asked for it.
        local_rewrite: True if the claim holds from every state, see :class:`compcomp.language.verdict.Verdict`.
    """

    rule: str
    reach: str
    assumptions: tuple[Assumption, ...]
    queries: tuple[Query, ...] = ()
    local_rewrite: bool = False


EXACT = assumption(Kind.EXACT)
DENSE_INPUTS = assumption(Kind.DENSE_INPUTS)
SAME_BASIS = assumption(Kind.SAME_BASIS)


@dataclass(frozen=True)
class Rule:
    """A rule that proves claims for every shape.

    Args:
        name: as in docs/proofs/, and in refusals.
        claims: the classes of claims that the rule can prove.
        needs: one line on what the rule requires of a claim.
        prove: the rule itself, for claims of these classes. A refusal that names no rule gets this rule's name.
    """

    name: str
    claims: tuple[type[Claim], ...]
    needs: str
    prove: Callable[[Any, Session], Proof | Refusal]

    def __call__(self, claim: Claim, session: Session) -> Proof | Refusal:
        """Prove the claim, or refuse with what is missing."""
        if not isinstance(claim, self.claims):
            kinds = " or ".join(kind.kind for kind in self.claims)
            return Refusal(f"it is about claims of kind {kinds}", self.name, Reached.OTHER_CLAIM)
        found = self.prove(claim, session)
        return replace(found, rule=self.name) if isinstance(found, Refusal) and not found.rule else found


def rule(name: str, *claims: type[C], needs: str) -> Callable[[Callable[[C, Session], Proof | Refusal]], Rule]:
    """Make a function a :class:`Rule` of this name, for claims of these classes."""
    return lambda prove: Rule(name, claims, needs, prove)
