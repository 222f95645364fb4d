"""Check that the assumptions of a saved verdict agree, as data, with their texts, and belong to its claim."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compcomp.errors import InputError
from compcomp.language.assumption import SYMMETRIES, TEXTS, Assumption, Kind, assumption
from compcomp.language.claim import Claim, Scope

ASSUMED: dict[str, Any] = {"kind": str, "technique": (str, type(None)), "restricts": bool, "about": str}
"""The fields of one assumption in claim.json, apart from its text."""

STAGES = {
    **dict.fromkeys((Kind.WITHOUT_LOSS, Kind.BLOCKS, Kind.INSIDE_BLOCK), "bounded"),
    **dict.fromkeys((Kind.DENSE_INPUTS, Kind.SAME_BASIS), "rule"),
}
"""The stage whose proofs alone have assumptions of a kind."""


def assumptions_of(stated: dict[str, Any]) -> list[Assumption]:
    """Return the assumptions of a saved verdict. Raise InputError if one contradicts itself."""
    return list(map(Assumption.from_json, stated["assumed"], stated["assumptions"]))


def contradictions(claim: Claim, stated: dict[str, Any], follows: bool) -> list[str]:
    """Return the faults of the assumptions, one text for each.

    Args:
        claim: The claim that the verdict is on.
        stated: The content of claim.json.
        follows: True if the verdict follows from one on another claim. Its assumptions may then name techniques and
            conditions of that claim.
    """
    if len(stated["assumed"]) != len(stated["assumptions"]):
        return ["not as many assumptions as texts of them"]
    try:
        found = assumptions_of(stated)
    except InputError as error:
        return [str(error)]
    wrong = []
    if len(set(found)) < len(found):
        wrong.append("an assumption is there twice")
    techniques = {str(t) for c in (claim, *claim.parts().values()) for sequence in c.sequences for t in sequence}
    for one in found:
        if not _says_what_it_is(one):
            wrong.append(f"an assumption that no proof has: {one}"[:200])
        elif one.kind in STAGES and stated["stage"] != STAGES[one.kind]:
            wrong.append(f"an assumption of another stage than {stated['stage']}: {one}"[:200])
        elif not follows and not _belongs(one, claim, Scope.of(stated["scope"]), techniques):
            wrong.append(f"an assumption of another claim: {one}"[:200])
    if stated["status"] == "PROVED":
        needed = [assumption(Kind.EXACT), *claim.coupling, *(condition.assumption for condition in claim.given)]
        needed += [] if follows or claim.parts() else claim.of_techniques
        wrong += [f"not among the assumptions: {one}"[:200] for one in _missing(needed, found)]
    return wrong


def _missing(needed: Iterable[Assumption], found: list[Assumption]) -> list[Assumption]:
    return [one for one in needed if one not in found]


def _says_what_it_is(one: Assumption) -> bool:
    """Return True if the text is the one made from the data, and it restricts layers as its kind does."""
    if one.kind is Kind.CONDITION:
        return one.technique is None
    form = TEXTS.get(one.kind)
    if form is None or ("{technique}" in form) != (one.technique is not None) or ("{about}" in form) != bool(one.about):
        return False
    made = assumption(one.kind, one.technique, one.about)
    return one == made and one.text == made.text


def _belongs(one: Assumption, claim: Claim, scope: Scope, techniques: set[str]) -> bool:
    match one.kind:
        case Kind.CONTRACT:
            return one.technique in techniques
        case Kind.WITHOUT_LOSS:
            return one.about in SYMMETRIES.values()
        case Kind.BLOCKS:
            return one.about.isdecimal()
        case Kind.INSIDE_BLOCK:
            return scope.kind == "block"
        case Kind.CONDITION:
            return any(one == c.assumption and one.text == c.describe() for c in claim.given)
        case Kind.WHOLE_MODEL:
            return any(one in c.coupling or one in c.of_techniques for c in (claim, *claim.parts().values()))
        case _:
            return True
