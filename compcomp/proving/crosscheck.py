"""Ask a second solver the queries that a proof depends on. It may raise a proof's grade or overturn it.

It never makes a proof.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from compcomp.language.verdict import Grade, Query
from compcomp.proving.solver import Solver

SECONDS = 10.0
"""Seconds for all queries of one proof if the caller sets no other budget."""


@dataclass(frozen=True)
class CrossCheck:
    """The result of the second solver's check of a proof.

    Args:
        grade: of the proof.
        queries: with the second solver's answers.
        conflict: the query on which the two solvers contradict each other, as text. "" if there is none.
        note: why the proof depends on one solver.
        solver: the second solver's name and version.
    """

    grade: Grade
    queries: tuple[Query, ...]
    conflict: str = ""
    note: str = ""
    solver: str = ""


def cross_check(queries: Iterable[Query], second: Solver | None, until: float) -> CrossCheck:
    """Ask again every query that the proof may depend on: those with the answer that a proof needs.

    Queries with other answers were not used (a fact that does not hold, a reduction that was left out). The cheapest go
    first. One without an answer does not end the check, because a later one may still be contradicted.

    Args:
        queries: of the proof.
        second: the solver to ask, None for no check.
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
