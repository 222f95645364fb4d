"""A prover owns what it remembers: provers share nothing, and what one forgets the others still know."""

from __future__ import annotations

import ast
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import z3

import compcomp as cc
import compcomp.techniques
from compcomp.errors import InputError
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Grade
from compcomp.ordering.ask import Asker, decided_by
from compcomp.proving import context
from compcomp.proving.prove import Prover, default_prover
from compcomp.proving.solver import Answer, Portfolio, Remembering, Z3Process

ROOT = Path(__file__).resolve().parents[2]
P, Q = "Magnitude(sparsity=1/2)", "AbsMax(bits=4)"
CLAIM = parse_claim(f"{P} >> {Q} dominates {Q} >> {P}", "weight_l1")
RULES = ("rule",)


class Counting:
    """z3, and how many scripts it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, smtlib: str, seconds: float) -> Answer:
        self.asked += 1
        return default_prover().solver.ask(smtlib, seconds)


class Unsure:
    """Answers nothing, after it was called back."""

    def __init__(self, called: Callable[[], None] = lambda: None) -> None:
        self.called = called

    def ask(self, smtlib: str, seconds: float) -> Answer:
        self.called()
        return Answer("unknown", cause="unsure")


def test_two_provers_share_nothing() -> None:
    solver = Counting()
    one, two = Prover(solver, second=None), Prover(solver, second=None)
    assert one.prove(CLAIM, stages=RULES, explain=False).proved
    asked = solver.asked
    assert asked and one.lemmas and len(one.theorems) == 1
    assert not two.lemmas and not len(two.theorems) and not two.certificates
    assert one.prove(CLAIM, stages=RULES, explain=False).proved and solver.asked == asked, "a theorem is remembered"
    assert two.prove(CLAIM, stages=RULES, explain=False).proved and solver.asked == 2 * asked, "each asks for itself"
    one.certify(one.prove(CLAIM, stages=RULES))
    assert one.certificates and not two.certificates


def test_a_solver_for_one_call_leaves_nothing_behind() -> None:
    solver, before = Counting(), (dict(default_prover().lemmas), len(default_prover().theorems))
    for times in (1, 2):
        assert cc.prove(CLAIM, stages=RULES, solver=solver, second=None).proved
        asked = solver.asked // times
    assert solver.asked == 2 * asked
    assert (dict(default_prover().lemmas), len(default_prover().theorems)) == before


def processes(prover: Prover) -> list[Z3Process]:
    assert isinstance(prover.solver, Remembering) and isinstance(prover.solver.solver, Portfolio)
    return [process for process in prover.solver.solver.solvers if isinstance(process, Z3Process)]


def test_closing_one_leaves_the_other_usable() -> None:
    with Prover(second=None) as one, Prover(second=None) as two:
        assert (
            one.prove(CLAIM, stages=RULES, explain=False).proved
            and two.prove(CLAIM, stages=RULES, explain=False).proved
        )
        running = [process._process for process in processes(one) if process._process is not None]
        assert running
        one.close()
        assert all(process.poll() is not None for process in running), "its processes have ended"
        assert not one.lemmas and not len(one.theorems)
        with pytest.raises(InputError, match="closed"):
            one.prove(CLAIM)
        other = parse_claim("AbsMax(bits=7) dominates AbsMax(bits=4)", "weight_l1")
        assert (
            two.prove(CLAIM, stages=RULES, explain=False).proved
            and two.prove(other, stages=RULES, explain=False).proved
        )


def test_solvers_that_were_given_stay_open() -> None:
    closed = list[str]()

    class Given(Counting):
        def close(self) -> None:
            closed.append("closed")

    with Prover(Given(), Given()) as prover:
        assert prover.prove(CLAIM, stages=RULES).grade is Grade.TWO_SOLVERS
    assert not closed


def test_a_prover_that_is_dropped_ends_its_processes() -> None:
    prover = Prover(second=None)
    assert prover.prove(CLAIM, stages=RULES, explain=False).proved
    running = [process._process for process in processes(prover) if process._process is not None]
    gone = weakref.ref(prover)
    del prover
    gc.collect()
    assert gone() is None and running
    assert all(process.wait(10) is not None for process in running)


def test_a_default_prover_is_made_again_after_it_was_closed() -> None:
    first = default_prover()
    assert default_prover() is first and cc.prove(CLAIM, stages=RULES, explain=False).proved
    first.close()
    assert cc.prove(CLAIM, stages=RULES, explain=False).proved
    assert default_prover() is not first and not default_prover().closed


def test_two_provers_do_not_wait_for_each_other() -> None:
    """The solver of one does not answer before the other has finished a proof in another thread."""
    asked, finished = threading.Event(), threading.Event()

    def prove_another() -> None:
        asked.set()
        assert finished.wait(60)

    slow, quick = Prover(Unsure(prove_another), second=None), Prover(Counting(), second=None)
    with ThreadPoolExecutor(2) as threads:
        pending = threads.submit(slow.prove, CLAIM, stages=RULES)
        assert asked.wait(60)
        assert threads.submit(quick.prove, CLAIM, stages=RULES).result(60).proved
        finished.set()
        assert not pending.result(60).proved


def test_many_provers_build_terms_at_once() -> None:
    """Each in a context of its own: the same queries as one after the other, while garbage is collected."""
    rows = [f"{P} >> AbsMax(bits={b}) dominates AbsMax(bits={b}) >> {P}" for b in (2, 3, 5)]

    def scripts(text: str) -> list[str]:
        verdict = Prover(Unsure(), second=None).prove(parse_claim(text, "weight_l2"), (1, 3), search_seconds=0.01)
        assert not verdict.proved
        return [query.smtlib for query in verdict.queries]

    alone = [scripts(text) for text in rows]
    with ThreadPoolExecutor(4) as threads:
        pending = [threads.submit(scripts, text) for text in rows * 3]
        while not all(job.done() for job in pending):
            gc.collect()
            threading.Event().wait(0.01)
        assert [job.result() for job in pending] == alone * 3


def test_terms_of_two_contexts_do_not_mix() -> None:
    outside = z3.Real("x")
    with context.inside(context.ready(z3.Context())):
        inside = z3.Real("x")
        assert inside.ctx is z3.main_ctx() is not outside.ctx
        with pytest.raises(z3.Z3Exception):
            _ = inside + outside
        with context.inside(outside.ctx):
            assert z3.Real("y").ctx is outside.ctx
        assert z3.main_ctx() is inside.ctx
    assert z3.main_ctx() is outside.ctx


def test_the_order_search_asks_the_prover_that_is_given() -> None:
    solver = Counting()
    with Prover(solver, second=None) as prover:
        plan = cc.optimize_order(
            [cc.techniques.Magnitude("1/2"), cc.techniques.AbsMax(4)], loss="weight_l2", prover=prover
        )
        assert solver.asked and prover.lemmas and plan.order is not None
    (verdict,) = Asker(prover).ask([CLAIM], cc.Scope.of("any"))
    assert "closed" in verdict.cause, "no other prover takes its place"


def test_what_may_decide_in_a_search() -> None:
    def answers(claim: Any, scope: Any, options: Any) -> Any:
        raise AssertionError

    assert decided_by(answers) is answers
    assert decided_by(None).__module__ == "compcomp.ordering.ask"  # named, so that another process finds it


ALLOWED = {
    "terms._code_floats": "a function of codes and a rounding",
    "layers.walk._tree": "a function of fields",
    "language.identity._our_class": "classes of this library, which do not change while it runs",
    "language.identity._our_slots": "classes of this library, which do not change while it runs",
    "language.identity._effects": "a function of code objects, which do not change",
    "language.identity._equality": "a function of names",
    "language.named._imports": "by file, time of change and size",
    "language.named._hash": "by file, time of change and size",
    "language.named._installed": "where this Python is installed",
    "ordering.intervals.t_quantile": "a function of numbers",
    "ordering.store._library": "sources and versions that this process runs",
    "ordering.store._measuring": "sources and versions that this process runs",
}
"""Functions of rooms that decide claims whose results are kept, and why they are the same at any time."""
FILLED = {
    "language.named._sent": "files of classes that this process itself has named",
    "language.named._first": "files that this process has read, as they were then",
    "language.claims.claim.KINDS": "the registry of kinds of claims",
}
"""Containers of modules that are filled later, and why none holds an answer."""
ROOMS = ("terms.py", "layers", "algebra", "language", "checking", "proving", "ordering")


def _calls(tree: ast.AST) -> set[str]:
    names = (node.func if isinstance(node, ast.Call) else node for node in ast.walk(tree))
    return {n.attr if isinstance(n, ast.Attribute) else n.id for n in names if isinstance(n, ast.Attribute | ast.Name)}


def test_no_module_remembers() -> None:
    """Apart from the default prover, no room that decides claims keeps results in a module."""
    cached, rebound, containers = set[str](), set[str](), set[str]()
    for room in ROOMS:
        place = ROOT / "compcomp" / room
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            module = ".".join(file.relative_to(ROOT / "compcomp").with_suffix("").parts)
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Global):
                    rebound |= {f"{module}.{name}" for name in node.names}
                if isinstance(node, ast.FunctionDef) and {"cache", "lru_cache"} & {
                    name for decorator in node.decorator_list for name in _calls(decorator)
                }:
                    cached.add(f"{module}.{node.name}")
            for node in tree.body:
                value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
                empty = isinstance(value, ast.Dict | ast.List) and not getattr(value, "keys", getattr(value, "elts", 1))
                made = isinstance(value, ast.Call) and not value.args and not value.keywords
                if empty or (made and _calls(value.func) & {"dict", "list", "set", "WeakKeyDictionary", "defaultdict"}):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    containers |= {f"{module}.{ast.unparse(target)}" for target in targets}
    assert cached == set(ALLOWED)
    assert rebound == {"proving.prove._default"}
    assert containers == set(FILLED)
