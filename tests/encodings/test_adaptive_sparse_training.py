from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import z3

import compcomp as cc
from compcomp.layers.state import LayerState
from compcomp.techniques import AdaptiveSparseTraining, GradientDistill, Magnitude
from compcomp.terms import SymbolicChoices
from tests.helpers import layer, refused, row


def technique(**options: Any) -> AdaptiveSparseTraining:
    return AdaptiveSparseTraining(**{"sparsity": "1/2", "iterations": 2, "every": 1, **options})


def test_two_steps_by_hand() -> None:
    """G = [[4, 4], [4, 5]] of trace 9, W G = (20, 23) for W = (3, 2). The first mask drops 2.

    Step 1: E = (3, 0), slope E G - W G = (-8, -11), divided by 9; the dropped 2 loses half of a tenth of itself.
    So V = (3 + 8/9, 2 + 11/9 - 1/10) = (35/9, 281/90), and the mask stays. Step 2: E = (35/9, 0), slope
    (140/9 - 20, 140/9 - 23) = (-40/9, -67/9).
    """
    start = layer([[3, 2]], [[2, 0], [2, 1]])
    assert row(technique().encode(start)) == [Fraction(35, 9) + Fraction(40, 81), 0]


def test_the_mask_follows_the_weights() -> None:
    """What is dropped at first is what the outputs need: it grows back, and the other one goes."""
    start = layer([[3, 2]], [[1, 0], [10, 0]])
    assert row(technique(iterations=1).encode(start))[1] == 0
    after = technique().encode(start)
    assert row(after)[0] == 0 and row(after)[1] > 2
    assert after.format.mask.tolist() == [[False, True]]


def test_a_mask_lasts_as_long_as_it_says() -> None:
    start = layer([[3, 2]], [[1, 0], [10, 0]])
    assert not technique(iterations=2, every=2).encode(start).format.mask[0, 1], "none is found after the last step"
    assert technique(iterations=3, every=2).encode(start).format.mask[0, 1]


def test_one_mask_is_magnitude_and_gradient_steps() -> None:
    start = layer([[3, 1, -2, 5], [4, 2, 7, 1]], [[1, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 1]])
    once = technique(iterations=3, every=3, pattern="2:4", decay=0).encode(start)
    expected = GradientDistill(3).encode(Magnitude("1/2", pattern="2:4").encode(start))
    assert (once.weight == expected.weight).all() and (once.format.mask == expected.format.mask).all()
    assert once.format.pattern == expected.format.pattern == ((2, 4),)


def test_decay_is_of_dropped_weights_alone() -> None:
    """Without inputs that say anything, the mask holds what is largest."""
    start = layer([[3, 2]], [[0], [0]])
    assert row(technique(iterations=5, decay="9/10").encode(start)) == [3, 0]


def test_ties() -> None:
    start = layer([[1, -1]], [[0], [0]])
    assert row(technique().encode(start)) == [0, -1]
    assert row(technique(ties="all").encode(start)) == [0, 0]
    assert not technique(ties="any").promises().deterministic


def test_an_earlier_mask_holds_even_where_it_is_broken() -> None:
    start = layer([[5, 1, 2, 3]], [[1], [1], [1], [1]])
    form = replace(start.format, mask=np.array([[False, True, True, True]]))
    after = technique(pattern="2:4").encode(replace(start, format=form))
    assert row(after)[0] == 0
    assert sum(after.format.mask[0]) == 2


def test_the_prover_reads_it_as_numbers_do() -> None:
    """On variables, and then with these variables set to numbers."""
    values, inputs = [[3, 1, -2, 5]], [[1, 2], [0, 1], [2, 0], [1, 1]]
    expected = row(technique(pattern="1:2").encode(layer(values, inputs)))
    names = [z3.Real(f"w{j}") for j in range(4)]
    choices = SymbolicChoices()
    gram = layer(values, inputs).gram
    after = technique(pattern="1:2").encode(LayerState.dense(np.array([names]), gram=gram, choices=choices))
    solver = z3.Solver()
    solver.add(*choices.premises, *(n == v for n, v in zip(names, values[0], strict=True)))
    assert solver.check() == z3.sat
    solver.add(z3.Or(*(w != z3.Q(e.numerator, e.denominator) for w, e in zip(row(after), expected, strict=True))))
    assert solver.check() == z3.unsat


def test_joint_against_sequential_is_decided() -> None:
    """Neither dominates: the mask it ends with may be the better or the worse one."""
    joint = technique(pattern="1:2", iterations=3)
    sequential = Magnitude("1/2", pattern="1:2") >> GradientDistill(3)
    assert cc.prove(cc.dominates(joint, sequential, loss="output_l2")).refuted
    assert cc.prove(cc.dominates(sequential, joint, loss="output_l2")).refuted
    assert cc.prove(cc.fits(joint, "1:2 50%")).proved


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"sparsity": "Any"}, "AdaptiveSparseTraining.sparsity"),
        ({"sparsity": 1}, "AdaptiveSparseTraining.sparsity"),
        ({"pattern": "1:4"}, "AdaptiveSparseTraining"),
        ({"per": "token"}, "AdaptiveSparseTraining.per"),
        ({"iterations": 0}, "AdaptiveSparseTraining.iterations"),
        ({"every": 0}, "AdaptiveSparseTraining.every"),
        ({"rate": 2}, "AdaptiveSparseTraining.rate"),
        ({"decay": 1}, "AdaptiveSparseTraining.decay"),
        ({"ties": "last"}, "AdaptiveSparseTraining.ties"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: technique(**parameters), where)


def test_any_is_for_techniques_with_steps() -> None:
    refused(lambda: technique(sparsity=cc.Any), "AdaptiveSparseTraining.sparsity")
    refused(lambda: technique().encode(replace(layer([[1, 2]], [[1], [1]]), gram=None)), "no inputs")
