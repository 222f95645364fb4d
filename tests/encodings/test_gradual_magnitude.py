from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.gradual_magnitude import GradualMagnitude
from compcomp.encodings.magnitude import Magnitude
from compcomp.language.technique import Sequence
from tests.helpers import layer, refused


def test_the_published_schedule() -> None:
    """s (1 - (1 - t / T)^3) for s = 1/2, T = 4."""
    expected = [Fraction(1, 2) * (1 - Fraction(k, 4) ** 3) for k in (3, 2, 1, 0)]
    assert GradualMagnitude("1/2", rounds=4).sparsities == tuple(expected)
    assert GradualMagnitude("1/2", rounds=4, schedule="linear").sparsities == tuple(Fraction(t, 8) for t in range(1, 5))


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize("schedule", ["cubic", "linear"])
@pytest.mark.parametrize("largest", [2, 30])
def test_nested_rounds_come_to_one(ties: str, schedule: str, largest: int) -> None:
    """With many equal magnitudes and with few, unstructured, by row and N:M, the state is that of one round."""
    random = np.random.default_rng(largest)
    for options in ({}, {"per": "row"}, {"pattern": "2:4"}):
        for _ in range(10):
            start = layer(random.integers(-largest, largest + 1, (4, 8)).tolist())
            one = Magnitude("1/2", ties=ties, **options).encode(start)
            gradual = GradualMagnitude("1/2", 4, schedule, ties=ties, **options).encode(start)
            assert gradual.weight.tolist() == one.weight.tolist()
            assert gradual.format.mask is not None and one.format.mask is not None
            assert gradual.format.mask.tolist() == one.format.mask.tolist()
            assert gradual.format.pattern == one.format.pattern


def test_the_rounds_are_techniques() -> None:
    technique = GradualMagnitude("1/2", rounds=3)
    rounds = technique.each_round()
    assert rounds == tuple(Magnitude(s) for s in (Fraction(19, 54), Fraction(13, 27), Fraction(1, 2)))
    assert Sequence(rounds).encode(layer([[3, 1, 2, 4]])).weight.tolist() == [[3, 0, 0, 4]]
    assert [t.pattern for t in GradualMagnitude("1/2", 3, pattern="4:8").each_round()] == ["6:8", "5:8", "4:8"]
    assert [str(t.sparsity) for t in GradualMagnitude("1/2", 3, pattern="4:8").each_round()] == ["1/4", "3/8", "1/2"]


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"rounds": 0}, "GradualMagnitude.rounds"),
        ({"rounds": 2.0}, "GradualMagnitude.rounds"),
        ({"schedule": "exponential"}, "GradualMagnitude.schedule"),
        ({"sparsity": Any}, "GradualMagnitude.sparsity"),
        ({"sparsity": 1}, "GradualMagnitude.sparsity"),
        ({"per": "token"}, "GradualMagnitude.per"),
        ({"ties": "last"}, "GradualMagnitude.ties"),
        ({"pattern": "1:4"}, "GradualMagnitude"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: GradualMagnitude(**{"sparsity": "1/2", **parameters}), where)
