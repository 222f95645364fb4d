"""Give a proved verdict certificates that need no solver, query by query."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import z3

from compcomp.checking.farkas import Invalid, Script, check_certificate
from compcomp.language.verdict import Grade, Query, Status, Verdict
from compcomp.proving.certificate.build import GaveUp, refute

SECONDS = 30.0
"""Seconds of CPU time for the certificate of one query."""

Certificates = dict[tuple[str, str], dict[str, Any]]
"""Certificates by script and answer. Most claims share the facts about their steps."""
MOST_KEPT = 2000
MISSING = "no certificate was found for "


def certified(verdict: Verdict, until: float, known: Certificates) -> Verdict:
    """Return the verdict with a certificate for every query that its proof relies on, as far as they are found in time.

    A proof gets the grade "certified" only if the checker accepts a certificate for every such query.

    Args:
        verdict: any other than a proved one is returned unchanged.
        until: when to stop, on the clock of ``time.monotonic``.
        known: certificates that were found before. New ones are added.
    """
    if verdict.status is not Status.PROVED or not any(q.answer == q.expected for q in verdict.queries):
        return verdict
    queries, missing = list[Query](), list[str]()
    for query in verdict.queries:
        if query.answer == query.expected and query.certificate is None:
            found = certificate_for(query.smtlib, query.expected, until, known)
            query = replace(query, certificate=found)
            if found is None:
                missing.append(query.name)
        queries.append(query)
    notes = tuple(note for note in verdict.notes if not note.startswith(MISSING))
    if missing:
        note = f"{MISSING}{', '.join(dict.fromkeys(missing))}"
        return replace(verdict, queries=tuple(queries), notes=(*notes, note))
    return replace(verdict, queries=tuple(queries), notes=notes, grade=Grade.CERTIFIED)


def certificate_for(smtlib: str, expected: str, until: float, known: Certificates) -> dict[str, Any] | None:
    """Return a certificate that the checker accepts for this answer, or None."""
    if (found := known.get((smtlib, expected))) is not None:
        return found
    if time.monotonic() >= until:
        return None
    try:
        content: dict[str, Any]
        if expected == "sat":
            content = {"model": _model(smtlib, min(until, time.monotonic() + SECONDS))}
        else:
            content = {"refutation": refute(Script(smtlib), until, SECONDS)}
        digest = hashlib.sha256(smtlib.encode()).hexdigest()
        certificate = {"format": 1, "script_sha256": digest, **content}
        if check_certificate(smtlib, certificate) != expected:
            return None
    except (Invalid, GaveUp, z3.Z3Exception):
        return None
    if len(known) >= MOST_KEPT:
        known.clear()
    known[smtlib, expected] = certificate
    return certificate


def _model(smtlib: str, until: float) -> dict[str, Any]:
    """Return values that satisfy the script, as exact text.

    Raises:
        GaveUp: there is no model, or its values are not rational.
    """
    context = z3.Context()
    solver = z3.SimpleSolver(ctx=context)
    solver.set("timeout", max(1, int(1000 * (until - time.monotonic()))))
    solver.from_string(smtlib)
    if solver.check() != z3.sat:
        raise GaveUp("no model")
    model, values = solver.model(), dict[str, Any]()
    for name, sort in Script(smtlib).sorts.items():
        make = {"Bool": z3.Bool, "Int": z3.Int, "Real": z3.Real}[sort]
        value = model.eval(make(name, context), model_completion=True)
        if sort == "Bool":
            values[name] = bool(z3.is_true(value))
        elif isinstance(value, z3.IntNumRef | z3.RatNumRef):
            values[name] = str(value.as_long() if isinstance(value, z3.IntNumRef) else value.as_fraction())
        else:
            raise GaveUp(f"the value of {name} is not rational")
    return values
