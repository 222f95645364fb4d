from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.absmax_inputs import AbsMaxInputs
from compcomp.encodings.least_squares_distill import LeastSquaresDistill
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.encodings.wanda import Wanda
from compcomp.language.loss import loss_named
from compcomp.layers.state import LayerState
from compcomp.terms import RandomChoices
from tests.helpers import HUGE, layer, matrix, refused

X = [[14, 7], [3, 0], [-5, 1]]
"""Three features of two tokens: 4-bit steps of 2 and of 1 for a token each, of 2 for the tensor."""


@pytest.mark.parametrize(
    ("technique", "expected"),
    [
        (AbsMaxInputs(bits=4), [[14, 7], [4, 0], [-4, 1]]),
        (AbsMaxInputs(bits=4, rounding="half_up"), [[14, 7], [4, 0], [-4, 1]]),
        (AbsMaxInputs(bits=4, rounding="half_away"), [[14, 7], [4, 0], [-6, 1]]),
        (AbsMaxInputs(bits=4, per="tensor"), [[14, 8], [4, 0], [-4, 0]]),
        (AbsMaxInputs(bits=4, group=1), X),
        (AbsMaxInputs(bits=2, group=3), [[14, 7], [0, 0], [0, 0]]),
    ],
)
def test_what_becomes_of_the_inputs(technique: AbsMaxInputs, expected: Any) -> None:
    before = layer([[1, 2, 3]], X)
    after = technique.encode(before)
    assert after.inputs is not None and after.gram is not None
    assert after.inputs.tolist() == expected
    assert after.gram.tolist() == (after.inputs @ after.inputs.T).tolist()
    assert after.reference_inputs is before.inputs
    assert (after.weight, after.reference, after.format) == (before.weight, before.reference, before.format)


def test_the_dense_inputs_stay_known_however_often_they_are_rounded() -> None:
    before = layer([[1, 2, 3]], X)
    after = (AbsMaxInputs(bits=4) >> AbsMaxInputs(bits=2)).encode(before)
    assert after.reference_inputs is before.inputs


def test_an_all_zero_token_stays_zero() -> None:
    after = AbsMaxInputs(bits=8).encode(layer([[1, 2]], [[0, 1], [0, 2]]))
    assert after.inputs is not None and after.inputs[:, 0].tolist() == [0, 0]


def test_any_rounding_reaches_both_sides_of_a_midpoint() -> None:
    found = set()
    for seed in range(20):
        after = AbsMaxInputs(bits=4, rounding="any").encode(layer([[1, 1]], [[14], [3]], RandomChoices(seed)))
        assert after.inputs is not None
        found.add(after.inputs[1, 0])
    assert found == {2, 4}


def test_the_output_loss_compares_with_the_dense_outputs() -> None:
    """(3, 1) (2, 7)^T = 13, and after rounding inputs to 2 bits (3, 1) (0, 7)^T = 7, with the weight as it was."""
    after = AbsMaxInputs(bits=2).encode(layer([[3, 1]], [[2], [7]]))
    assert loss_named("output_l2").of(after) == 36
    assert loss_named("weight_l2").of(after) == 0


def test_pruning_first_adds_to_the_error_of_quantized_inputs() -> None:
    """Theorem 3.9 of [harma2025] at W = (0, 1, -1, 1), x = (0, 1, 1, 2), whose dense output is 2.

    Alone, pruning leaves 1 and rounding the inputs 2, as the errors 1/7 at the second and third feature cancel; after
    pruning nothing cancels them: 8/7 > 1 + 0.
    """
    prune, rounded = Magnitude(sparsity=Fraction(1, 2), pattern="2:4"), AbsMaxInputs(bits=4)
    state, lost = layer([[0, 1, -1, 1]], [[0], [1], [1], [2]]), loss_named("output_l2").of
    assert [lost(t.encode(state)) for t in (prune, rounded)] == [1, 0]
    assert lost((prune >> rounded).encode(state)) == Fraction(64, 49)


def test_wanda_sees_the_rounded_inputs() -> None:
    state = layer([[3, 4]], [[2, 2], [1, 1]])
    assert Wanda(Fraction(1, 2)).encode(state).weight.tolist() == [[3, 0]]
    small = AbsMaxInputs(bits=2).encode(layer([[1, 4]], [[2, 7], [1, 5]]))
    assert small.input_norms2() == [53, 49]
    assert Wanda(Fraction(1, 2)).encode(small).weight.tolist() == [[0, 4]]


def test_distillation_fits_the_dense_outputs_on_the_rounded_inputs() -> None:
    """x = (2, 9/10) becomes (2, 0) with 2 bits: the weight 47/20 gives the output 47/10; the other has no effect."""
    state = AbsMaxInputs(bits=2).encode(layer([[1, 3]], [[2], ["9/10"]]))
    after = LeastSquaresDistill().encode(replace(state, reference=matrix([[1, 3]])))
    assert after.weight.tolist() == [[Fraction(47, 20), 3]]
    assert loss_named("output_l2").of(after) == 0


def test_distillation_never_increases_the_loss_after_rounding_but_a_low_rank_correction_may() -> None:
    """The correction mends the weight, which may have made up for the rounded inputs."""
    lost = loss_named("output_l2").of
    state = (AbsMax(bits=4) >> AbsMaxInputs(bits=4)).encode(layer([[1, 3], [0, 0]], [[2], [1]]))
    assert lost(LeastSquaresDistill().encode(state)) <= lost(state) == Fraction(1, 49)
    corrected = TruncatedSVD(rank=1, residual=True).encode(state)
    assert loss_named("weight_l2").of(corrected) == 0 and lost(corrected) == Fraction(9, 49)


def test_a_gram_matrix_is_not_enough() -> None:
    weight = matrix([[1, 2]])
    gram = LayerState.dense(weight, gram=matrix(np.eye(2, dtype=int).tolist()))
    refused(lambda: AbsMaxInputs(bits=4).encode(gram), "Gram matrix alone", "calibration inputs", "AbsMaxInputs")
    refused(lambda: AbsMaxInputs(bits=4).encode(LayerState.dense(weight)), "no inputs")


@pytest.mark.parametrize("given", [1, 17, HUGE, "4", None, True])
def test_bad_bits(given: Any) -> None:
    refused(lambda: AbsMaxInputs(bits=given), "AbsMaxInputs.bits", "from 2 to 16")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"per": "row"}, "AbsMaxInputs.per"),
        ({"per": "channel"}, "'token', 'tensor'"),
        ({"group": 0}, "AbsMaxInputs.group"),
        ({"group": 2, "per": "tensor"}, "per='token'"),
        ({"rounding": "nearest"}, "AbsMaxInputs.rounding"),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: str) -> None:
    refused(lambda: AbsMaxInputs(bits=4, **given), message)


def test_a_group_must_divide_the_features() -> None:
    refused(lambda: AbsMaxInputs(bits=4, group=2).encode(layer([[1, 2, 3]], X)), "3 features", "groups of 2")
