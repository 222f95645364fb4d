"""The questions of one proof."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

import z3

from compcomp.language.verdict import Query
from compcomp.proving.solver import Answer, Solver
from compcomp.terms import Term

# The garbage collector may drop a term in a thread that is not proving.
z3.Z3_enable_concurrent_dec_ref(z3.main_ctx().ref())

LEMMA_SECONDS = 5.0
"""For a lemma that only makes the main question easier."""


def _renumbered(script: str) -> str:
    """The script with z3's local names, which depend on what was built before, numbered from 1."""
    numbers: dict[str, int] = {}
    return re.sub(r"(?<=[?$]x)\d+", lambda m: str(numbers.setdefault(m[0], len(numbers) + 1)), script)


@dataclass
class Session:
    """The questions of one proof: each is asked once, kept as text, and within one deadline (monotonic ``until``)."""

    solver: Solver
    until: float
    queries: list[Query] = field(default_factory=list)

    def ask(self, name: str, assertions: list[Term], expected: str, most: float = float("inf")) -> Answer:
        """Whether the assertions hold together. The caller decides what an unexpected answer means."""
        script = z3.Solver()
        script.add(*assertions)
        text = _renumbered(script.to_smt2())
        left = min(most, self.until - time.monotonic())
        answer = self.solver.ask(text, left) if left > 0 else Answer("unknown", cause="deadline")
        self.queries.append(Query(name, text, expected, answer.answer, answer.solver, answer.rlimit))
        return answer

    def holds(self, name: str, premises: list[Term], conclusion: Term) -> bool:
        """Whether the premises are proved to entail the conclusion."""
        return self.ask(name, [*premises, z3.Not(conclusion)], "unsat", LEMMA_SECONDS).answer == "unsat"
