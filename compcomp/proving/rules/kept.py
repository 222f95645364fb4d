"""Invariants that every later step keeps."""

from __future__ import annotations

import time

from compcomp.language.claim import Claim, Scope
from compcomp.language.steps import GridMap, Selection
from compcomp.language.technique import Technique
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.rules.facts import map_facts
from compcomp.proving.sample import formats_along
from compcomp.proving.session import Session
from compcomp.proving.solver import Solver

# Rule (kept). Let the run of S establish the invariant, for the last time after step k. If every step after
# k keeps it, it holds at the end of S. (For the mask: every step after the first mask keeps all masks so
# far, as each accumulates into the next.) A step keeps the
#   mask   if it is a selection (a weight is left alone or set to zero), or a map with q(0) = 0;
#   grid   if it is a selection (zero is on every grid here); a map sets up a grid of its own, and its values
#          lie on it, as it maps each to itself;
#   any    if the technique declares that it does: then that contract is an assumption of the verdict.


def invariant_is_kept(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """Every technique after the one that establishes the invariant keeps it."""
    if claim.kind != "keeps" or claim.invariant is None:
        return None
    formats = formats_along(claim, Scope("any"))
    if formats is None:
        return None
    set_up = [k for k, form in enumerate(formats) if getattr(form, claim.invariant) is not None]
    if not set_up:
        return None
    first = set_up[0]
    session = Session(solver, time.monotonic() + deadline)
    techniques = claim.left.techniques
    if claim.invariant == "grid":
        maps = [k for k, t in enumerate(techniques) if any(isinstance(s, GridMap) for s in t.steps())]
        if not maps or not _lies_on_its_grid(techniques[maps[-1]], session):
            return None
        first = maps[-1] + 1
    contracts: list[str] = []
    source = techniques[first - 1]
    if not source.steps():
        contracts.append(f"{source} establishes the {claim.invariant} (its contract)")
    for technique in techniques[first:]:
        if technique.steps():
            if not _steps_keep(technique, claim.invariant, session):
                return None
        elif claim.invariant in technique.promises().keeps:
            contracts.append(f"{technique} keeps the {claim.invariant} (its contract)")
        else:
            return None
    return Proof("kept", "any shape", (EXACT, *dict.fromkeys(contracts)), tuple(session.queries))


def _steps_keep(technique: Technique, invariant: str, session: Session) -> bool:
    for step in technique.steps():
        if isinstance(step, Selection):
            if invariant not in ("mask", "grid"):
                return False
        elif invariant != "mask" or not map_facts(step, session).zero:
            return False
    return True


def _lies_on_its_grid(technique: Technique, session: Session) -> bool:
    """A value that the map leaves alone is a value of its grid."""
    step = technique.steps()[-1]
    return isinstance(step, GridMap) and map_facts(step, session).idempotent
