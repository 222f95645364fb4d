"""An executor, a store and a lost worker change where a claim is decided, never what is decided."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compcomp.cli import main
from compcomp.language.claim import Claim, Scope, dominates, equal
from compcomp.language.parameters import ANY as ANY_
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.ask import Asker, ClaimJob, job_of
from compcomp.ordering.search import search
from compcomp.ordering.store import SECONDS, STAGES, Store
from compcomp.proving.prove import prove
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude
from tests.ordering.fakes import Prover, by_rules, verdict

ANY = Scope.of("any")
P, Q, D = Magnitude("1/2"), AbsMax(bits=4), LeastSquaresDistill()
CLAIMS = [
    dominates(P >> D, D >> P, loss="output_l2"),
    dominates(D >> P, P >> D, loss="output_l2"),
    equal(D >> D, D),
    equal(P >> Q, Q >> P),
]


def outcome(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [{k: v for k, v in verdict.to_json().items() if k != "work"} for verdict in verdicts]


@pytest.fixture(scope="module")
def here() -> list[dict[str, Any]]:
    found = outcome(Asker(by_rules).ask(CLAIMS, ANY))
    assert [one["status"] for one in found] == ["PROVED", "UNKNOWN", "PROVED", "UNKNOWN"]
    return found


def test_threads_and_processes_decide_alike(here: list[dict[str, Any]]) -> None:
    with ThreadPoolExecutor(2) as threads:
        assert outcome(Asker(by_rules, executor=threads).ask(CLAIMS, ANY)) == here
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert outcome(Asker(by_rules, executor=processes).ask(CLAIMS, ANY)) == here


class Broken(Executor):
    """Loses every job, in one of two ways."""

    def __init__(self, late: bool) -> None:
        self.late = late

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.late:
            raise ValueError("the client is closed")  # dask.distributed's own error is none of RuntimeError
        future: Future[Any] = Future()
        future.set_exception(OSError("the worker is gone"))
        return future


@pytest.mark.parametrize("late", [False, True])
def test_a_lost_job_is_done_here(here: list[dict[str, Any]], late: bool) -> None:
    assert outcome(Asker(by_rules, executor=Broken(late)).ask(CLAIMS, ANY)) == here


def test_a_job_is_plain_data() -> None:
    job = job_of(CLAIMS[0], ANY, {"stages": ("rule",)})
    assert job is not None and json.loads(json.dumps(job.to_json()))["claim"] == str(CLAIMS[0])
    assert ["compcomp.encodings.magnitude", "Magnitude", "compcomp.kernels.magnitude"] in job.register
    assert ClaimJob.from_json(job.to_json()) == job


@dataclass(frozen=True)
class Unregistered(Technique):
    """A technique that text does not name."""


def test_a_technique_of_the_users_own_is_decided_here() -> None:
    prover = Prover(lambda claim: Status.PROVED)
    with ThreadPoolExecutor(1) as threads:
        (found,) = Asker(prover, executor=threads).ask([equal(Unregistered(), Unregistered())], ANY)
    assert found.proved


def test_each_claim_is_asked_once() -> None:
    prover = Prover(lambda claim: Status.UNKNOWN)
    asker = Asker(prover)
    asker.ask([CLAIMS[0], CLAIMS[0], CLAIMS[1]], ANY)
    asker.ask([CLAIMS[1]], ANY)
    asker.ask([CLAIMS[1]], Scope.of("2x2"))
    assert len(prover.asked) == asker.asked == len(asker.verdicts) == 3


def test_a_prover_that_fails_leaves_the_claim_unknown() -> None:
    def failing(claim: Claim, scope: Scope, options: dict[str, Any]) -> Verdict:
        raise ZeroDivisionError("what\nnow")

    (found,) = Asker(failing).ask([CLAIMS[0]], ANY)
    assert found.status is Status.UNKNOWN and found.cause == "the prover failed: ZeroDivisionError: what now"


def test_a_second_run_asks_only_what_is_not_known(tmp_path: Path) -> None:
    store, first = Store(tmp_path / "plan.db"), Prover(lambda c: Status.REFUTED if c.kind == "equal" else Status.PROVED)
    before = Asker(first, store=store).ask(CLAIMS, ANY)
    second = Prover(lambda claim: Status.UNKNOWN)
    asker = Asker(second, store=Store(tmp_path / "plan.db"))
    assert outcome(asker.ask([*CLAIMS, dominates(P, Q)], ANY))[:-1] == outcome(before)
    assert (asker.asked, asker.reused, len(second.asked)) == (1, 4, 1)


def test_an_unknown_is_asked_again_only_with_more_time_or_other_stages(tmp_path: Path) -> None:
    store = Store(tmp_path / "plan.db")
    hard = {"timeout": 10.0, "stages": ("rule", "search")}
    Asker(Prover(lambda claim: Status.UNKNOWN), store=store).ask(CLAIMS, ANY, hard)
    for options in (hard, {**hard, "timeout": 2}, {**hard, "stages": ("search", "rule")}):
        asker = Asker(unasked, store=store)
        assert all(v.status is Status.UNKNOWN for v in asker.ask(CLAIMS, ANY, options))
        assert (asker.asked, asker.reused) == (0, 4)
    for more in (
        {**hard, "timeout": 11},
        {**hard, "stages": ("rule",)},
        {"stages": hard["stages"]},
        {},
        {**hard, "k": 1},
    ):
        again = Prover(lambda claim: Status.DISAGREE)
        Asker(again, store=store).ask(CLAIMS, ANY, more)
        assert len(again.asked) == 4
    again = Prover(lambda claim: Status.PROVED)
    Asker(again, store=store).ask(CLAIMS, Scope.of("1x2"), hard)  # it says nothing of a shape
    assert len(again.asked) == 4


def test_an_unknown_of_less_time_does_not_replace_one_of_more(tmp_path: Path) -> None:
    store = Store(tmp_path / "plan.db")
    for timeout in (10.0, 1.0):
        Asker(Prover(lambda claim: Status.UNKNOWN), store=store).learn(
            verdict(CLAIMS[0], Status.UNKNOWN), {"timeout": timeout}
        )
    assert Asker(unasked, store=store).recall(CLAIMS[0], ANY, {"timeout": 10}) is not None
    store.put(verdict(CLAIMS[0], Status.PROVED))
    store.put(verdict(CLAIMS[0], Status.UNKNOWN), {"timeout": 99})
    assert Asker(unasked, store=store).ask([CLAIMS[0]], ANY)[0].proved


def test_options_left_out_are_those_of_the_prover() -> None:
    defaults = inspect.signature(prove).parameters
    assert (defaults["timeout"].default, defaults["stages"].default) == (SECONDS, STAGES)


def test_a_failure_of_the_prover_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "plan.db")
    Asker(unasked, store=store).ask(CLAIMS, ANY)
    assert len(store) == 0


def unasked(claim: Claim, scope: Scope, options: dict[str, Any]) -> Verdict:
    raise AssertionError(f"asked {claim}")


def test_what_follows_is_not_asked(tmp_path: Path) -> None:
    """From this run's verdicts, and from the store's, where an unknown stands last."""
    small, general = (
        dominates(P >> Q, Q >> P),
        dominates(Magnitude(ANY_) >> AbsMax(ANY_), AbsMax(ANY_) >> Magnitude(ANY_)),
    )
    store = Store(tmp_path / "plan.db")
    asker = Asker(Prover(lambda claim: Status.UNKNOWN if claim == small else Status.PROVED), store=store)
    assert asker.ask([small], ANY)[0].status is Status.UNKNOWN
    asker.ask([general], ANY)
    (found,) = asker.ask([small], Scope.of("2x3"))
    assert found.proved and found.claim == small and "any parameter" in found.notes[-1]
    assert (asker.asked, asker.reused) == (2, 1)
    later = Asker(unasked, store=Store(tmp_path / "plan.db"))
    assert [v.status for v in later.ask([small, general], ANY)] == [Status.PROVED] * 2
    assert [v.proved for v in later.ask([small, equal(Q, Q)][:1], Scope.of("2x3"))] == [True]
    assert (later.asked, later.reused) == (0, 3)


def test_laws_know_techniques_that_no_text_names(tmp_path: Path) -> None:
    asker = Asker(Prover(lambda claim: Status.PROVED), store=Store(tmp_path / "plan.db"))
    asker.ask([equal(Unregistered(), P)], ANY)
    asker.prover = unasked
    assert asker.ask([equal(P, Unregistered()), dominates(P, Unregistered())], ANY)[1].proved
    again = Asker(unasked, store=Store(tmp_path / "plan.db"))
    assert again.ask([equal(Unregistered(), P)], ANY)[0].proved


@pytest.mark.parametrize("loss", ["output_l2", "weight_l1"])
def test_a_second_search_asks_no_solver(tmp_path: Path, loss: str) -> None:
    techniques = [Magnitude("1/2", pattern="2:4"), AbsMax(bits=3, group=4), D]
    first = search(techniques, loss, prover=by_rules, store=Store(tmp_path / "plan.db"))
    second = search(techniques, loss, prover=unasked, store=Store(tmp_path / "plan.db"))
    assert first.claims["asked"] > 0 == second.claims["asked"] and first.claims["undecided"] > 0
    assert (second.order, second.orders, second.measurements) == (first.order, first.orders, first.measurements)
    assert [str(v) for v in second.verdicts] == [str(v) for v in first.verdicts]


def test_answers_are_reported_as_they_come() -> None:
    reported = list[Verdict]()
    Asker(lambda c, s, o: verdict(c, Status.UNKNOWN)).ask(CLAIMS, ANY, answered=reported.append)
    assert [v.claim for v in reported] == CLAIMS


def test_prove_from_a_shell_reuses_what_is_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(claim: str, *more: str) -> tuple[Any, dict[str, Any]]:
        monkeypatch.setattr(
            sys, "argv", ["compcomp", "prove", claim, "--json", "--store", str(tmp_path / "s.db"), *more]
        )
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, json.loads(capsys.readouterr().out or "{}")

    assert run("LeastSquaresDistill() equals LeastSquaresDistill()")[0] == 0
    assert run("AbsMax(bits=4) >> AbsMax(bits=4) equals AbsMax(bits=4)", "--scope", "2x2")[0] == 0
    status, found = run("AbsMax(bits=4) equals AbsMax(bits=3)")
    assert status == 1 and found["witness"] is not None
    monkeypatch.setattr("compcomp.proving.prove.prove", lambda *_, **__: pytest.fail("asked"))
    assert run("AbsMax(bits=4) equals AbsMax(bits=3)") == (1, found)
    assert run("AbsMax(bits=3) equals AbsMax(bits=4)")[0] == 1
    status, found = run("AbsMax(bits=4) dominates AbsMax(bits=4) >> AbsMax(bits=4)", "--loss", "output_l2")
    assert (status, found["reach"]) == (0, "any shape") and "computes the same loses the same" in found["notes"][-1]
    (tmp_path / "s.db").write_text("no database, but long enough to be looked at " * 50)
    assert run("AbsMax(bits=4) equals AbsMax(bits=3)")[0] == 2
