from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.smoothquant import SmoothQuant
from compcomp.errors import NotExactError
from compcomp.language.loss import LOSSES
from compcomp.layers.basis import Scaling
from compcomp.layers.state import Grid, LayerState, Magnitudes
from compcomp.techniques import AbsMax, Magnitude
from compcomp.terms import PowerOfTwo, Root
from tests.helpers import HUGE, layer, matrix, refused

W, X = [[1, -2, 0, 4], [0, 8, 0, 4]], [[4, -1], [2, 1], [3, 3], [0, 0]]
"""Largest magnitudes: weights 1, 8, 0, 4; inputs 4, 2, 3, 0."""


def scales(technique: SmoothQuant, state: LayerState) -> list[Any]:
    transform = technique.encode(state).format.transform
    assert transform is not None
    (part,) = transform.parts
    assert isinstance(part, Scaling)
    return list(part.scales)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        ("1/2", [2, Fraction(1, 2), 1, 1]),  # sqrt(4 / 1), sqrt(2 / 8), no weights, no inputs
        (0, [1, Fraction(1, 8), 1, 1]),
        (1, [4, 2, 1, 1]),
    ],
)
def test_scales(alpha: Any, expected: list[Any]) -> None:
    assert scales(SmoothQuant(alpha), layer(W, X)) == expected


def test_the_layer_computes_what_it_did() -> None:
    before = layer(W, X)
    after = SmoothQuant().encode(before)
    assert after.weight.tolist() == [[2, -1, 0, 4], [0, 4, 0, 4]]
    assert after.effective().tolist() == before.weight.tolist()
    assert (after.inputs is before.inputs) and (after.reference is before.reference) and (after.gram is before.gram)
    assert after.working().inputs.tolist() == [[2, Fraction(-1, 2)], [4, 2], [3, 3], [0, 0]]  # type: ignore[union-attr]
    assert all(loss.of(after) == 0 for loss in LOSSES.values())
    view = after.working()
    assert (view.weight @ view.inputs).tolist() == (before.weight @ before.inputs).tolist()


def test_a_worked_example_of_what_it_is_for() -> None:
    """W = (1, 1), X = (16, 1): scales 4 and 1; AbsMax(2) on W' = (4, 1) keeps the weight of the large input alone."""
    start = layer([["3/4", 1]], [[12], [1]])
    after = (SmoothQuant() >> AbsMax(2)).encode(start)
    assert after.weight.tolist() == [[3, 0]]
    assert after.effective().tolist() == [[Fraction(3, 4), 0]]
    assert LOSSES["output_l2"].of(after) == 1
    assert LOSSES["output_l2"].of(AbsMax(2).encode(start)) == 9


def test_a_second_one_acts_on_what_the_first_left() -> None:
    """After alpha = 1/2 both sides have largest magnitudes alike: there is nothing more to do."""
    after = SmoothQuant().encode(layer([[1, 8]], [[4], [2]]))
    assert scales(SmoothQuant(), after.working()) == [1, 1]
    twice = (SmoothQuant() >> SmoothQuant(1)).encode(layer([[1, 8]], [[4], [2]]))
    assert twice.effective().tolist() == [[1, 8]] and twice.working().inputs.tolist() == [[1], [1]]  # type: ignore


def test_grid_mask_and_pattern_go_along() -> None:
    pruned = (Magnitude(Fraction(1, 2), pattern="1:2") >> AbsMax(4)).encode(layer([[1, 8, 2, 7]], [[4], [2], [2], [7]]))
    after = SmoothQuant(scales="power_of_two").encode(pruned)
    grid, old = after.format.grid, pruned.format.grid
    assert isinstance(grid, Grid) and isinstance(old, Grid)
    assert after.format.mask is pruned.format.mask and after.format.pattern == ((1, 2),)
    assert grid.scales == old.scales + 4 and grid.levels == old.levels
    assert (after.weight / grid.step).tolist() == (pruned.weight / old.step).tolist()


def test_exact_arithmetic_needs_rational_roots() -> None:
    irrational = layer([[1]], [[2]])
    with pytest.raises(NotExactError, match="not rational"):
        SmoothQuant().encode(irrational)
    assert scales(SmoothQuant(scales="power_of_two"), irrational) == [2]  # the midpoint goes up
    assert scales(SmoothQuant(scales="power_of_two"), layer([[1]], [["199/100"]])) == [1]


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 20])
def test_roots_and_the_powers_of_two_near_them(degree: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        root = Fraction(int(random.integers(1, 400)), int(random.integers(1, 400)))
        assert Root(root**degree, degree) == root
        state = layer([[1]])
        near = PowerOfTwo(root**degree, degree, state.choices)
        ratio = Fraction(root) / near
        assert Fraction(1, 2) <= ratio**2 < 2  # 2^(-1/2) <= ratio < 2^(1/2)
        assert state.choices.margin > 0
    with pytest.raises(NotExactError):
        Root(Fraction(2), degree + 1)


def test_magnitudes_stand_for_inputs_until_they_are_rotated() -> None:
    whole = layer(W, X)
    known = replace(whole, inputs=None, magnitudes=Magnitudes(matrix([[4, 2, 3, 0]])[0], matrix([[1, 1, 1, 1]])[0]))
    assert scales(SmoothQuant(), known) == scales(SmoothQuant(), whole)
    refused(lambda: SmoothQuant().encode(replace(whole, inputs=None)), "no inputs", "magnitudes")


@pytest.mark.parametrize("given", [-1, "3/2", "x", None, True, HUGE, "1/1001"])
def test_bad_alpha(given: Any) -> None:
    refused(lambda: SmoothQuant(given), "SmoothQuant.alpha", "[0, 1]")


def test_bad_scales() -> None:
    refused(lambda: SmoothQuant(scales="float8"), "SmoothQuant.scales", "power_of_two")
