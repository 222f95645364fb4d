from __future__ import annotations

from dataclasses import replace

from compcomp.encodings.apply_mask import ApplyMask
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.minmax import MinMax
from compcomp.layers.state import Factors, Format
from tests.helpers import layer, matrix, row


def test_without_a_mask_nothing_changes() -> None:
    state = layer([[1, 2], [3, 4]])
    assert ApplyMask().encode(state) is state


def test_what_was_pruned_goes_back_to_zero() -> None:
    pruned = Magnitude(sparsity="1/2").encode(layer([[3, 1, -1, -2]]))
    broken = MinMax(bits=2, zero="none").encode(pruned)
    after = ApplyMask().encode(broken)
    assert row(after) == [3, 0, 0, -2]
    assert after.format.mask is broken.format.mask
    assert after.format.grid is broken.format.grid


def test_masks_of_several_steps_are_all_restored() -> None:
    prune = Magnitude(sparsity="1/4")
    other = Magnitude(sparsity="1/4", of="dense", ties="all")
    state = ApplyMask().encode((prune >> MinMax(bits=2, zero="none") >> other).encode(layer([[4, -4, 1, -2]])))
    assert [w == 0 for w in row(state)] == [False, False, True, False]


def test_factors_stay_and_a_rank_is_lost() -> None:
    factors = Factors(matrix([[1]]), matrix([[1, 1]]))
    mask = matrix([[1, 0]]).astype(bool).astype(object)
    start = replace(layer([[1, 2]]), format=Format(mask, None, factors, rank=1))
    after = ApplyMask().encode(start)
    assert row(after) == [1, 0]
    assert after.format.factors is factors and after.format.rank is None
