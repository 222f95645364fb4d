"""The questions of one proof."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import z3

from compcomp.language.query import Query
from compcomp.proving.script import script
from compcomp.proving.solver import Answer, Solver
from compcomp.terms import Term

LEMMA_SECONDS = 5.0
"""For a lemma that only makes the main question easier."""

T = TypeVar("T")

Lemmas = dict[Hashable, tuple[Any, tuple[Query, ...]]]
"""Results of lemmas by one solver, and the queries they rest on, by a key that decides both."""


@dataclass
class Session:
    """The queries of one proof: each is asked once and kept as text.

    Args:
        solver: who answers them.
        until: the deadline of all of them, on the clock of ``time.monotonic``.
        lemmas: results that earlier sessions with the same solver found, and where this one keeps its own.
    """

    solver: Solver
    until: float
    lemmas: Lemmas = field(default_factory=dict)
    queries: list[Query] = field(default_factory=list)

    def ask(self, name: str, assertions: list[Term], expected: str, most: float = float("inf")) -> Answer:
        """Whether the assertions hold together. The caller decides what an unexpected answer means."""
        text = script(assertions)
        left = min(most, self.until - time.monotonic())
        answer = self.solver.ask(text, left) if left > 0 else Answer("unknown", cause="deadline")
        self.queries.append(Query(name, text, expected, answer.answer, answer.solver, answer.rlimit))
        return answer

    def once(self, key: Hashable, lemma: Callable[[], T]) -> T:
        """The lemma's result, which ``key`` decides: its questions are written and put to this solver once.

        Every proof that uses it lists them all the same. Kept only where each of them got a clear answer.
        """
        known = self.lemmas
        if key not in known:
            first = len(self.queries)
            result, asked = lemma(), tuple(self.queries[first:])
            if any(query.answer not in ("sat", "unsat") for query in asked):
                return result
            known[key] = result, asked
        else:
            self.queries += known[key][1]
        found: T = known[key][0]
        return found

    def missed(self, name: str = "", last: bool = False) -> Query | None:
        """Return the latest question whose answer is not the expected one, of this name if one is given.

        last: only if nothing was asked after it.
        """
        asked = self.queries[-1:] if last else reversed(self.queries)
        return next((q for q in asked if q.answer != q.expected and q.name.startswith(name)), None)

    def holds(self, name: str, premises: list[Term], conclusion: Term, most: float = LEMMA_SECONDS) -> bool:
        """Whether the premises are proved to entail the conclusion, in so many seconds at the most."""
        return self.ask(name, [*premises, z3.Not(conclusion)], "unsat", most).answer == "unsat"
