"""Formulas that some release of a solver answered wrongly, and what our encodings take for granted of SMT-LIB.

If one of these fails, no verdict of that solver is to be believed. Numbers are those of the solver's issues.
"""

from __future__ import annotations

import re
from fractions import Fraction
from importlib.metadata import version

import pytest
import z3

from compcomp.proving.solver import Cvc5Process, Solver, Z3Process
from compcomp.terms import SymbolicChoices, nearest

SOLVERS: dict[str, Solver] = {
    "z3 simple": Z3Process(),
    "z3": Z3Process(simple=False),
    "cvc5": Cvc5Process(),
}


def answers(script: str, seconds: float = 20.0) -> dict[str, str]:
    return {name: solver.ask(script, seconds).answer for name, solver in SOLVERS.items()}


def reals(names: str) -> str:
    return "".join(f"(declare-fun {name} () Real)" for name in names.split())


def test_versions() -> None:
    def parts(package: str) -> tuple[int, ...]:
        return tuple(int(x) for x in re.findall(r"\d+", version(package))[:3])

    assert parts("z3-solver") >= (5, 1)
    assert parts("cvc5") >= (1, 4, 2)


CVC5_12926 = (
    "(set-logic QF_NRA)" + reals("x1 x2 x z") + "(assert (= 0 (* x1 x1 x1 x1 x1)))(assert (= 0 (* x2 x2 x2 x2 x2)))"
    "(assert (= 0 (+ (- (/ 1 3) (* x x x x)) (* x2 z) (* x1 z z z))))(check-sat)"
)
CVC5_12927 = (
    "(set-logic QF_NRA)" + reals("x1 x2 x z") + "(assert (= 0 (* (- x2 1) (- x1 1) (- x1 1) (- x1 1))))"
    "(assert (= 0 (* x2 x2 x2)))(assert (> x 0))(assert (> (- z (- x 1)) 0))"
    "(assert (< (+ (* z z z) (* 2 (+ x2 (* (- x 1) (- x 1) (- x 1))))"
    " (* z (- 3) (+ (- x1 1) (* (- x 1) (- x 1))))) 0))(check-sat)"
)
"""Satisfiable by x1 = 1, x2 = 0, x = z = 1/2; cvc5 1.3.4 said unsat, as it did to the one before."""

# z3 answered these satisfiable formulas of products with "unsat" in one release or another.
Z3_3106 = reals("a b") + "(assert (not (<= (* (- a b) (- a b) (* a a b b)) 0)))(check-sat)"
Z3_7114 = reals("a b") + (
    "(assert (< 0 a))(assert (= (- b) (* a (+ a b))))(assert (= 1 (+ (* a a) (* b b))))(check-sat)"
)
CVC4_5726 = reals("p q") + (
    "(assert (> (* q q q q q q) 0))"
    "(assert (> (* p (- p (+ p (* p (* p (+ (* q (- q (/ 1 720))) (* p p))))))) 0))(check-sat)"
)


@pytest.mark.parametrize("script", [CVC5_12926, CVC5_12927, Z3_3106, Z3_7114, CVC4_5726])
def test_satisfiable_products_are_never_unsat(script: str) -> None:
    found = answers(script)
    assert "unsat" not in found.values(), found
    assert "sat" in found.values(), found


def test_products_that_have_no_solution() -> None:
    """The closest to our own use: squares and fourth powers grow with magnitudes."""
    script = reals("a b") + "(assert (<= (* a a) (* b b)))(assert (> (* a a a a) (* b b b b)))(check-sat)"
    assert set(answers(script).values()) == {"unsat"}


def test_an_irrational_solution() -> None:
    """cvc5 does not end on this without a logic; the worker always sets one."""
    assert set(answers(reals("x") + "(assert (= (* x x) 2.0))(check-sat)").values()) == {"sat"}


def test_a_term_with_if_inside() -> None:
    """z3 #10239: the simplifier elim-term-ite lost the "if" and found x = 11 (4.15.4, 5.0.0)."""
    script = reals("x") + "(declare-const b Bool)(assert (and (> x 10.0) (< x (ite b 1.0 2.0))))(check-sat)"
    assert set(answers(script).values()) == {"unsat"}


def test_division_by_zero_is_any_value() -> None:
    script = reals("x") + "(assert (= (/ x 0.0) 7.0))(assert (= x 1.0))(check-sat)"
    assert set(answers(script).values()) == {"sat"}


@pytest.mark.parametrize(
    ("number", "floor"), [("(- (/ 7.0 2.0))", "(- 4)"), ("(/ 7.0 2.0)", "3"), ("(- 2.0)", "(- 2)")]
)
def test_to_int_is_floor(number: str, floor: str) -> None:
    script = f"(declare-fun k () Int)(assert (= k (to_int {number})))(assert (not (= k {floor})))(check-sat)"
    assert set(answers(script).values()) == {"unsat"}


def test_whole_division_by_a_negative_number() -> None:
    assert z3.simplify(z3.IntVal(-7) / z3.IntVal(-2)).as_long() == 4  # Python's // gives 3
    assert set(answers("(assert (not (= (div (- 7) (- 2)) 4)))(check-sat)").values()) == {"unsat"}


def test_a_decimal_is_not_the_float() -> None:
    assert z3.RealVal(0.1).as_fraction() == Fraction(1, 10) != Fraction(0.1)
    assert z3.RealVal(Fraction(0.1)).as_fraction() == Fraction(0.1)


def test_no_to_real_of_a_real() -> None:
    """An ill-sorted text changed its meaning between releases: what we emit has to_real of Int terms only."""
    choices, w = SymbolicChoices(), z3.Real("w")
    value = nearest(w, z3.RealVal(1), z3.Int("L"), "half_even", choices)
    solver = z3.Solver()
    solver.add(*choices.premises, value == w)
    script = solver.to_smt2()
    assert re.search(r"\(to_real choice_\d+\)", script)
    assert not re.search(r"\(to_real (w|\d|\(to_real)", script)
    assert set(answers(script).values()) == {"sat"}  # cvc5 refuses ill-sorted text


def test_both_read_the_names_and_sharing_z3_writes() -> None:
    x, y = z3.Real("x_1"), z3.Real("b c")
    solver = z3.Solver()
    solver.add(z3.If(x > y, x, y) < x, z3.Sum([z3.If(x > k, z3.RealVal(1), z3.RealVal(0)) for k in range(3)]) >= 2)
    assert set(answers(solver.to_smt2()).values()) == {"unsat"}
