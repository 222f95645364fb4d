"""Verdicts come back whole, and only where they still hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope, dominates, equal, keeps
from compcomp.language.verdict import Grade, Query, Status, Trace, Verdict, Witness
from compcomp.ordering import store as module
from compcomp.ordering.store import Store, verdict_from_json, verdict_to_json
from compcomp.techniques import AbsMax, Magnitude

P, Q = Magnitude("1/2", ties="all"), AbsMax(bits=4, group=4)
ROOT = Path(__file__).resolve().parents[2]


def refuted() -> Verdict:
    weight = ((Fraction(13, 14), Fraction(-1)), (Fraction(0), Fraction(10**20, 3)))
    changed = ((Fraction(2, 7),), (Fraction(0),))
    traces = (
        Trace("left", (("dense", weight), ("P", weight)), Fraction(7, 3), 2.3333333333333335, (None, changed)),
        Trace("right", (("dense", weight),), None, None),
    )
    return Verdict(
        dominates(P >> Q, Q >> P, loss="output_l2"),
        Scope.of("2x2"),
        Status.REFUTED,
        reach="shape 2 x 2",
        assumptions=("one", "two"),
        grade=Grade.TWO_SOLVERS,
        stage="search",
        cause="",
        reason="left loses more",
        witness=Witness(weight, ((Fraction(1),), (Fraction(-1, 2),)), 4, traces, "left loses more"),
        queries=(Query("q", "(assert true)", "unsat", "unsat", "z3 5", 12),),
        work={"rlimit": 3.0, "seconds": 0.25},
        versions={"compcomp": "0", "solver": "z3"},
    )


def plain(claim: Claim, status: Status) -> Verdict:
    return Verdict(claim, Scope.of("any"), status, reach="any shape")


@pytest.mark.parametrize(
    "verdict",
    [
        refuted(),
        plain(equal(P >> Q, Q >> P), Status.UNKNOWN),
        plain(keeps(P >> Q, "mask"), Status.VACUOUS),
        Verdict(dominates(P, Q, loss="weight_l1"), Scope.of("block:32"), Status.PROVED, grade=Grade.CERTIFIED),
    ],
)
def test_a_verdict_survives_json(verdict: Verdict) -> None:
    data = json.loads(json.dumps(verdict_to_json(verdict)))
    assert verdict_from_json(data) == verdict
    assert verdict_from_json(json.loads(json.dumps(verdict.to_json()))).to_json() == verdict.to_json()


def test_data_about_another_claim_is_refused() -> None:
    data = verdict_to_json(plain(equal(P >> Q, Q >> P), Status.PROVED))
    with pytest.raises(ValueError, match="another claim"):
        verdict_from_json(data, equal(P, Q))


def test_what_is_kept_and_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "plan.db")
    store.put(refuted())
    store.put(plain(equal(P, Q), Status.UNKNOWN))
    store.put(plain(equal(P, Q >> P), Status.DISAGREE))
    store.put(plain(equal(Q, P), Status.PROVED))
    store.close()
    store = Store(tmp_path / "deep" / "plan.db")
    assert len(store) == 2
    assert store.get(refuted().claim, Scope.of("2x2")) == refuted()
    assert store.get(equal(Q, P), Scope.of("any")) is not None
    assert store.get(equal(P, Q), Scope.of("any")) is None
    assert store.get(refuted().claim, Scope.of("any")) is None  # another scope
    assert store.get(dominates(P >> Q, Q >> P, loss="weight_l1"), Scope.of("2x2")) is None  # another loss


@pytest.mark.parametrize("changed", ["_library", "_source_of"])
def test_a_changed_encoding_or_library_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    store = Store(tmp_path / "plan.db")
    store.put(plain(equal(Q, P), Status.PROVED))
    monkeypatch.setattr(module, changed, lambda *_: "another")
    assert store.get(equal(Q, P), Scope.of("any")) is None


def test_every_source_that_gives_meaning_is_there() -> None:
    package = ROOT / "compcomp"
    assert all((package / part).exists() for part in module.MEANING)
    assert "magnitude.py" in {f.name for f in (package / "encodings").rglob("*.py")}


def test_a_row_that_cannot_be_read_is_no_verdict(tmp_path: Path) -> None:
    store = Store(tmp_path / "plan.db")
    store.put(plain(equal(Q, P), Status.PROVED))
    for broken in ("{", "{}", "[]", json.dumps({**verdict_to_json(refuted()), "status": "PROVED"})):
        store._connection.execute("UPDATE verdicts SET verdict = ?", (broken,))
        assert store.get(equal(Q, P), Scope.of("any")) is None


def test_a_technique_without_a_source_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_source_of", lambda _: None)
    store = Store(tmp_path / "plan.db")
    store.put(plain(equal(Q, P), Status.PROVED))
    assert len(store) == 0 and store.get(equal(Q, P), Scope.of("any")) is None


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at " * 50)
    for path in (tmp_path / "text.db", tmp_path, tmp_path / "text.db" / "below"):
        with pytest.raises(InputError, match="store"):
            Store(path)


def test_what_was_written_outlives_a_killed_process(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from compcomp.language.claim import Scope, equal
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.store import Store
from compcomp.techniques import AbsMax
store = Store(sys.argv[1])
for bits in range(2, 6):
    store.put(Verdict(equal(AbsMax(bits), AbsMax(bits)), Scope.of("any"), Status.PROVED))
store._connection.execute("BEGIN IMMEDIATE")
store._connection.execute("DELETE FROM verdicts")
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "plan.db"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False
    )
    assert done.returncode < 0
    store = Store(path)
    assert len(store) == 4
    assert store.get(equal(AbsMax(5), AbsMax(5)), Scope.of("any")) is not None
