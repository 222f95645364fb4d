"""The checker that needs no solver: what it accepts is true, and a changed certificate is not accepted."""

from __future__ import annotations

import ast
import copy
import hashlib
import itertools
import json
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from compcomp.checking import farkas
from compcomp.checking.farkas import Invalid, check_certificate
from compcomp.proving.certificate import certify

HEADER = "(declare-fun x () Real)(declare-fun y () Real)(declare-fun n () Int)(declare-fun b () Bool)"


def certificate_for(script: str, expected: str, seconds: float) -> dict[str, Any] | None:
    return certify.certificate_for(script, expected, time.monotonic() + seconds, {})


def script(*assertions: str) -> str:
    return HEADER + "".join(f"(assert {a})" for a in assertions) + "(check-sat)"


UNSAT = {
    "linear": script("(< (+ x y) 1)", "(>= x 1.0)", "(>= y 0)"),
    "strict": script("(< x y)", "(<= y x)"),
    "cases": script("(or (< x 0) (> x 2))", "(=> b (= x 1.0))", "(or b (and (>= x 0.5) (<= x (/ 3 2))))"),
    "abs": script("(< (ite (>= x 0) x (- x)) 1)", "(>= (ite (>= y 0.0) y (- y)) 1)", "(= x y)"),
    "whole": script("(< 0 n)", "(< n 1)"),
    "parity": script("(= (* 2 n) (+ 1 (* 2 (- n n)) (* 4 n) (* 0 n)))"),
    "gap": script("(>= (to_real n) x)", "(> x 3)", "(<= (to_real n) 3.5)"),
    "product": script("(> x 0)", "(> y 0)", "(< (* x y) 0)"),
    "square": script("(< (+ (* x x) (* y y)) (* 2 x y))"),
    "let": script("(let ((a (+ x 1))) (let ((c (< a x))) (or c false)))"),
    "flags": script("(= b (not b))"),
    "choice": script("(ite b (< x 0) (> x 1))", "(= (ite b 0.0 1.0) x)"),
    "count": script("((_ at-most 1) b (< x 0) (> n 0))", "b", "(= x (- 1.0))"),
}


def tree_of(text: str) -> dict[str, Any]:
    found = certificate_for(text, "unsat", 20)
    assert found is not None
    return copy.deepcopy(found)


@pytest.mark.parametrize("name", UNSAT)
def test_certificates_are_found_and_accepted(name: str) -> None:
    assert check_certificate(UNSAT[name], tree_of(UNSAT[name])) == "unsat"


@pytest.mark.parametrize("name", UNSAT)
def test_a_certificate_serves_its_own_script_only(name: str) -> None:
    certificate = tree_of(UNSAT[name])
    with pytest.raises(Invalid, match="for this script"):
        check_certificate(UNSAT[name] + " ", certificate)


SAT = script("(or b (< x 0))", "(> (* 3 n) 4)", "(=> b (= x 0.5))", "(< (* x y) (- 1.0))")


def test_models() -> None:
    certificate = copy.deepcopy(certificate_for(SAT, "sat", 10))
    assert certificate is not None
    assert check_certificate(SAT, certificate) == "sat"
    for change in ({"n": "1"}, {"n": "5/2"}, {"x": "0"}, {"b": "true"}, {"x": True}, {"y": 1.5}, {"x": "1/0"}):
        with pytest.raises(Invalid):
            check_certificate(SAT, {**certificate, "model": {**certificate["model"], **change}})
    del certificate["model"]["y"]
    with pytest.raises(Invalid):
        check_certificate(SAT, certificate)


def test_no_refutation_of_what_has_a_model() -> None:
    assert certificate_for(SAT, "unsat", 2) is None


# ------------------------------------------------------------------------------------- changed certificates


def sums(tree: Any) -> list[Any]:
    """The sums of a tree."""
    if not isinstance(tree, dict):
        return []
    return [tree] if "sum" in tree else sums(tree["no"]) + sums(tree["yes"])


@pytest.mark.parametrize("name", ["linear", "cases", "gap", "product", "square"])
def test_one_changed_number_in_a_sum_is_rejected(name: str) -> None:
    original = tree_of(UNSAT[name])
    for k, leaf in enumerate(sums(original["refutation"])):
        for i, (coefficient, factors) in enumerate(leaf["sum"]):
            for other in ("0", "-1", str(Fraction(coefficient) + 1), str(Fraction(coefficient) * 2), "x", "", "1/0"):
                changed = copy.deepcopy(original)
                sums(changed["refutation"])[k]["sum"][i][0] = other
                with pytest.raises(Invalid):
                    check_certificate(UNSAT[name], changed)
            for j, (kind, form) in enumerate(factors):
                for t, term in enumerate(form):
                    changed = copy.deepcopy(original)
                    value = str(Fraction(term[0]) + 1)
                    sums(changed["refutation"])[k]["sum"][i][1][j][1][t][0] = value
                    with pytest.raises(Invalid):
                        check_certificate(UNSAT[name], changed)
                changed = copy.deepcopy(original)
                sums(changed["refutation"])[k]["sum"][i][1][j][0] = {">": "!", ">=": ">", "square": ">="}[kind]
                with pytest.raises(Invalid):
                    check_certificate(UNSAT[name], changed)


@pytest.mark.parametrize("name", ["cases", "abs", "choice"])
def test_swapped_or_lost_cases_are_rejected(name: str) -> None:
    certificate = tree_of(UNSAT[name])
    tree = certificate["refutation"]
    assert {"no", "yes"} < set(tree)
    if tree["no"] != tree["yes"]:
        with pytest.raises(Invalid):
            check_certificate(
                UNSAT[name], {**certificate, "refutation": {**tree, "no": tree["yes"], "yes": tree["no"]}}
            )
    for wrong in ("contradiction", {}, None, [], {"sum": []}, {k: v for k, v in tree.items() if k != "no"}):
        with pytest.raises(Invalid):
            check_certificate(UNSAT[name], {**certificate, "refutation": wrong})


@pytest.mark.parametrize(
    "text",
    [
        "(assert",
        "(assert true))",
        "(assert (< z 0))",
        "(declare-fun f (Real) Real)",
        "(push 1)(assert false)",
        "(define-fun x () Real 1.0)",
        "(declare-fun x () Real)(declare-fun x () Int)",
        "(declare-fun |1| () Real)(assert (< 1 0))",
        "(check-sat)(assert false)",
        "(declare-fun x () Real)(assert (< (/ 1 x) 0))",
        "(declare-fun x () Real)(assert x)",
        "(declare-fun x () Real)(assert (< x true))",
        "(declare-fun b () Bool)(assert (+ b b))",
        "(assert (= 1 (ite true 1 false)))",
        "(assert ())",
        "(assert (/ 1 0))",
        "(assert (and " * 3000 + "false" + "))" * 3000,
    ],
)
def test_scripts_that_are_not_understood_show_nothing(text: str) -> None:
    digest = hashlib.sha256(text.encode()).hexdigest()
    for content in ({"refutation": "contradiction"}, {"model": {}}):
        with pytest.raises(Invalid):
            check_certificate(text, {"format": 1, "script_sha256": digest, **content})


# ------------------------------------------------------------------------------------- attack by drawn scripts

SMALL = st.integers(-3, 3)
NUMBERS = st.recursive(
    st.sampled_from(["x", "y", "(to_real n)"]) | SMALL.map(lambda k: f"(- {-k}.0)" if k < 0 else f"{k}.0"),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*"]), inner, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"(ite (<= {t[0]} 0.0) {t[1]} {t[2]})"),
    ),
    max_leaves=4,
)
ATOMS = st.one_of(
    st.just("b"), st.tuples(st.sampled_from(["<", "<=", "=", ">"]), NUMBERS, NUMBERS).map(lambda t: f"({' '.join(t)})")
)
FORMULAS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map(lambda f: f"(not {f})"),
        st.tuples(st.sampled_from(["and", "or", "=>", "="]), inner, inner).map(lambda t: f"({' '.join(t)})"),
        st.tuples(inner, inner, inner).map(lambda t: f"(ite {' '.join(t)})"),
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FORMULAS, min_size=1, max_size=4))
def test_what_is_accepted_is_so(formulas: list[str]) -> None:
    """No script with a model among small numbers is refuted, and models are models; z3 says the same."""
    text = script(*formulas)
    solver = z3.Solver()
    solver.set("timeout", 500)
    solver.from_string(text)
    said = str(solver.check())
    if certificate_for(text, "unsat", 0.3) is not None:
        assert said != "sat"
    if certificate_for(text, "sat", 0.3) is not None:
        assert said != "unsat"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_certificate_never_refutes_a_satisfiable_script(data: st.DataObject) -> None:
    """A tree for one script, changed at random, put to a script with a model."""
    tree = tree_of(UNSAT[data.draw(st.sampled_from(sorted(UNSAT)))])["refutation"]
    places = list(_places(tree))
    for _ in range(data.draw(st.integers(0, 3))):
        if places:
            holder, key = data.draw(st.sampled_from(places))
            holder[key] = data.draw(st.sampled_from(["0", "1", "-1", "1/2", "x", "n", "b", ">", ">=", "contradiction"]))
    for assertions in (("(< x y)",), ("(> n 0)", "b"), ("(= (* x x) 2.0)",), ("(or b (< x 0))", "(>= x 0)")):
        text = script(*assertions)
        digest = hashlib.sha256(text.encode()).hexdigest()
        with pytest.raises(Invalid):
            check_certificate(text, {"format": 1, "script_sha256": digest, "refutation": tree})


def _places(tree: Any) -> Any:
    """Every text inside nested lists and objects, as (holder, key)."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        if isinstance(value, str):
            yield tree, key
        yield from _places(value)


def test_truth_of_sums_by_evaluation() -> None:
    """Each accepted sum, evaluated at points, is what it says: -1, or 0."""
    for text in UNSAT.values():
        for leaf in sums(tree_of(text)["refutation"]):
            for point in itertools.islice(itertools.product(map(Fraction, (-2, 0, 1, 3)), repeat=3), 20):
                values = dict(zip("xyn", point, strict=True))
                total = sum(Fraction(c) * _product(factors, values) for c, factors in leaf["sum"])
                assert total in (0, -1)


def _product(factors: Any, values: dict[str, Fraction]) -> Fraction:
    result = Fraction(1)
    for kind, form in factors:
        value = Fraction(0)
        for coefficient, *names in form:
            term = Fraction(coefficient)
            for name in names:
                term *= values[name]
            value += term
        result *= value * value if kind == "square" else value
    return result


# ------------------------------------------------------------------------------------- small and alone


def test_it_is_small_and_imports_nothing_of_ours() -> None:
    source = Path(farkas.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source)
    texts = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    code = [line for k, line in lines if line.strip() and k not in texts and not line.strip().startswith("#")]
    assert len(code) < 300
    modules = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names)


def test_it_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "q.smt2").write_text(UNSAT["abs"])
    (tmp_path / "q.json").write_text(json.dumps(tree_of(UNSAT["abs"])))
    command = [sys.executable, "-I", farkas.__file__, str(tmp_path / "q.smt2"), str(tmp_path / "q.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "unsat")


SATISFIABLE_IN_TRUTH = [
    "(declare-fun x () Real)\n(assert (let ((|1| 0)) (= x 1)))\n(assert (= x 1))\n(check-sat)\n",
    "(declare-fun x () Real)\n(assert (let ((1 0)) (= x 1)))\n(assert (= x 1))\n(check-sat)\n",
    "(declare-fun x () Real)\n(assert (let ((true false)) true))\n(assert true)\n(check-sat)\n",
    "(declare-fun x () Real)\n(assert (let ((a (= x 0)) (a (= x 1))) a))\n(assert (= x 0))\n(check-sat)\n",
    "(set-info :a #| x |)\n(assert false)\n(set-info :b | b |# 1)\n(check-sat)\n",
    "(declare-fun x () Real)\n(assert (= x \u0661))\n(assert (= x 2))\n(check-sat)\n",
    "(declare-fun\u00a0x () Real)\n(assert (= x 1))\n(assert (= x 2))\n(check-sat)\n",
    "(declare-fun b () Bool)\n(assert (=> b))\n(assert (not b))\n(check-sat)\n",
]


@pytest.mark.parametrize("script", SATISFIABLE_IN_TRUTH)
def test_names_and_marks_that_solvers_read_otherwise_are_not_read(script: str) -> None:
    digest = hashlib.sha256(script.encode()).hexdigest()
    with pytest.raises(Invalid):
        check_certificate(script, {"format": 1, "script_sha256": digest, "refutation": "contradiction"})
