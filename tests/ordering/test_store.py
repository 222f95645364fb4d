"""Verdicts come back whole, and only where they still hold."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import networkx as nx
import pytest

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope, dominates, equal, keeps
from compcomp.language.named import sources_of
from compcomp.language.technique import Technique
from compcomp.language.verdict import Grade, Query, Status, Trace, Verdict, Witness
from compcomp.ordering import store as module
from compcomp.ordering.store import Store, verdict_from_json, verdict_to_json
from compcomp.techniques import AbsMax, Magnitude
from tests.test_structure import import_graph

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
    store.put(plain(equal(P, P >> Q), Status.UNKNOWN))  # without saying how hard it was tried
    store.put(plain(equal(P, Q >> P), Status.DISAGREE))
    store.put(plain(equal(Q, P), Status.PROVED))
    store.close()
    store = Store(tmp_path / "deep" / "plan.db")
    assert len(store) == 2
    assert store.get(refuted().claim, Scope.of("2x2")) == refuted()
    assert store.get(equal(Q, P), Scope.of("any")) is not None
    assert store.get(equal(P, Q >> P), Scope.of("any")) is None
    assert store.get(refuted().claim, Scope.of("any")) is None  # another scope
    assert store.get(dominates(P >> Q, Q >> P, loss="weight_l1"), Scope.of("2x2")) is None  # another loss


def test_the_verdict_is_given_for_the_text_in_which_it_is_asked(tmp_path: Path) -> None:
    store = Store(tmp_path / "plan.db")
    store.put(plain(equal(P, Q), Status.PROVED))
    store.put(plain(keeps(P, "grid", given="no_ties, scale_unchanged"), Status.VACUOUS))
    store.put(plain(equal(P, Q >> Q), Status.UNKNOWN), {"timeout": 2})
    assert len(store) == 3
    found = store.get(equal(Q, P), Scope.of("any"))
    assert found is not None and found.claim == equal(Q, P) and "either way" in found.notes[-1]
    asked = keeps(P, "grid", given="scale_unchanged, no_ties")
    vacuous = store.get(asked, Scope.of("any"))
    assert vacuous is not None and (vacuous.claim, vacuous.status) == (asked, Status.VACUOUS)
    unknown = store.get(equal(Q >> Q, P), Scope.of("any"), {"timeout": 1})
    assert unknown is not None and (unknown.claim, unknown.status) == (equal(Q >> Q, P), Status.UNKNOWN)
    assert store.get(equal(Q >> Q, P), Scope.of("any")) is None


def test_a_claim_about_a_box_is_found_in_any_scope(tmp_path: Path) -> None:
    store, claim = Store(tmp_path / "plan.db"), equal(P, Q, given="box(radius=1, around=((1, 2),))")
    store.put(Verdict(claim, Scope.of("1x2"), Status.PROVED))
    assert store.get(claim, Scope.of("any")) == store.get(claim, Scope.of("1x2")) is not None
    assert store.get(claim, Scope.of("2x2")) is None


def nothing_is_found(path: Path) -> bool:
    store = Store(path)
    gone = [store.get(equal(Q, P), Scope.of("any")), *store.related(equal(Q, P)), store.get_result("k")]
    gone.append(store.get(equal(P, P), Scope.of("any"), {"timeout": 1}))
    store.close()
    return gone == [None, None, None]


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store with one of everything, found again as long as nothing changes."""
    store = Store(tmp_path / "plan.db")
    store.put(plain(equal(Q, P), Status.PROVED))
    store.put(plain(equal(P, P), Status.UNKNOWN), {})
    store.put_result("k", {"a": 1})
    store.close()
    assert not nothing_is_found(tmp_path / "plan.db")
    return tmp_path / "plan.db"


def forget() -> None:
    """Hashes are taken once a process; from here on they are taken anew."""
    for one in (module._library, module._measuring):
        one.cache_clear()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No hash is left from before, and none stays when what was changed is put back."""
    forget()
    yield
    monkeypatch.undo()
    forget()


def test_another_version_of_the_library_finds_nothing(
    filled: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "__version__", "9.9")
    forget()
    assert nothing_is_found(filled)


@pytest.mark.parametrize("package", ["z3-solver", "cvc5", "torch"])
def test_another_version_of_a_package_finds_nothing(
    filled: Path, fresh: None, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(module, "_version", lambda name: "9.9" if name == package else module.metadata.version(name))
    forget()
    store = Store(filled)
    verdict, result = store.get(equal(Q, P), Scope.of("any")), store.get_result("k")
    assert (verdict is None, result is None) == ((False, True) if package == "torch" else (True, False))


def test_keys_cover_all_that_decides() -> None:
    """Whatever the modules import, directly or not, by which a verdict comes about, or a measurement."""
    graph = import_graph()
    decides = ("compcomp.proving", "compcomp.ordering.reuse", "compcomp.ordering.dag", "compcomp.encodings")
    measures = ("compcomp.models", "compcomp.kernels")
    for covered, starts in ((module.MEANING, decides), (module.MEASURING, (*decides, *measures))):
        roots = {name for name in graph if name.startswith(starts)}
        reached = roots.union(*(nx.descendants(graph, root) for root in roots))
        parts = ["compcomp." + part.removesuffix(".py").replace("/", ".") for part in covered]
        left_out = {name for name in reached if not any(name == p or name.startswith(f"{p}.") for p in parts)}
        assert left_out <= {"compcomp.version"}  # which is in the key as it is


@pytest.mark.parametrize(
    ("part", "verdicts", "results"),
    [
        ("encodings/absmax.py", False, False),
        ("terms.py", False, False),
        ("layers/state.py", False, False),
        ("layers/walk.py", False, False),
        ("language/steps.py", False, False),
        ("algebra/low_rank.py", False, False),
        ("ordering/reuse.py", False, False),
        ("kernels/absmax.py", True, False),
        ("models/bench.py", True, False),
        ("reporting/html.py", True, True),
    ],
)
def test_a_changed_source_finds_nothing(tmp_path: Path, part: str, verdicts: bool, results: bool) -> None:
    """One more line of comment in a copy of the sources."""
    package = tmp_path / "compcomp"
    shutil.copytree(ROOT / "compcomp", package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    parts = (module.MEANING, module.MEASURING)
    before = [module._version_of(names, (), package) for names in parts]
    assert before == [module._version_of(names, ()) for names in parts]
    with (package / part).open("a") as file:
        file.write("# changed\n")
    after = [module._version_of(names, (), package) for names in parts]
    assert [a == b for a, b in zip(after, before, strict=True)] == [verdicts, results]


def test_a_technique_of_ones_own_that_is_changed_finds_nothing(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own file, or that of a class it inherits from."""
    monkeypatch.syspath_prepend(tmp_path)
    head = "from dataclasses import dataclass\nfrom compcomp.language.technique import Technique\n"
    (tmp_path / "own_base.py").write_text(f"{head}class Base(Technique): pass\n")
    (tmp_path / "own_child.py").write_text(
        f"from own_base import Base\n{head}@dataclass(frozen=True)\nclass Own(Base): pass\n"
    )
    own = importlib.import_module("own_child").Own()
    store = Store(tmp_path / "plan.db")
    store.put(plain(equal(own, P), Status.PROVED))
    assert store.get(equal(own, P), Scope.of("any")) is not None
    for name in ("own_child", "own_base"):
        path = tmp_path / f"{name}.py"
        text, before = path.read_text(), path.stat().st_mtime_ns
        path.write_text(text + "# changed\n")
        # This process has read what is no longer there: it may neither find nor leave anything under the new name.
        assert store.get(equal(own, P), Scope.of("any")) is None and not list(store.related(equal(own, P)))
        store.put(plain(equal(own, Q), Status.PROVED))
        assert len(store) == 1
        importlib.invalidate_caches()
        for module_name in ("own_base", "own_child"):
            sys.modules.pop(module_name)
        anew = importlib.import_module("own_child").Own()
        assert store.get(equal(anew, P), Scope.of("any")) is None
        path.write_text(text)
        os.utime(path, ns=(before, before))
        assert store.get(equal(own, P), Scope.of("any")) is not None


def test_a_kernel_of_ones_own_that_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refutations are replayed with it, and measurements are all its doing."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_kernel.py").write_text("def kernel(technique, layer): return layer\n")

    class Own(Technique):
        pass

    monkeypatch.setitem(Technique.kernels, Own, "own_kernel")
    before = sources_of([Own(), P])
    assert before is not None and before == sources_of([P, Own(), Own()]) != sources_of([P])
    (tmp_path / "own_kernel.py").write_text("def kernel(technique, layer): return None\n")
    assert sources_of([Own()]) is None and sources_of([P]) is not None
    monkeypatch.setattr("compcomp.language.named._first", {})  # as in another process
    assert sources_of([Own(), P]) not in (None, before)


def test_a_class_without_a_file(tmp_path: Path) -> None:
    own = dataclass(frozen=True)(type("Own", (Technique,), {"__module__": "nowhere"}))()
    assert sources_of([own]) is None
    store = Store(tmp_path / "plan.db")
    store.put(plain(equal(own, P), Status.PROVED))
    assert len(store) == 0 and store.get(equal(own, P), Scope.of("any")) is None


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


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at " * 50)
    for path in (tmp_path / "text.db", tmp_path, tmp_path / "text.db" / "below"):
        with pytest.raises(InputError, match="store"):
            Store(path)


@pytest.mark.parametrize("what", ["truncated", "overwritten"])
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "plan.db"
    store = Store(path)
    for bits in range(2, 17):
        store.put(plain(equal(AbsMax(bits), P), Status.PROVED))
        store.put_result(str(bits), {"text": "x" * 5000})
    store.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if what == "truncated" else data[:100] + b"\xff" * (len(data) - 100))
    with pytest.raises(InputError, match="store") as caught:
        store = Store(path)
        for bits in range(2, 17):
            store.get(equal(AbsMax(bits), P), Scope.of("any"))
            store.get_result(str(bits))
            store.put_result(str(bits), {})
    assert "\n" not in str(caught.value) and "plan.db" in str(caught.value)


def test_files_of_other_formats(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, claim, scope, status, verdict, made)")
    connection.execute("INSERT INTO verdicts VALUES ('k', 'c', 'any', 'PROVED', '{}', 0)")
    connection.commit()
    connection.close()
    connection = sqlite3.connect(tmp_path / "court.db")
    connection.execute("CREATE TABLE verdicts (judge TEXT)")
    connection.close()
    with pytest.raises(InputError, match="something else"):
        Store(tmp_path / "court.db")
    store = Store(tmp_path / "old.db")
    store.put(plain(equal(Q, P), Status.PROVED))
    assert len(store) == 1
    store._connection.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(InputError, match="later version"):
        Store(tmp_path / "old.db")


def test_measurements_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "plan.db")
    data = {"metrics": {"perplexity": 3.25}, "orders": ["a", "b"], "none": None}
    store.put_result("model seed 0", {"older": 1})
    store.put_result("model seed 0", data)
    store.close()
    again = Store(tmp_path / "plan.db")
    assert again.get_result("model seed 0") == data and again.get_result("model seed 1") is None
    with pytest.raises(InputError, match="JSON"):
        again.put_result("k", {"a": object()})
    again._connection.execute("UPDATE results SET data = '{'")
    assert again.get_result("model seed 0") is None


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    script = """
import sys
from compcomp.language.claim import Scope, equal
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.store import Store
from compcomp.techniques import AbsMax
store = Store(sys.argv[1])
for k in range(40):
    claim = equal(AbsMax(2 + k % 10), AbsMax(2 + k % 7))
    store.put(Verdict(claim, Scope.of("any"), Status.PROVED))
    store.put_result(f"{sys.argv[2]} {k}", {"k": k})
    assert store.get(claim, Scope.of("any")).proved and list(store.related(claim))
"""
    path = tmp_path / "plan.db"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(k)], env=environment, stderr=subprocess.PIPE)
        for k in range(4)
    ]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in running] == [(b"", 0)] * 4
    store = Store(path)
    assert all(store.get_result(f"{process} {k}") == {"k": k} for process in range(4) for k in range(40))


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
store.put_result("k", {"a": 1})
store._connection.execute("BEGIN IMMEDIATE")
store._connection.execute("DELETE FROM verdicts")
store._connection.execute("DELETE FROM results")
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
    assert store.get_result("k") == {"a": 1}
