from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
import z3

from compcomp.language.loss import loss_named
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, GradientDistill, LeastSquaresDistill, Magnitude, TruncatedSVD
from compcomp.terms import SymbolicChoices
from tests.helpers import layer, matrix, refused, row

LOST = loss_named("output_l2").of
INPUTS = [[1, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 1]]
WEIGHT = [[3, 1, -2, 4], [2, 5, 1, -1]]


def test_one_step_by_hand() -> None:
    """G = [[1, 1], [1, 2]] with trace 3; the error is (6, -1), the step (1/3) (6, -1) G = (5/3, 4/3)."""
    start = replace(layer([[1, 2]], [[1, 0], [1, 1]]), weight=matrix([[7, 1]]))
    assert row(GradientDistill(1).encode(start)) == [7 - Fraction(5, 3), 1 - Fraction(4, 3)]
    assert row(GradientDistill(1, rate="1/2").encode(start)) == [7 - Fraction(5, 6), 1 - Fraction(2, 3)]


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_the_closed_form_is_what_the_encoding_derives(iterations: int) -> None:
    """W'_K = W + (W'_0 - W) (I - rate / trace(G) G)^K, on symbols."""
    reference, weight = (np.array(sympy.symbols(f"{name}:2"), dtype=object)[None] for name in "rw")
    a, b, c = sympy.symbols("a b c", positive=True)
    gram = np.array([[a, b], [b, c]], dtype=object)
    technique = GradientDistill(iterations, rate="2/3")
    after = technique.encode(LayerState(weight, reference, gram))
    factor = sympy.eye(2) - sympy.Rational(2, 3) / (a + c) * sympy.Matrix(gram)
    expected = sympy.Matrix(reference) + (sympy.Matrix(weight) - sympy.Matrix(reference)) * factor**iterations
    assert sympy.simplify(sympy.Matrix(after.weight) - expected) == sympy.zeros(1, 2)


def test_the_formulas_of_the_docs_are_derived() -> None:
    text = (Path(__file__).parents[2] / "docs" / "whole_models.md").read_text(encoding="utf-8")
    printed = [sympy.sympify(found) for found in re.findall(r"`([-(][^`]*w0[^`]*)`", text)]

    def array(rows: Any) -> Any:
        return np.array(rows, dtype=object)

    w0, w, w01, w02, w1, w2, a, c = sympy.symbols("w0 w w01 w02 w1 w2 a c")
    derived = []
    for steps in (1, 2, 3):
        one = LayerState(array([[w0]]), array([[w]]), array([[sympy.Integer(7)]]))
        derived.append(GradientDistill(steps, rate="1/2").encode(one).weight[0, 0] - w)
    positive = dict(zip((a, c), sympy.symbols("a c", positive=True), strict=True))
    gram = array([[positive[a], 0], [0, positive[c]]])
    after = GradientDistill(2).encode(LayerState(array([[w01, w02]]), array([[w1, w2]]), gram))
    derived += [found - wanted for found, wanted in zip(after.weight[0], (w1, w2), strict=True)]
    assert len(printed) == len(derived)
    for one, other in zip(printed, derived, strict=True):
        assert sympy.simplify(one.subs(positive) - other) == 0


def test_each_step_descends_towards_the_optimum() -> None:
    start = Magnitude(sparsity="1/2").encode(layer(WEIGHT, INPUTS))
    losses = [LOST(start)] + [LOST(GradientDistill(k).encode(start)) for k in (1, 2, 4, 8, 16)]
    assert all(later < earlier for earlier, later in pairwise(losses))
    best = LOST(LeastSquaresDistill().encode(start))
    assert best <= losses[-1] and losses[-1] - best < (losses[0] - best) / 2
    after = GradientDistill(4).encode(start)
    assert start.format.mask is not None
    assert all(after.weight[~start.format.mask.astype(bool)] == 0)
    assert after.format.mask is start.format.mask


def test_a_larger_rate_than_allowed_would_not_descend() -> None:
    """With one feature trace(G) is the curvature: a rate of 2 goes as far beyond the optimum as it was before it."""
    start = replace(layer([[1]], [[3]]), weight=matrix([[5]]))
    assert row(GradientDistill(1, rate=Fraction(199, 100)).encode(start)) == [1 - 4 * Fraction(99, 100)]
    for rate in (2, 0, -1, "x"):
        refused(lambda rate=rate: GradientDistill(1, rate=rate), "between 0 and 2", "GradientDistill.rate")
    refused(lambda: GradientDistill(0), "whole number", "GradientDistill.iterations")


def test_the_grid_is_given_up_and_factors_are_accounted_for() -> None:
    start = AbsMax(bits=3).encode(layer(WEIGHT, INPUTS))
    assert GradientDistill(1).encode(start).format.grid is None
    corrected = TruncatedSVD(rank=2, residual=True).encode(start)
    after = GradientDistill(3).encode(corrected)
    assert np.array_equal(after.weight, start.weight)  # nothing is lost any more
    assert after.format.factors is corrected.format.factors


def test_changed_inputs_are_fitted() -> None:
    """The outputs to meet are W X = (6); with inputs X' = (2) the weight goes from 3 to 3 - (3 * 4 - 6 * 2) / 4 = 3."""
    start = layer([[2]], [[3]]).with_inputs(matrix([[2]]))
    assert row(GradientDistill(1).encode(start)) == [3]


def test_dead_inputs_move_nothing() -> None:
    start = replace(layer([[1, 2]], [[0], [0]]), weight=matrix([[7, 1]]))
    assert row(GradientDistill(2).encode(start)) == [7, 1]
    refused(lambda: GradientDistill(1).encode(layer([[1, 2]])), "calibration inputs")


def test_a_step_never_increases_the_loss_for_any_weights_and_inputs() -> None:
    """z3 on 1 x 2 with any Gram matrix of two tokens, and any one step; a step of 5 times the size it does refute."""

    def found(rate: Fraction) -> str:
        x = np.array([z3.Reals("a b"), z3.Reals("c d")], dtype=object)
        weight, reference = (np.array([z3.Reals(f"{name}1 {name}2")], dtype=object) for name in "wr")
        technique = GradientDistill(1)
        object.__setattr__(technique, "rate", rate)
        before = LayerState(weight, reference, x @ x.T, None, choices=SymbolicChoices())
        solver = z3.SolverFor("QF_NRA")
        solver.set("timeout", 20_000)
        solver.add(x[1, 0] == 0, reference[0, 0] == 0, reference[0, 1] == 0)  # rotated, and moved to the reference
        solver.add(LOST(technique.encode(before)) > LOST(before))
        return str(solver.check())

    assert found(Fraction(1)) == "unsat"
    assert found(Fraction(5)) == "sat"
