"""The grids in use, as the code of each tool computes them, and on any layer of small integers."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.layers.state import Grid
from compcomp.terms import Choices
from tests.helpers import layer, row

H = 8
"""Half the number of levels of 4 bits."""


def rounded(x: Fraction) -> int:
    """To the nearest whole number, midpoints to the even one: as Python and torch do."""
    return round(x)


def compressed_tensors(w: list[int]) -> list[Fraction]:
    """Scale max / ((q_max - q_min) / 2), values clamped to q_min and q_max."""
    scale = Fraction(max(map(abs, w))) / Fraction(2 * H - 1, 2)
    return [scale * min(max(rounded(x / scale), -H), H - 1) for x in w]


def autoawq(w: list[int]) -> list[Fraction]:
    scale = Fraction(max(map(abs, w)), H - 1)
    return [scale * min(max(rounded(x / scale), -H), H - 1) for x in w]


def deepspeed(w: list[int]) -> list[Fraction]:
    """Scale 2 max / 2^bits."""
    scale = Fraction(2 * max(map(abs, w)), 2 * H)
    return [scale * min(max(rounded(x / scale), -H), H - 1) for x in w]


def q4_0(w: list[int]) -> list[Fraction]:
    """The step is the first weight of largest magnitude over -8, so that this weight is a value whatever its sign."""
    scale = Fraction(max(w, key=abs), -H)
    return [scale * min(max(rounded(x / scale), -H), H - 1) for x in w]


@pytest.mark.parametrize(
    ("grid", "tool"),
    [("full_range", compressed_tensors), ("narrow_step", autoawq), ("clipped", deepspeed), ("signed", q4_0)],
)
def test_as_the_tool_computes_it(grid: str, tool: Any) -> None:
    draw = random.Random(3)
    for _ in range(300):
        w = [draw.choice((1, 3, 40)) * draw.randint(-8, 8) for _ in range(draw.randint(1, 6))]
        if any(w):
            state = AbsMax(bits=4, grid=grid).encode(layer([w]))
            assert row(state) == tool(w)
            kept = state.format.grid
            assert kept is not None
            assert (kept.levels, kept.lowest) == (H - 1, -H)
            assert all(-H <= x / kept.step[0, 0] <= H - 1 for x in row(state))


def test_worked_examples() -> None:
    found = {grid: row(AbsMax(bits=4, grid=grid).encode(layer([[-16, 16, 5]]))) for grid in ("full_range", "clipped")}
    step = Fraction(32, 15)
    assert found == {"full_range": [-8 * step, 7 * step, 2 * step], "clipped": [-16, 14, 4]}
    assert row(AbsMax(bits=4, grid="narrow_step").encode(layer([[-7, 7, 5]]))) == [-7, 7, 5]


@pytest.mark.parametrize("width", [Fraction(3, 2), Fraction(-3, 2)])
def test_the_nearest_value_on_a_grid_with_more_levels_below(width: Fraction) -> None:
    """Brute force over the values. A negative step mirrors the grid."""
    step = np.array([[width]], dtype=object)
    grid = Grid(step, 1, 1, below=1)
    values = [width * k for k in (-2, -1, 0, 1)]
    for x in (Fraction(n, 8) for n in range(-40, 41)):
        least = min(abs(x - value) for value in values)
        near = [value for value in values if abs(x - value) == least]
        assert grid.nearest(x, (0, 0), Choices()) == min(near, key=lambda value: (value / width) % 2)


def quantized(w: tuple[int, ...], below: int, reach: Fraction, levels: int, rounding: str) -> list[Fraction]:
    step = Fraction(max(map(abs, w))) / reach

    def level(x: int) -> int:
        ratio = x / step
        low = floor(ratio)
        if ratio - low != Fraction(1, 2):
            return floor(ratio + Fraction(1, 2))
        return {"half_up": low + 1, "half_even": low + low % 2, "half_away": low + (x > 0)}[rounding]

    return [step * min(max(level(x), -levels - below), levels) if step else step for x in w]


def pruned(w: Any, count: int) -> list[Any]:
    gone = sorted(range(len(w)), key=lambda i: (abs(w[i]), i))[:count]
    return [0 if i in gone else x for i, x in enumerate(w)]


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away"])
@pytest.mark.parametrize(
    ("grid", "below", "beyond", "holds"),
    [("full_range", 1, "1/2", True), ("narrow_step", 1, "0", True), ("clipped", 1, "1", False)],
)
def test_pruning_first_against_every_small_layer(
    grid: str, below: int, beyond: str, holds: bool, rounding: str
) -> None:
    """What is proved for any shape, on grids written anew here: every group of three integers up to 6."""
    worse = set[int]()
    for levels, w in itertools.product((1, 3), itertools.product(range(-6, 7), repeat=3)):
        made = [below, levels + Fraction(beyond), levels, rounding]
        for count in (1, 2):
            first = quantized(tuple(pruned(w, count)), *made)  # type: ignore[arg-type]
            second = pruned(quantized(w, *made), count)  # type: ignore[arg-type]
            for p in (1, 2):
                losses = [sum(abs(x - y) ** p for x, y in zip(w, v, strict=True)) for v in (first, second)]
                worse |= {p} if losses[0] > losses[1] else set()
    assert worse == (set() if holds else {1, 2})
