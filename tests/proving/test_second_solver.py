"""A second solver may raise a proof's grade or overturn it. Lying, silent or broken, it never makes one."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import pytest

import compcomp.techniques  # noqa: F401
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Grade, Status, Verdict
from compcomp.proving import cvc5_worker
from compcomp.proving.crosscheck import cross_check
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.session import Session
from compcomp.proving.solver import RLIMIT, Answer, Cvc5Process, Remembering, Solver
from compcomp.terms import Term
from tests.amount import spread
from tests.claims import CLAIMS

PROVED = [row for row in CLAIMS if row[3] == "PROVED"]
FALSE = [row for row in CLAIMS if row[3] == "REFUTED" and "dominates" in row[0] and row[1].startswith("weight")]
TRUE = ("Magnitude(sparsity=1/2) >> AbsMax(bits=4) dominates AbsMax(bits=4) >> Magnitude(sparsity=1/2)", "weight_l1")


def real() -> Solver:
    second = default_prover().second
    assert second is not None, "cvc5 belongs to the test extra"
    return second


def true_claim(second: Solver | None, scope: str = "any", **options: Any) -> Verdict:
    return prove(parse_claim(*TRUE), scope, timeout=30, second=second, **options)


@pytest.mark.parametrize(("text", "loss", "scope", "expected"), spread(PROVED, 60))
def test_two_solvers_agree(text: str, loss: str, scope: str, expected: str) -> None:
    verdict = prove(parse_claim(text, loss), scope, timeout=30)
    print(f"{verdict.grade}: {text}, {loss}, {scope} {' '.join(verdict.notes)}")
    assert verdict.proved, verdict  # never DISAGREE
    assert verdict.grade is not Grade.ONE_SOLVER or verdict.notes
    for query in verdict.queries:
        assert query.second_answer in ("", "unknown", query.answer)
    if verdict.grade is Grade.TWO_SOLVERS:
        assert all(q.second_answer == q.answer for q in verdict.queries if q.answer == q.expected)
        assert verdict.versions["second solver"].startswith("cvc5 1.")
        assert verdict.versions["solver"].startswith("z3 ")


def test_the_first_procedure_for_products_is_limited_by_its_work() -> None:
    """With a limit in seconds a busy machine leaves this query to the second procedure, which takes 8 times as long."""
    claim = parse_claim("AbsMax(bits=2) dominates QuantizationAwareTraining(bits=2)")
    query = prove(claim, "1x3", second=None).queries[-1]
    found = cvc5_worker.answer({"smtlib": query.smtlib, "rlimit": RLIMIT, "milliseconds": 600_000})
    assert (query.name, found["answer"], found["logic"]) == ("claim", "unsat", "QF_NRA")
    assert 100_000 < found["rlimit"] < cvc5_worker.LEMMAS_RLIMIT, "the first procedure alone, for half a second"


class Liar:
    """A corrupt first solver: it knows what each question is for, and says what a proof needs.

    Only "unsat" it never denies, so that the proof goes the way of a true one.
    """

    def __init__(self) -> None:
        self.wanted = ""

    def ask(self, smtlib: str, deadline: float) -> Answer:
        honest = default_prover().solver.ask(smtlib, min(deadline, 5.0))
        return honest if honest.answer == "unsat" else Answer(self.wanted, solver="liar")


@pytest.mark.parametrize(("text", "loss", "scope", "expected"), FALSE)
def test_a_lying_first_solver_is_overruled(
    text: str, loss: str, scope: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the search, which would refute these claims before any solver is asked."""
    liar, ask = Liar(), Session.ask

    def telling(self: Session, name: str, assertions: list[Term], expected: str, *most: float) -> Answer:
        liar.wanted = expected
        return ask(self, name, assertions, expected, *most)

    monkeypatch.setattr(Session, "ask", telling)
    claim = parse_claim(text, loss)
    for stages in (("rule", "bounded"), ("bounded",)):
        alone = prove(claim, scope, timeout=20, stages=stages, solver=liar, second=None, explain=False)
        verdict = prove(claim, scope, timeout=20, stages=stages, solver=liar, second=real(), explain=False)
        assert not verdict.proved, verdict
        if alone.proved:  # it took the second one to see it
            assert verdict.status is Status.DISAGREE
            assert "answers" in verdict.cause


def test_every_false_claim_list_has_rows() -> None:
    assert len(FALSE) >= 5 and len(PROVED) >= 20


class Says:
    """Answers the same whatever the question."""

    def __init__(self, answer: str, cause: str = "") -> None:
        self.answer, self.cause, self.count = answer, cause, 0

    def ask(self, smtlib: str, deadline: float) -> Answer:
        self.count += 1
        return Answer(self.answer, cause=self.cause, solver="stub 1")


@pytest.mark.parametrize("answer", ["sat", "unsat"])
def test_a_lying_second_solver_is_a_disagreement(answer: str) -> None:
    """A proof has questions of both kinds, so one answer to all of them contradicts some."""
    verdict = true_claim(Says(answer))
    assert verdict.status is Status.DISAGREE
    assert "stub 1 answers" in verdict.cause
    assert verdict.grade is None


@pytest.mark.parametrize("second", [Says("unknown", "gave up"), Says("proved"), Says("")])
def test_a_second_solver_without_an_answer_leaves_one(second: Says) -> None:
    verdict = true_claim(second)
    assert (verdict.status, verdict.grade) == (Status.PROVED, Grade.ONE_SOLVER)
    assert "did not answer" in verdict.notes[0]


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(1)",
        "sys.stdin.readline(); sys.exit(1)",
        "sys.stdin.readline(); print('nonsense', flush=True)",
        "time.sleep(60)",
    ],
)
def test_a_broken_second_solver_leaves_one(body: str) -> None:
    command = [sys.executable, "-c", f'import sys, time\nprint(\'{{"ready": "stub"}}\', flush=True)\n{body}']
    second = Cvc5Process(command)
    verdict = true_claim(second, second_seconds=1.0)
    second.close()
    assert (verdict.status, verdict.grade) == (Status.PROVED, Grade.ONE_SOLVER)
    assert verdict.notes


def test_no_second_solver_leaves_one() -> None:
    verdict = true_claim(None)
    assert (verdict.status, verdict.grade) == (Status.PROVED, Grade.ONE_SOLVER)
    assert verdict.notes == ("no second solver was asked",)
    assert all(not q.second_answer for q in verdict.queries)


def test_no_time_leaves_one() -> None:
    second = Says("unsat")
    verdict = true_claim(second, second_seconds=0.0)
    assert (verdict.status, verdict.grade, second.count) == (Status.PROVED, Grade.ONE_SOLVER, 0)


def test_the_second_solver_alone_proves_nothing() -> None:
    verdict = prove(parse_claim(*TRUE), "1x4", timeout=5, stages=("rule", "bounded"), solver=Says("unknown"))
    assert verdict.status is Status.UNKNOWN


def test_an_answer_that_was_not_used_is_not_asked_again() -> None:
    queries = prove(parse_claim(*TRUE), "1x3", timeout=30, stages=("bounded",), second=None, explain=False).queries
    checked = cross_check(queries, Says("unknown"), time.monotonic() + 10).queries
    assert [bool(q.second_answer) for q in checked] == [q.answer == q.expected for q in queries]


def test_open_questions_are_asked_again_only_with_more_time() -> None:
    second = Says("unknown")
    asking = Remembering(second, patient=False)
    for deadline in (1.0, 0.5, 1.0, 2.0):
        assert asking.ask("(check-sat)", deadline).answer == "unknown"
    assert second.count == 2


def test_the_texts_are_read_by_both() -> None:
    """Ties taken adversely once used a count that only z3 can read."""
    text = "Magnitude(sparsity=1/2, ties='any') dominates Wanda(sparsity=1/2, ties='any')"
    verdict = prove(parse_claim(text, "weight_l1"), "1x4", timeout=30, stages=("bounded",))
    assert verdict.proved and verdict.grade is Grade.TWO_SOLVERS, verdict.notes
    assert not re.search("pbeq|at-most|at-least|pble", verdict.to_smtlib())
