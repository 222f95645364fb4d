"""What a claim speaks of: whether any layer fits it and meets its conditions, and which of them a proof needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import lcm

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.conditions import Box, Condition
from compcomp.language.verdict import Status
from compcomp.proving.bounded import satisfiable
from compcomp.proving.fitting import example
from compcomp.proving.session import Session

EXAMPLE_SECONDS = 2.0


POWERS = tuple(2**k for k in range(15))
MULTIPLES = tuple(sorted({*range(1, 33), *POWERS}))


def fits_some_layer(claim: Claim) -> bool:
    """Whether the claim speaks of any layer: whether some shape fits all of its techniques.

    Techniques ask for rows and columns that are multiples of numbers (``row_unit``, ``unit``), for columns that are a
    power of two, or for rows that are a multiple of columns, some times at least. If any shape meets all of these, so
    does one of those that are tried: the least multiples where they do not say more, a power of two is a multiple of
    the others only where these are powers of two, and the least is one of those then. Of a technique that asks for
    anything else, shapes of these kinds are all that is looked at.
    """
    rows, columns = claim.row_unit, claim.unit
    if claim.fits((rows, columns)):
        return True
    wide = (columns * k for k in MULTIPLES)
    return any(claim.fits((tall * k, c)) for c in wide for tall in {rows, lcm(rows, c)} for k in MULTIPLES)


def within(claim: Claim, scope: Scope) -> Scope:
    """The scope, narrowed to the shape that a box of the claim allows; InputError where they do not fit."""
    shape = next((c.shape for c in claim.given if isinstance(c, Box)), None)
    if shape is None:
        return scope
    if scope.kind == "any":
        return Scope.of(shape)
    if scope.shape != shape:
        raise InputError(f"scope {scope}", f"{shape[0]}x{shape[1]}, the shape of the box, or any", "scope")
    return scope


def unmet(claim: Claim, scope: Scope, session: Session) -> tuple[Status, str] | None:
    """None where some layer in the scope meets all conditions of the claim; else what the claim's verdict is, and why.

    A layer is looked for first; where none is found, at one shape the solver decides.
    """
    if not claim.given:
        return None
    instances = claim.instances()
    for instance in instances:
        if example(instance, scope, min(session.until, time.monotonic() + EXAMPLE_SECONDS)) is not None:
            return None
    if scope.shape is None:
        return Status.VACUOUS, "no layer was found on which the conditions hold"
    answer = satisfiable(instances[0], scope, session)
    if answer == "sat":
        return None
    if answer == "unsat":
        return Status.VACUOUS, "no layer satisfies the conditions"
    return Status.UNKNOWN, "the conditions could not be shown to be satisfiable"


def needed(claim: Claim, proves: Callable[[Claim], bool]) -> tuple[Condition, ...]:
    """A smallest set of the claim's conditions with which ``proves`` still proves it: none of them can be left out.

    Not the only such set, perhaps. A condition that could not be left out within the time counts as needed.
    """
    kept = claim.given
    for condition in claim.given:
        fewer = tuple(c for c in kept if c != condition)
        if proves(replace(claim, given=fewer)):
            kept = fewer
    return kept
