"""Write the texts of refusals: the techniques behind steps, and the lemma that failed."""

from __future__ import annotations

from collections.abc import Iterable

from compcomp.language.claim import Claim
from compcomp.language.identity import same_but
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import Step
from compcomp.proving.session import Session

MOST_NAMED = 3
"""The largest number of techniques that one reason names."""


def listed(things: Iterable[object]) -> str:
    """Join the distinct texts of things, at most the first :data:`MOST_NAMED` of them."""
    texts = list(dict.fromkeys(map(str, things)))
    shown = ", ".join(texts[:MOST_NAMED])
    return shown + (f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else "")


def owner(claim: Claim, step: Step) -> str:
    """Return the text of the technique of the claim that a step belongs to."""
    for technique in (t for sequence in claim.sequences for t in sequence):
        if any(type(own) is type(step) and same_but(own, step) for own in technique.steps()):
            return str(technique)
    return f"a {type(step).__name__}"


def without_steps(claim: Claim) -> str:
    """Name the techniques of the claim that are not made of steps. Returns "" if all are."""
    return listed(t for sequence in claim.sequences for t in sequence if not t.steps())


def not_additive(claim: Claim, hint: str = "") -> Refusal:
    """Refuse because the claim's loss is no sum over single weights."""
    loss = "a claim without a loss" if claim.loss is None else claim.loss.name
    return Refusal(f"{loss} is not a sum over single weights, as the rule needs{hint}")


def failing(reason: str, session: Session, reached: Reached) -> Refusal:
    """Refuse for a reason, with the latest query of the session that did not get the answer it needs."""
    return Refusal(reason, reached=reached, lemma=session.missed())


def convention(name: str, value: str) -> str:
    """Advise another value of a convention."""
    return f"{name}={value!r}"
