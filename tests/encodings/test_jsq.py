from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.jsq import JSQ, Score
from compcomp.encodings.wanda import Wanda
from compcomp.errors import NotExactError
from compcomp.layers.state import LayerState
from tests.helpers import layer, matrix, refused, row

HERE: list[list[int]] = [[3, 4], [0, -4], [-1, 1]]
"""Three features of two tokens: sums of magnitudes 7, 4 and 2, largest 4, 4 and 1."""


def test_the_score_by_hand() -> None:
    """Outputs of (2, 1, 4) are 2 and 8; without the columns one by one -4 and 0, 2 and 12, 6 and 4."""
    scores = Score(Fraction(21, 10), "l1")(layer([[2, 1, 4]], HERE))
    assert scores.tolist() == [[14 + Fraction(84, 10), 4 + 21, 8 + Fraction(42, 10)]]
    assert Score(Fraction(1), "max")(layer([[2, 1, 4]], HERE)).tolist() == [[8 + 4, 4 + 10, 4 + 2]]
    assert Score(Fraction(0), "l2")(layer([[2]], [[3, 4]])).tolist() == [[10]]


def test_one_token_has_no_range_and_gives_the_score_of_wanda() -> None:
    start = layer([[5, -3, 2, 1], [1, -1, 4, 6]], [[1], [-3], [2], [-2]])
    for norm in ("l1", "max", "l2"):
        expected = (Wanda("1/2") >> AbsMax(3)).encode(start)
        assert JSQ("1/2", 3, norm=norm).encode(start).weight.tolist() == expected.weight.tolist()


def test_a_weight_whose_absence_lets_the_output_swing_stays() -> None:
    """The outputs of the first two cancel: without either the range is large, and the third weighs more alone."""
    start = layer([[1, -1, 3]], [[1, -1], [1, -1], [1, 1]])
    assert row(JSQ("1/3", 3, lam=0).encode(start)) == [0, -1, 3]
    assert row(JSQ("1/3", 3).encode(start)) == [1, -1, 0]


@pytest.mark.parametrize("norm", ["l1", "max", "l2"])
@pytest.mark.parametrize(
    ("pattern", "per", "size"), [("unstructured", "row", 8), ("unstructured", "tensor", 24), ("2:4", "row", 4)]
)
def test_against_the_formula_in_floats(norm: str, pattern: str, per: str, size: int) -> None:
    random = np.random.default_rng(1)
    weight, inputs = random.permutation(24).reshape(3, 8) - 11, random.integers(-9, 9, (8, 5))
    inputs[:, 0], norms = 0, {"l1": 1, "max": np.inf, "l2": 2}
    if norm == "l2":  # of whole length: 3, 4 and 12 give 13
        inputs = np.array([random.permutation([3, 4, 12, 0, 0]) for _ in range(8)]) * random.integers(1, 4, (8, 1))
    terms = weight[:, :, None] * inputs  # out x in x tokens
    rest = terms.sum(axis=1, keepdims=True) - terms
    metric = np.abs(weight) * np.linalg.norm(inputs, norms[norm], axis=1) + 2.1 * np.ptp(rest, axis=2)
    pruned = weight.reshape(-1, size).copy()
    order = np.argsort(metric.reshape(-1, size), axis=1, kind="stable")[:, : size // 2]
    np.put_along_axis(pruned, order, 0, axis=1)
    found = JSQ("1/2", 4, pattern=pattern, per=per, norm=norm).encode(layer(weight.tolist(), inputs.tolist()))
    expected = AbsMax(4).encode(layer(pruned.reshape(3, 8).tolist()))
    assert found.weight.tolist() == expected.weight.tolist()
    assert found.format.mask.astype(bool).tolist() == (pruned.reshape(3, 8) != 0).tolist()
    assert found.format.grid is not None and found.format.grid.levels == 7


def test_ties_all_and_scale_groups() -> None:
    start = layer([[1, 1, 4, 8]], [[1], [1], [1], [1]])
    assert row(JSQ("1/4", 4, ties="all").encode(start))[:2] == [0, 0]
    assert row(JSQ("1/4", 4).encode(start))[0] == 0 != row(JSQ("1/4", 4).encode(start))[1]
    assert row(JSQ("1/4", 2, group=2).encode(start)) == [0, 1, 0, 8]


def test_norms_that_are_not_rational() -> None:
    start = layer([[1, 2]], [[1, 1], [2, 0]])
    assert JSQ("1/2", 3).encode(start).format.mask is not None
    with pytest.raises(NotExactError):
        JSQ("1/2", 3, norm="l2").encode(start)


def test_what_it_needs() -> None:
    technique = JSQ("1/2", 3)
    assert technique.needs_inputs and technique.needs_tokens and not Wanda("1/2").needs_tokens
    refused(lambda: technique.encode(layer([[1, 2]])), "no inputs")
    alone = LayerState.dense(matrix([[1, 2]]), gram=matrix([[1, 0], [0, 1]]))
    refused(lambda: technique.encode(alone), "a Gram matrix alone")


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"lam": -1}, "JSQ.lam"),
        ({"lam": None}, "JSQ.lam"),
        ({"norm": "l3"}, "JSQ.norm"),
        ({"per": "column"}, "JSQ.per"),
        ({"pattern": "1:4"}, "JSQ"),
        ({"group": 0}, "JSQ.group"),
        ({"ties": "last"}, "JSQ.ties"),
        ({"rounding": "down"}, "JSQ.rounding"),
        ({"bits": 1}, "JSQ.bits"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: JSQ(**({"sparsity": "1/2", "bits": 4} | parameters)), where)
