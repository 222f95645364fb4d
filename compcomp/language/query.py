"""Define queries, the questions that proofs put to solvers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Query:
    """Record one question that a proof put to a solver, and the answers.

    Args:
        name: the name of the question.
        smtlib: the question as SMT-LIB text.
        expected: the answer that the proof needs.
        answer: the answer of the first solver.
        solver: the first solver.
        rlimit: the resource count that the first solver used.
        second_answer: the answer of the second solver, or "" if it was not asked.
        second_solver: the second solver.
        certificate: evidence for the answer that is checked without a solver (docs/certificates.md), or None.
    """

    name: str
    smtlib: str
    expected: str
    answer: str
    solver: str = ""
    rlimit: int = 0
    second_answer: str = ""
    second_solver: str = ""
    certificate: dict[str, Any] | None = field(default=None, repr=False, hash=False)
