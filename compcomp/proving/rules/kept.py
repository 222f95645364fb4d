"""Invariants that every later step keeps."""

from __future__ import annotations

import time
from collections.abc import Sequence as Items

from compcomp.language.claim import Claim, Scope
from compcomp.language.layer import Format
from compcomp.language.steps import GridMap, RangeMap, Selection, Step
from compcomp.language.technique import Technique
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.rules.facts import MapFacts, has_zero, keeps_zero, lies_on_grid
from compcomp.proving.sample import formats_along
from compcomp.proving.session import Session
from compcomp.proving.solver import Solver

# Rule (kept). Let the run of S establish the invariant, for the last time after step k. If every step after
# k keeps it, it holds at the end of S. (For the mask: every step after the first mask keeps all masks so
# far, as each accumulates into the next.) A step keeps the
#   mask   if it is a selection (a weight is left alone or set to zero), or a map with q(0) = 0 (of a range map: in
#          every group that holds a 0, as the group of a dropped weight does);
#   n:m    if it keeps zeros as above: no more weights are then not zero than before. A selection in groups of m that
#          leaves n of them sets the pattern up anew: all that it drops is zero after it;
#   grid   if it is a selection and zero is on the grid (always on k * step, asked of a range map); a map sets up a grid
#          of its own, and its values lie on it (as a grid map maps each to itself; asked of a range map);
#   any    if the technique declares that it does: then that contract is an assumption of the verdict. For a grid of
#          which zero is no value that contract speaks of kept weights only, and counts where there is no mask.
#
# Rule (restored). Let T be a technique of S that declares to restore the mask: whatever the weights were, all that the
# mask M it finds drops is zero after it, and the mask it leaves drops this as well. Let every technique between the
# first mask and T accumulate, that is, the mask after it drops all that the mask before it drops, whatever the weights:
# a step does (a selection adds to the mask, a map leaves it alone); of others it is part of their contract that they
# keep, or restore, the mask. Then all masks up to T lie in M, so all that they drop is zero after T, and it is as if T
# had established the mask: if every technique after T keeps it, it holds at the end of S. Where the mask was broken
# between is of no interest.


def invariant_is_kept(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """Every technique after the one that establishes or restores the invariant keeps it."""
    if claim.kind != "keeps" or claim.invariant is None:
        return None
    formats = formats_along(claim, Scope("any"))
    if formats is None:
        return None
    set_up = [k for k, form in enumerate(formats) if form.get(claim.invariant) is not None]
    if not set_up:
        return None
    session = Session(solver, time.monotonic() + deadline)
    techniques = claim.left.techniques
    if claim.invariant == "grid":
        contracts = grid_kept(techniques, formats, session)
    else:
        contracts = others_kept(techniques, set_up[0], claim.invariant, session)
    if contracts is None:
        return None
    return Proof("kept", "any shape", (EXACT, *dict.fromkeys(contracts)), tuple(session.queries))


def grid_kept(techniques: Items[Technique], formats: Items[Format], session: Session) -> list[str] | None:
    """The contracts on which it rests that the last grid is kept; None where that is not proved."""
    maps = [k for k, t in enumerate(techniques) if any(isinstance(s, GridMap | RangeMap) for s in t.steps())]
    if not maps:
        return None
    last = techniques[maps[-1]].steps()[-1]
    zero = _zero_on_its_grid(last, session)
    if not _lies_on_its_grid(last, session):
        return None
    contracts = []
    for k, technique in enumerate(techniques[maps[-1] + 1 :], start=maps[-1] + 1):
        if technique.steps():
            if not zero or not all(isinstance(step, Selection) for step in technique.steps()):
                return None
        elif "grid" in technique.promises().keeps and (zero or formats[k + 1].mask is None):
            contracts.append(f"{technique} keeps the grid (its contract)")
        else:
            return None
    return contracts


def _lies_on_its_grid(step: Step, session: Session) -> bool:
    """Every value of the map is one of its grid: it leaves it alone, or that is asked."""
    if isinstance(step, RangeMap):
        return lies_on_grid(step, session)
    return isinstance(step, GridMap) and MapFacts(step, session).idempotent


def _zero_on_its_grid(step: Step, session: Session) -> bool:
    return isinstance(step, GridMap) or (isinstance(step, RangeMap) and has_zero(step, session))


def others_kept(techniques: Items[Technique], first: int, invariant: str, session: Session) -> list[str] | None:
    """The contracts on which it rests that what the ``first`` techniques establish is kept; None where unproved."""
    contracts: list[str] = []
    restores = [k for k, t in enumerate(techniques) if k >= first and invariant in t.promises().restores]
    source = techniques[first - 1]
    if restores:
        for technique in techniques[first : restores[-1]]:
            if not technique.steps():
                promises = technique.promises()
                if invariant not in promises.keeps | promises.restores:
                    return None
                contracts.append(f"{technique} never loosens the {invariant} (its contract)")
        contracts.append(f"{techniques[restores[-1]]} restores the {invariant} (its contract)")
        first = restores[-1] + 1
    elif not source.steps():
        contracts.append(f"{source} establishes the {invariant} (its contract)")
    elif not _steps_keep(_after_selecting(source.steps()), invariant, session):
        return None
    for technique in techniques[first:]:
        if technique.steps():
            if not _steps_keep(technique.steps(), invariant, session):
                return None
        elif invariant in technique.promises().keeps:
            contracts.append(f"{technique} keeps the {invariant} (its contract)")
        else:
            return None
    return contracts


def _after_selecting(steps: Items[Step]) -> Items[Step]:
    """The steps after the first selection, which sets up the mask."""
    return steps[next((k + 1 for k, step in enumerate(steps) if isinstance(step, Selection)), 0) :]


def _steps_keep(steps: Items[Step], invariant: str, session: Session) -> bool:
    return invariant in ("mask", "n:m") and all(_keeps_zeros(step, session) for step in steps)


def _keeps_zeros(step: Step, session: Session) -> bool:
    """Whether a weight that is zero stays zero."""
    if isinstance(step, RangeMap):
        return keeps_zero(step, session)
    return isinstance(step, Selection) or MapFacts(step, session).zero
