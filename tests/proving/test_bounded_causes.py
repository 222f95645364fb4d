"""Why a claim at one shape stays unknown: the cause is that of the attempt that took the time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from compcomp.language.claim import Scope
from compcomp.language.text import parse_claim
from compcomp.proving.bounded import OUT_OF_TIME, bounded
from compcomp.proving.prove import default_prover
from compcomp.proving.session import Session
from compcomp.proving.solver import Answer

CLAIM = parse_claim("Wanda(sparsity=1/2) dominates Wanda(sparsity=1/4)", "weight_l2")


@dataclass
class Slow:
    """Answer as the usual solver does, but let all the time pass over the question of this number."""

    number: int
    asked: list[str] = field(default_factory=list)

    def ask(self, smtlib: str, seconds: float) -> Answer:
        self.asked.append(smtlib)
        if len(self.asked) == self.number:
            time.sleep(seconds)
            return Answer("unknown", cause="deadline")
        return default_prover().solver.ask(smtlib, seconds)


def test_the_cause_is_that_of_the_attempt_that_took_the_time() -> None:
    names = [
        query.name for query in bounded(CLAIM, Scope.of("1x4"), default_prover().session(time.monotonic() + 20)).queries
    ]
    first = names.index("claim") + 1
    slow = Slow(first)
    outcome = bounded(CLAIM, Scope.of("1x4"), Session(slow, time.monotonic() + 3))
    assert outcome.proof is None and outcome.cause == OUT_OF_TIME
    assert len(slow.asked) == first, "no other set of reductions is tried without time"


def test_a_lemma_that_takes_the_time_is_named() -> None:
    names = [
        query.name for query in bounded(CLAIM, Scope.of("1x4"), default_prover().session(time.monotonic() + 20)).queries
    ]
    outcome = bounded(CLAIM, Scope.of("1x4"), Session(Slow(names.index("zero layer") + 1), time.monotonic() + 3))
    assert outcome.proof is None and outcome.cause == "the zero layer could not be decided in time"
