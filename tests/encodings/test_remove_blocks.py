from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.remove_blocks import hidden, signed_square
from compcomp.language.text import parse_claim, parse_sequence
from compcomp.language.verdict import Status
from compcomp.proving.prove import prove
from compcomp.techniques import Magnitude, RemoveBlocks
from compcomp.terms import RandomChoices
from tests.helpers import layer, matrix, refused

TURN, GROW, SMALL, BACK = [[0, -1], [1, 0]], [[1, 0], [0, 1]], [["1/8", 0], [0, 0]], [[-2, 0], [0, -2]]
"""Branches of h + f(h): a turn by 45 degrees, twice the state, nearly nothing, the state reversed."""
EYE = [[1, 0], [0, 1]]


def blocks(stack: list[Any], technique: RemoveBlocks, inputs: Any = EYE, seed: int | None = None) -> list[bool]:
    """Which blocks stay."""
    start = layer([row for branch in stack for row in branch], inputs, None if seed is None else RandomChoices(seed))
    after = technique.encode(start)
    cut = after.format.cut
    assert cut is not None
    kept = cut.rows.reshape(len(stack), -1)
    assert all(len(set(row)) == 1 for row in kept)
    assert all(after.weight[~cut.rows.astype(bool)].ravel() == 0)
    assert np.array_equal(after.weight[cut.rows.astype(bool)], start.weight[cut.rows.astype(bool)])
    return [bool(row[0]) for row in kept]


def test_the_least_influence_goes() -> None:
    """Growing changes no direction; a small change of it comes next; a reversal has the most."""
    assert blocks([TURN, SMALL, BACK, GROW], RemoveBlocks(count=1)) == [True, True, True, False]
    assert blocks([TURN, SMALL, BACK, GROW], RemoveBlocks(count=2)) == [True, False, True, False]
    assert blocks([TURN, SMALL, BACK, GROW], RemoveBlocks(count=3)) == [False, False, True, False]
    assert blocks([TURN, SMALL, BACK, GROW], RemoveBlocks(sparsity="1/2")) == [True, False, True, False]
    assert blocks([TURN, SMALL, BACK], RemoveBlocks(sparsity="1/4")) == [True] * 3


def test_consecutive_blocks_of_least_angle_go() -> None:
    """Two quarter turns and two back: each alone turns by 45 degrees, a pair in the middle not at all."""
    back = [[0, 1], [-1, 0]]
    assert blocks([TURN, TURN, back, back], RemoveBlocks(count=2, score="angular")) == [True, False, False, True]
    assert blocks([TURN, TURN, back, back], RemoveBlocks(count=1, score="angular")) == [False, True, True, True]
    later = {tuple(blocks([TURN, TURN], RemoveBlocks(count=1, ties="any"), seed=k)) for k in range(20)}
    assert later == {(False, True), (True, False)}


def test_cosines_are_those_of_the_states() -> None:
    """Signed squares of the exact cosines against floats, with correlated inputs."""
    inputs = matrix([[1, 2, 0], [0, 1, 3]])
    stack = matrix([[0, -1], [1, 0], ["1/2", 3], [0, -2], [-5, 0], [0, -5]])
    maps = hidden(stack)
    state = inputs.astype(float)
    for k in range(3):
        after = state + stack[2 * k : 2 * k + 2].astype(float) @ state
        cosine = float((state * after).sum() / math.sqrt((state**2).sum() * (after**2).sum()))
        exact = float(signed_square(maps[k], maps[k + 1], inputs @ inputs.T))
        assert math.isclose(exact, cosine * abs(cosine), rel_tol=1e-12)
        state = after


def test_dead_states_have_no_direction() -> None:
    """Where all states are zero every cosine is 0, and the first block goes."""
    assert blocks([TURN, SMALL], RemoveBlocks(count=1), [[0], [0]]) == [False, True]


def test_a_block_that_is_gone_goes_first() -> None:
    first = RemoveBlocks(count=1).encode(layer([*TURN, *SMALL, *BACK], EYE))
    again = RemoveBlocks(count=1).encode(first)
    assert again.weight.tolist() == first.weight.tolist()
    both = RemoveBlocks(count=1, score="angular").encode(first)
    assert both.weight.tolist() == first.weight.tolist()


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        ("RemoveBlocks(count=1) >> Magnitude(sparsity=1/2) keeps mask", Status.PROVED),
        ("RemoveBlocks(count=1) >> RemoveBlocks(count=1, score='angular') keeps shape", Status.PROVED),
        ("RemoveBlocks(count=1) >> MinMax(bits=2, zero='none') keeps mask", Status.REFUTED),
    ],
)
def test_claims(claim: str, status: Status) -> None:
    scope = (3, 1) if status is Status.REFUTED else "any"
    assert prove(parse_claim(claim), scope=scope).status is status


def test_text_and_parameters() -> None:
    text = "RemoveBlocks(sparsity=1/4, score='angular')"
    assert str(parse_sequence(text)) == text
    assert parse_sequence("RemoveBlocks(count=2)").techniques == (RemoveBlocks(count=2),)
    refused(RemoveBlocks, "neither")
    refused(lambda: RemoveBlocks(count=1, sparsity=Fraction(1, 2)), "both")
    for wrong in (0, 1, -1, "half"):
        refused(lambda wrong=wrong: RemoveBlocks(sparsity=wrong), "sparsity")
    refused(lambda: RemoveBlocks(count=0), "count")
    refused(lambda: RemoveBlocks(count=1, score="perplexity"), "'influence'")
    refused(lambda: RemoveBlocks(count=1, ties="all"), "'first'")
    refused(lambda: blocks([TURN, SMALL], RemoveBlocks(count=2)), "2 blocks")
    refused(lambda: RemoveBlocks(count=1).encode(layer([[1, 2, 3]], [[1], [1], [1]])), "square blocks")
    refused(lambda: RemoveBlocks(count=1).encode(Magnitude("1/2").encode(layer([*TURN, *SMALL]))), "inputs")
