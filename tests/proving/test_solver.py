"""Solver processes that crash, hang or talk nonsense never lead to a proof."""

from __future__ import annotations

import sys
import time

import pytest

from compcomp.language.claim import dominates
from compcomp.language.verdict import Status
from compcomp.proving.prove import Prover, default_prover, prove
from compcomp.proving.solver import Answer, Portfolio, Z3Process
from compcomp.techniques import AbsMax, Magnitude

UNSAT = "(declare-const x Real)(assert (< x 0))(assert (> x 0))(check-sat)"
SAT = "(declare-const x Real)(assert (> (* 2 x) 3))(check-sat)"
CLAIM = dominates(Magnitude("1/2") >> AbsMax(4), AbsMax(4) >> Magnitude("1/2"), loss="weight_l1")


def stub(body: str) -> Z3Process:
    return Z3Process([sys.executable, "-c", f'import sys, time\nprint(\'{{"ready": "stub"}}\', flush=True)\n{body}'])


def test_the_real_one() -> None:
    solver = Z3Process()
    assert solver.ask(UNSAT, 20).answer == "unsat"
    answer = solver.ask(SAT, 20)
    assert (answer.answer, list(answer.model)) == ("sat", ["x"])
    assert answer.rlimit > 0
    assert solver.version
    solver.close()


def test_malformed_text_is_unknown() -> None:
    assert Z3Process().ask("(assert", 20).answer == "unknown"


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(1)",
        "sys.stdin.readline(); sys.exit(1)",
        "sys.stdin.readline(); print('nonsense', flush=True)",
        "sys.stdin.readline(); print('[1]', flush=True)",
        'sys.stdin.readline(); print(\'{"answer": "proved"}\', flush=True)',
        'sys.stdin.readline(); print(\'{"answer": "unknown"}\', flush=True)',
        "sys.stdin.readline(); print('{}', flush=True)",
    ],
)
def test_bad_workers_answer_unknown(body: str) -> None:
    solver = stub(body)
    assert solver.ask(UNSAT, 5).answer == "unknown"
    verdict = prove(CLAIM, (1, 4), timeout=5, stages=("bounded",), solver=stub(body))
    assert verdict.status is Status.UNKNOWN
    assert verdict.cause


def test_a_hanging_worker_is_ended_at_the_deadline() -> None:
    solver = stub("time.sleep(60)")
    start = time.monotonic()
    answer = solver.ask(UNSAT, 0.5)
    assert (answer.answer, answer.cause) == ("unknown", "deadline")
    assert time.monotonic() - start < 10
    solver.close()


def test_a_missing_program_is_unknown() -> None:
    answer = Z3Process(["/does/not/exist"]).ask(UNSAT, 5)
    assert answer.answer == "unknown"
    assert "failed" in answer.cause


def test_a_killed_worker_is_started_again() -> None:
    solver = Z3Process()
    assert solver.ask(UNSAT, 20).answer == "unsat"
    assert solver._process is not None
    solver._process.kill()
    solver._process.wait()
    assert solver.ask(UNSAT, 20).answer == "unsat"
    solver.close()


def test_late_answers_are_not_taken_for_the_next_question() -> None:
    slow = stub(
        "import json\n"
        "for line in sys.stdin:\n"
        "    time.sleep(1.0)\n"
        "    print(json.dumps({'answer': 'unsat'}), flush=True)\n"
    )
    assert slow.ask(SAT, 0.3).answer == "unknown"
    assert slow.ask(SAT, 0.3).answer == "unknown"
    slow.close()


class Always:
    """Answers the same whatever the question."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def ask(self, smtlib: str, deadline: float) -> Answer:
        return Answer(self.answer)


@pytest.mark.parametrize("answer", ["sat", "unknown"])
def test_sat_or_unknown_to_everything_proves_nothing(answer: str) -> None:
    verdict = prove(CLAIM, (1, 4), timeout=5, stages=("rule", "bounded"), solver=Always(answer))
    assert not verdict.proved


def test_unsat_to_everything_is_caught_by_the_premises() -> None:
    """A solver that calls everything contradictory calls the premises so too."""
    verdict = prove(CLAIM, (1, 4), timeout=5, stages=("rule", "bounded"), solver=Always("unsat"))
    assert not verdict.proved


def test_a_portfolio_goes_on_after_unknown() -> None:
    assert Portfolio(Always("unknown"), default_prover().solver).ask(UNSAT, 20).answer == "unsat"
    assert Portfolio().ask(UNSAT, 20).answer == "unknown"


class Counting:
    """The real solver, and how many scripts it was asked."""

    def __init__(self, lie: str = "") -> None:
        self.asked, self.lie = 0, lie

    def ask(self, smtlib: str, deadline: float) -> Answer:
        self.asked += 1
        return Answer(self.lie) if self.lie else default_prover().solver.ask(smtlib, deadline)


def test_a_theorem_is_asked_once_for_all_sparsities_and_bits() -> None:
    solver = Counting()
    prover = Prover(solver, second=None)
    first = prover.prove(CLAIM)
    asked = solver.asked
    other = dominates(Magnitude("3/4") >> AbsMax(8), AbsMax(8) >> Magnitude("3/4"), loss="weight_l1")
    second = prover.prove(other, "1x8")
    assert first.proved and second.proved and asked > 0
    assert solver.asked == asked
    assert [q.smtlib for q in second.queries] == [q.smtlib for q in first.queries], "a proof lists all it depends on"


def test_what_tells_claims_apart_is_asked_again() -> None:
    prover = Prover(Counting(), second=None)
    assert prover.prove(CLAIM).proved
    wrong = dominates(AbsMax(4) >> Magnitude("1/2"), Magnitude("1/2") >> AbsMax(4), loss="weight_l1")
    fewer = dominates(Magnitude("1/2"), Magnitude("1/4"), loss="weight_l1")
    finer = dominates(AbsMax(8), AbsMax(4), loss="weight_l1")
    assert prover.prove(dominates(AbsMax(7), AbsMax(4), loss="weight_l1")).proved
    for claim in (wrong, fewer, finer):
        assert not prover.prove(claim, stages=("rule",)).proved


def test_lemmas_of_one_prover_serve_no_other() -> None:
    assert Prover(Counting(), second=None).prove(CLAIM).proved
    silent = Counting("unknown")
    prover = Prover(silent, second=None)
    assert not prover.prove(CLAIM, stages=("rule",)).proved
    silent.lie = ""
    assert prover.prove(CLAIM, stages=("rule",)).proved, "no unknown is kept"
