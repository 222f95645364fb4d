from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import z3

from compcomp.language.text import parse_sequence
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, Magnitude, QuantizationAwareTraining, TruncatedSVD
from compcomp.terms import Batch, BatchChoices, Choices, RandomChoices, SymbolicChoices
from tests.helpers import HUGE, layer, matrix, outcomes, refused

INPUTS = [[1, 2], [0, 1], [2, 0], [1, 1]]
WEIGHT = [[3, 1, -2, 4], [2, 5, 1, -1]]
EYE = matrix([[1, 0], [0, 1]])
T = QuantizationAwareTraining
TRAINED = [T(3), T(2, per="channel"), T(4, group=2)]
P = Magnitude("1/2")


def start(*techniques: Any, seed: int | None = None) -> LayerState:
    state = layer(WEIGHT, INPUTS)
    for technique in techniques:
        state = technique.encode(state)
    return replace(state, choices=Choices() if seed is None else RandomChoices(seed))


@pytest.mark.parametrize("technique", TRAINED, ids=str)
def test_the_first_choice_is_round_to_nearest(technique: T) -> None:
    nearest = AbsMax(technique.bits, technique.group, per=technique.per).encode(start())
    after = technique.encode(start())
    assert (after.weight == nearest.weight).all()
    assert after.format.grid is not None and nearest.format.grid is not None
    assert (after.format.grid.step == nearest.format.grid.step).all()
    assert (after.format.grid.levels, after.format.grid.scales) == (technique.levels, nearest.format.grid.scales)


@pytest.mark.parametrize("technique", TRAINED, ids=str)
def test_any_values_of_the_grid_within_the_mask(technique: T) -> None:
    seen = set()
    for seed in range(30):
        before = start(P, seed=seed)
        after = technique.encode(before)
        grid, mask = after.format.grid, before.format.mask
        assert grid is not None and mask is not None
        assert all(w == 0 if not s else (w / s).denominator == 1 and abs(w / s) <= technique.levels
                   for w, s in zip(after.weight.ravel(), grid.step.ravel(), strict=True))  # fmt: skip
        assert all(after.weight[~mask.astype(bool)] == 0)
        assert bool(technique.feasible(before, after))
        seen.add(tuple(after.weight.ravel()))
    assert len(seen) > 15


def test_every_point_of_the_grid_is_an_outcome() -> None:
    """w = (2, 1), L = 1: the step is 2 and each weight is one of -2, 0, 2."""

    def run(state: LayerState) -> LayerState:
        return T(2).encode(replace(state, gram=EYE))

    assert outcomes(run, [[2, 1]], seeds=200) == set(product((-2, 0, 2), repeat=2))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_symbols_reach_all_of_the_grid_and_nothing_else(bits: int) -> None:
    """For the group w = (a, 1) with a >= 1, the step is a / L."""
    a, choices, technique = z3.Real("a"), SymbolicChoices(), T(bits)
    weight = np.array([[a, z3.RealVal(1)]], dtype=object)
    one, other = (technique.encode(LayerState(weight, weight, gram=EYE, choices=choices)) for _ in range(2))
    solver = z3.Solver()
    solver.add(a == technique.levels, *choices.premises)  # the step is 1
    for level in (-technique.levels, -1, 0, 1, technique.levels):
        assert solver.check(one.weight[0, 1] == level, other.weight[0, 1] == -level) == z3.sat
    for wrong in (technique.levels + 1, Fraction(1, 2)):
        assert solver.check(one.weight[0, 0] == wrong) == z3.unsat


def test_batches_vary() -> None:
    weight = np.array([[Batch(np.full(300, 2.0)), Batch(np.full(300, 1.0))]], dtype=object)
    choices = BatchChoices(300, np.random.default_rng(0))
    after = T(2).encode(LayerState(weight, weight, gram=EYE, choices=choices)).weight
    found = set(zip(after[0, 0].values.tolist(), after[0, 1].values.tolist(), strict=True))
    assert found == set(product((-2.0, 0.0, 2.0), repeat=2))


def test_what_is_not_feasible() -> None:
    technique, before = T(3), start(P)
    after = technique.encode(before)
    assert bool(technique.feasible(before, after))
    step = after.format.grid.step  # type: ignore[union-attr]
    for wrong in (
        replace(after, weight=after.weight + 1),
        replace(after, weight=after.weight + step),  # on the grid, but not 0 where the mask drops
        replace(after, format=replace(after.format, mask=None)),
        replace(after, format=before.format),
        replace(after, format=AbsMax(bits=4).encode(before).format),
        replace(after, reference=after.reference + 1),
        replace(after, gram=None),
    ):
        assert not bool(technique.feasible(before, wrong))
    assert not bool(technique.feasible(before, replace(after, weight=after.weight + 8 * step)))


def test_a_broken_mask_is_restored_and_factors_stay() -> None:
    pruned = start(P)
    broken = replace(pruned, weight=pruned.reference)
    after = T(3).encode(broken)
    assert all(after.weight[~pruned.format.mask.astype(bool)] == 0)  # type: ignore[union-attr]
    corrected = start(TruncatedSVD(rank=1, residual=True))
    assert T(3).encode(corrected).format.factors is corrected.format.factors


def test_a_zero_row_stays_zero_with_a_scale_of_its_own_alone() -> None:
    weight = [[0, 0], [3, 1]]
    found = {
        technique: {
            any(technique.encode(replace(layer(weight, EYE), choices=RandomChoices(seed))).weight[0])
            for seed in range(20)
        }
        for technique in (T(3), T(3, per="channel"), T(3, group=2))
    }
    assert [True in seen for seen in found.values()] == [True, False, False]
    assert [bool(technique.promises().zeros) for technique in found] == [False, True, True]


def test_text_and_parameters() -> None:
    technique = T(4, group=8, iterations=50, rate="3/2")
    text = "QuantizationAwareTraining(bits=4, group=8, iterations=50, rate=3/2)"
    assert str(technique) == text and parse_sequence(text).techniques == (technique,)
    assert technique.fits((2, 16)) and not technique.fits((2, 12))
    wrong: dict[str, Any]
    for wrong in ({"bits": 1}, {"bits": 17}, {"bits": Any}, {"group": 0}, {"group": 2, "per": "channel"},
                  {"per": "row"}, {"iterations": -1}, {"iterations": 1.5}, {"rate": 0}, {"rate": "fast"},
                  {"rate": 10**6 + 1}):  # fmt: skip
        refused(lambda wrong=wrong: T(**({"bits": 4} | wrong)), f"QuantizationAwareTraining.{next(iter(wrong))}"
                if "group" not in wrong or "per" not in wrong else "one of the two")  # fmt: skip
    refused(lambda: T(4).encode(layer(WEIGHT)), "calibration inputs")
    refused(lambda: T(4, group=3).encode(layer(WEIGHT, INPUTS)), "groups of 3")


@pytest.mark.parametrize("value", [HUGE])
def test_huge_numbers_are_refused(value: int) -> None:
    refused(lambda: T(value), "whole number")
    refused(lambda: T(4, rate=value), "rate")
