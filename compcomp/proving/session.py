"""Ask the queries of one proof and record them."""

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
"""Seconds for a lemma that only makes the main query easier."""

T = TypeVar("T")

Lemmas = dict[Hashable, tuple[Any, tuple[Query, ...]]]
"""Results of lemmas proved by one solver, with the queries they depend on, by a key that determines both."""


@dataclass
class Session:
    """Ask the queries of one proof, each once, and record them as text.

    Args:
        solver: the solver that answers them.
        until: the deadline of all queries, on the clock of ``time.monotonic``.
        lemmas: results of earlier sessions with the same solver. This session adds its own.
        queries: the queries asked so far, in order.
    """

    solver: Solver
    until: float
    lemmas: Lemmas = field(default_factory=dict)
    queries: list[Query] = field(default_factory=list)

    def anew(self) -> Session:
        """Begin the queries of another proof, with the same solver, deadline and lemmas."""
        return Session(self.solver, self.until, self.lemmas)

    def ask(self, name: str, assertions: list[Term], expected: str, most: float = float("inf")) -> Answer:
        """Ask if the assertions are satisfiable together, and record the query.

        Args:
            name: of the query, for the verdict and for certificates.
            assertions: z3 terms. Together they are the script that is sent.
            expected: the answer that a proof needs, "sat" or "unsat". The caller decides what any other answer means.
            most: seconds at most, out of the time until the deadline.

        Returns:
            The solver's answer, "unknown" once the deadline has passed.
        """
        text = script(assertions)
        left = min(most, self.until - time.monotonic())
        answer = self.solver.ask(text, left) if left > 0 else Answer("unknown", cause="deadline")
        self.queries.append(Query(name, text, expected, answer.answer, answer.solver, answer.rlimit))
        return answer

    def once(self, key: Hashable, lemma: Callable[[], T]) -> T:
        """Return the lemma's result, computed once for each ``key``, which must determine it.

        Its queries are written and sent to this solver once. Every proof that uses the lemma lists them nevertheless.
        The result is cached only if each of them was answered "sat" or "unsat".
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
        """Return the latest query whose answer is not the expected one, None if there is none.

        Args:
            name: consider only queries whose name starts with this.
            last: consider only the very last query.
        """
        asked = self.queries[-1:] if last else reversed(self.queries)
        return next((q for q in asked if q.answer != q.expected and q.name.startswith(name)), None)

    def holds(self, name: str, premises: list[Term], conclusion: Term, most: float = LEMMA_SECONDS) -> bool:
        """Return True if the premises are proved to entail the conclusion, within ``most`` seconds."""
        return self.ask(name, [*premises, z3.Not(conclusion)], "unsat", most).answer == "unsat"
