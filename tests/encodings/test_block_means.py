from __future__ import annotations

from typing import Any

import pytest

from compcomp.encodings.block_means import BlockMeans
from compcomp.language.loss import LOSSES
from compcomp.techniques import Magnitude
from tests.helpers import HUGE, layer, refused


def test_the_means_of_what_was_pruned() -> None:
    start = Magnitude("1/2", pattern="2:4").encode(layer([[5, 1, 3, 7], [4, -4, 2, 2]]))
    after = BlockMeans(2).encode(start)
    assert after.format.factors is not None
    assert after.format.factors.left.tolist() == [[0.5, 1.5], [0, 2]]
    assert after.format.factors.right.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert after.weight is start.weight and after.format.mask is start.format.mask
    losses = [LOSSES["weight_l2"].of(s) for s in (start, after)]
    assert losses == [1 + 9 + 4 + 4, 18 - 2 * (0.25 + 2.25) - 2 * 4]


def test_a_run_a_column_mends_everything() -> None:
    start = Magnitude("1/2").encode(layer([[5, 1, 3, 7]]))
    assert BlockMeans(4).encode(start).effective().tolist() == [[5, 1, 3, 7]]
    once = BlockMeans(1).encode(start)
    assert BlockMeans(1).encode(once).effective().tolist() == once.effective().tolist()


def test_what_fits() -> None:
    assert BlockMeans(3).unit == 3 and BlockMeans(3).fits((1, 6)) and not BlockMeans(3).fits((1, 4))
    refused(lambda: BlockMeans(3).encode(layer([[1, 2]])), "divide into 3 runs")


@pytest.mark.parametrize("given", [0, -1, 2**16 + 1, 1.0, "1", None, True, HUGE])
def test_bad_rank(given: Any) -> None:
    refused(lambda: BlockMeans(given), "BlockMeans.rank")
