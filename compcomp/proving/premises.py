"""Check that some layer fits a claim and satisfies its conditions, and find the conditions that a proof needs."""

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
    """Return True if some shape fits all techniques of the claim, so that it is about at least one layer.

    Techniques may require rows and columns that are multiples of numbers (``row_unit``, ``unit``), columns that are a
    power of two, or rows that are a multiple of the columns with a least factor. If any shape satisfies all of these
    requirements, so does one of those that are tried.

    Without further requirements, the least multiples fit. A power of two is a multiple of the units only if these are
    powers of two, and then the least such power is tried. For a technique with any other requirement, shapes of these
    kinds are all that is looked at.
    """
    rows, columns = claim.row_unit, claim.unit
    if claim.fits((rows, columns)):
        return True
    wide = (columns * k for k in MULTIPLES)
    return any(claim.fits((tall * k, c)) for c in wide for tall in {rows, lcm(rows, c)} for k in MULTIPLES)


def within(claim: Claim, scope: Scope) -> Scope:
    """Return the scope, narrowed to the shape that a box of the claim allows.

    Raises:
        InputError: the scope has another shape than the box.
    """
    shape = next((c.shape for c in claim.given if isinstance(c, Box)), None)
    if shape is None:
        return scope
    if scope.kind == "any":
        return Scope.of(shape)
    if scope.shape != shape:
        raise InputError(f"scope {scope}", f"{shape[0]}x{shape[1]}, the shape of the box, or any", "scope")
    return scope


def unmet(claim: Claim, scope: Scope, session: Session) -> tuple[Status, str] | None:
    """Return None if some layer in the scope satisfies all conditions of the claim.

    Otherwise return the status of the claim's verdict and its cause. A layer is searched for first. If none is found
    and the scope has one shape, the solver decides.
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
    """Return a minimal set of the claim's conditions with which ``proves`` still proves it.

    None of them can be left out, but there may be other such sets. A condition that could not be left out within the
    time counts as needed.
    """
    kept = claim.given
    for condition in claim.given:
        fewer = tuple(c for c in kept if c != condition)
        if proves(replace(claim, given=fewer)):
            kept = fewer
    return kept
