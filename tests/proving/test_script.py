"""Scripts say what the terms say, and the same whatever was built before them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from compcomp.checking.farkas import Script
from compcomp.proving.script import script

NAMES = ["x", "y", "c_the whole tensor", "let", "ite", "w_0_1", "7up"]


@st.composite
def numbers(draw: st.DrawFn, depth: int = 3) -> Any:
    """A real term; integers come in through to_real."""
    if depth == 0 or draw(st.booleans()):
        value = Fraction(draw(st.integers(-9, 9)), draw(st.integers(1, 4)))
        leaves = [z3.Real(draw(st.sampled_from(NAMES))), z3.RealVal(str(value)), z3.ToReal(z3.Int("n"))]
        return draw(st.sampled_from(leaves))
    one, other = draw(numbers(depth - 1)), draw(numbers(depth - 1))
    forms = [one + other, one - other, -one, one * other, one / 3, z3.Sum([one, other, one]), z3.Sum([one])]
    forms += [z3.If(draw(truths(depth - 1)), one, other), z3.ToReal(z3.ToInt(one))]
    return draw(st.sampled_from(forms))


@st.composite
def truths(draw: st.DrawFn, depth: int = 3) -> Any:
    if depth == 0:
        return draw(st.sampled_from([z3.Bool("p"), z3.BoolVal(True), z3.BoolVal(False), z3.Bool("p q")]))
    one, other = draw(numbers(depth - 1)), draw(numbers(depth - 1))
    p, q = draw(truths(depth - 1)), draw(truths(depth - 1))
    forms = [one <= other, one < other, one >= other, one > other, one == other, one != other, z3.Not(p), p == q]
    forms += [z3.And(p, q), z3.Or(p, q, p), z3.Implies(p, q), z3.And(p), z3.Or(p), z3.And([]), z3.Or([]), p != q]
    return draw(st.sampled_from([*forms, z3.If(p, q, one == other), z3.Int("n") % 3 == 1, z3.Int("n") / 2 >= 0]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(truths(), min_size=1, max_size=3), st.lists(st.fractions(-3, 3, max_denominator=4), min_size=8, max_size=8)
)
def test_a_script_reads_as_the_terms_it_was_written_from(terms: list[Any], values: list[Fraction]) -> None:
    read = z3.parse_smt2_string(script(terms))
    assert len(read) == len(terms)
    put = [(z3.Real(name), z3.RealVal(str(value))) for name, value in zip(NAMES, values, strict=False)]
    put += [(z3.Int("n"), z3.IntVal(int(values[-1]))), (z3.Bool("p"), z3.BoolVal(values[-1] > 0))]
    put.append((z3.Bool("p q"), z3.BoolVal(values[0] > 0)))
    for term, found in zip(terms, read, strict=True):
        assert term.eq(found) or z3.is_true(z3.simplify(z3.substitute(term == found, *put)))


def build() -> list[Any]:
    x, y = z3.Real("x"), z3.Real("y")
    size = z3.If(x >= 0, x, -x)
    return [size + y <= 3 * size, y + size + x > z3.RealVal("-1/2"), z3.Or(size == y, z3.Not(size + y <= 3 * size))]


def test_what_was_built_before_does_not_show() -> None:
    first = script(build())
    kept = [z3.Real("y") + z3.Real(f"other_{k}") <= 3 for k in range(500)]
    kept.append(3 * z3.If(z3.Real("x") >= 0, z3.Real("x"), -z3.Real("x")) >= z3.Real("y"))
    assert script(build()) == first
    assert len(kept) == 501


def test_shared_terms_are_written_once() -> None:
    x = z3.Real("x")
    term = x
    for _ in range(200):
        term = z3.If(term >= 0, term, -term) + 1
    text = script([term <= 3])
    assert len(text) < 20_000
    assert z3.parse_smt2_string(text)[0].eq(term <= 3)
    assert Script(script(build())).sorts == {"x": "Real", "y": "Real"}, "the checker reads them too"


@pytest.mark.parametrize("name", ["?1", "?x"])
def test_names_of_lets_are_no_names(name: str) -> None:
    with pytest.raises(TypeError, match="kept for lets"):
        script([z3.Real(name) > 0])


def test_what_is_no_arithmetic_is_refused() -> None:
    with pytest.raises(TypeError, match="no SMT-LIB"):
        script([z3.BitVec("b", 4) + 1 == 2])
