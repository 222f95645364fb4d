"""What rule exchange takes from analysis, and no query asks: sums of growing convex functions of distances."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product

import pytest
import z3

from compcomp.language.loss import LOSSES, Loss
from compcomp.proving.rules.exchange import majorized

LARGEST = 5
HINGES: list[Callable[[int], int]] = [lambda x, t=t: max(x - t, 0) for t in range(LARGEST)]  # type: ignore[misc]
"""Growing convex functions, of which every other one on whole numbers up to LARGEST is a sum with factors >= 0."""
POWERS: list[Callable[[int], int]] = [lambda x, p=p: x**p for p in range(1, 5)]  # type: ignore[misc]


def test_majorized_pairs() -> None:
    """All pairs of small distances: it holds exactly where no growing convex function has the larger sum."""
    found = set()
    for a, b, c, d in product(range(LARGEST + 1), repeat=4):
        said = z3.is_true(z3.simplify(majorized(*([z3.RealVal(x) for x in pair] for pair in ((a, b), (c, d))))))
        assert said == all(f(a) + f(b) <= f(c) + f(d) for f in HINGES), (a, b, c, d)
        assert not said or all(f(a) + f(b) <= f(c) + f(d) for f in POWERS), (a, b, c, d)
        found.add(said)
    assert found == {True, False}


@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if loss.distance], ids=lambda loss: loss.name)
def test_losses_of_distances(loss: Loss) -> None:
    """A loss that is declared so is a growing convex function of the distance alone, from 0 on."""
    assert loss.element is not None
    part = loss.element
    distances = [Fraction(k, 3) for k in range(12)]
    values = [part(Fraction(0), x) for x in distances]
    for x, value in zip(distances, values, strict=True):
        for place in (Fraction(-7, 2), Fraction(0), Fraction(5, 3)):
            assert part(place, place + x) == part(place, place - x) == value
    rises = [high - low for low, high in pairwise(values)]
    assert values[0] == 0 and rises[0] > 0
    assert all(low <= high for low, high in pairwise(rises))
    assert (loss.degree == 1) == (len(set(rises)) == 1)  # of this one the sums alone are compared


def test_every_weight_loss_is_one() -> None:
    assert [loss.name for loss in LOSSES.values() if loss.distance] == [n for n in LOSSES if n.startswith("weight")]
