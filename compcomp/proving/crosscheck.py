"""Ask a second solver what a proof took from the first. It may raise a proof's grade or overturn it, never make one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from compcomp.language.verdict import Grade, Query
from compcomp.proving.solver import Solver

SECONDS = 10.0
"""For all questions of one proof, where the caller sets no other budget."""


@dataclass(frozen=True)
class CrossCheck:
    """What the second solver made of a proof.

    ``conflict``: of which answer the two say opposite things, in words; "" where they never do. ``note``: why
    the proof has one solver behind it. ``solver``: the second one's name and version.
    """

    grade: Grade
    queries: tuple[Query, ...]
    conflict: str = ""
    note: str = ""
    solver: str = ""


def cross_check(queries: Iterable[Query], second: Solver | None, until: float) -> CrossCheck:
    """Ask again every question whose answer the proof may rest on: those that were answered as a proof needs.

    Questions answered otherwise were not used (a fact that does not hold, a reduction that was left out). The
    cheapest go first; one without an answer does not end the check, as a later one may still be contradicted.

    Args:
        until: when to stop, on the clock of ``time.monotonic``.
    """
    asked = list(queries)
    relied = sorted((i for i, q in enumerate(asked) if q.answer == q.expected), key=lambda i: asked[i].rlimit)
    if not relied:
        return CrossCheck(Grade.NO_SOLVER, tuple(asked))
    if second is None:
        return CrossCheck(Grade.ONE_SOLVER, tuple(asked), note="no second solver was asked")
    conflict, open_, name = "", list[str](), ""
    for i in relied:
        left = until - time.monotonic()
        if left <= 0:
            open_.append(f"{asked[i].name!r} (no time left)")
            continue
        answer = second.ask(asked[i].smtlib, left)
        asked[i] = replace(asked[i], second_answer=answer.answer, second_solver=answer.solver)
        name = answer.solver or name
        if answer.answer not in ("sat", "unsat"):
            open_.append(f"{asked[i].name!r} ({answer.cause or 'unknown'})")
        elif answer.answer != asked[i].answer and not conflict:
            first = asked[i].solver or "the first solver"
            other = answer.solver or "the second"
            conflict = f"{asked[i].name!r}: {first} answers {asked[i].answer}, {other} answers {answer.answer}"
    note = f"{name or 'the second solver'} did not answer {', '.join(open_)}" if open_ else ""
    grade = Grade.ONE_SOLVER if open_ or conflict else Grade.TWO_SOLVERS
    return CrossCheck(grade, tuple(asked), conflict, note, name)
