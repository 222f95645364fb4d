from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.clipped_absmax import ClippedAbsMax
from compcomp.language.loss import loss_named
from tests.helpers import HUGE, layer, refused, row


def lost(state: Any) -> Fraction:
    return Fraction(loss_named("weight_l2").of(state))


def test_the_ratio_that_loses_least() -> None:
    """2 bits, (4, 3, 3, 3): absmax gives (4, 4, 4, 4) and loses 3; a scale of 3 loses 1."""
    state = ClippedAbsMax(2, ratios=2, smallest=Fraction(1, 2)).encode(layer([[4, 3, 3, 3]]))
    assert row(state) == [3, 3, 3, 3]
    assert state.format.grid is not None and state.format.grid.step[0, 0] == 3
    assert row(AbsMax(2).encode(layer([[4, 3, 3, 3]]))) == [4, 4, 4, 4]


def test_of_equals_the_largest_ratio() -> None:
    """(4, 3): scales 4 and 3 both lose 1; so do all values of nothing."""
    assert row(ClippedAbsMax(2, ratios=2).encode(layer([[4, 3]]))) == [4, 4]
    state = ClippedAbsMax(2, group=1).encode(layer([[0, 5]]))
    assert row(state) == [0, 5]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [None, 4])
def test_it_loses_what_the_best_ratio_loses_and_no_more_than_absmax(bits: int, group: int | None) -> None:
    random = np.random.default_rng(bits)
    technique, levels = ClippedAbsMax(bits, group, ratios=5), 2 ** (bits - 1) - 1
    for _ in range(30):
        state = layer(random.integers(-20, 21, (2, 8)).tolist())
        after = technique.encode(state)
        assert lost(after) <= lost(AbsMax(bits, group).encode(state))
        best = Fraction(0)
        for part in state.weight.ravel().reshape(-1, group or 16):
            largest, losses = max(abs(w) for w in part), []
            for k in range(6):
                step = largest * (1 - Fraction(k, 10)) / levels
                values = [step * j for j in range(-levels, levels + 1)]
                losses.append(sum((min((w - v) ** 2 for v in values) for w in part), Fraction(0)))
            best += min(losses)
        assert lost(after) == best


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 1}, ("ClippedAbsMax.bits",)),
        ({"bits": 4, "group": 0}, ("ClippedAbsMax.group",)),
        ({"bits": 4, "smallest": 0}, ("ClippedAbsMax.smallest", "(0, 1]")),
        ({"bits": 4, "smallest": "3/2"}, ("ClippedAbsMax.smallest",)),
        ({"bits": 4, "ratios": 0}, ("ClippedAbsMax.ratios",)),
        ({"bits": 4, "rounding": "up"}, ("ClippedAbsMax.rounding",)),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: tuple[str, ...]) -> None:
    refused(lambda: ClippedAbsMax(**given), *message)


def test_huge_numbers_and_groups_that_do_not_divide() -> None:
    refused(lambda: ClippedAbsMax(4, group=HUGE.values[0]), "ClippedAbsMax.group")  # type: ignore[arg-type]
    refused(lambda: ClippedAbsMax(4, group=4).encode(layer([[1, 2, 3]])), "rows of 3", "groups of 4")
