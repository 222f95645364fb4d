from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.hadamard import Hadamard
from compcomp.errors import NotExactError
from compcomp.language.loss import LOSSES
from compcomp.layers.basis import Rotation
from compcomp.layers.state import Cut, LayerState
from compcomp.techniques import AbsMax, Magnitude, TruncatedSVD
from tests.helpers import HUGE, layer, refused


def test_four_weights() -> None:
    """H of side 4 over 2: sums and differences with signs ++++, +-+-, ++--, +--+."""
    before = layer([[1, 2, 3, 4]], [[1], [0], [0], [1]])
    after = Hadamard().encode(before)
    assert after.weight.tolist() == [[5, -1, -2, 0]]
    assert after.working().inputs.tolist() == [[1], [0], [0], [1]]  # type: ignore[union-attr]
    assert after.effective().tolist() == before.weight.tolist()
    assert all(loss.of(after) == 0 for loss in LOSSES.values())


@pytest.mark.parametrize("block", [4, 16, None])
def test_it_is_orthogonal_and_its_own_inverse(block: int | None) -> None:
    matrix = Rotation(block or 16).weights(np.array([[Fraction(int(i == j)) for j in range(16)] for i in range(16)]))
    assert (matrix == matrix.T).all() and (matrix @ matrix == np.eye(16, dtype=int)).all()
    assert {abs(x) for x in matrix.ravel()} == ({0} if block == 4 else set()) | {Fraction(1, 2 if block == 4 else 4)}
    twice = (Hadamard(block) >> Hadamard(block)).encode(layer([list(range(16))]))
    assert twice.format.transform is None and twice.weight.tolist() == [list(range(16))]


def test_blocks_are_mixed_apart() -> None:
    after = Hadamard(4).encode(layer([[1, 1, 1, 1, 2, 0, 0, 0]]))
    assert after.weight.tolist() == [[2, 0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("columns", [2, 8])
def test_other_sides_are_not_exact(columns: int) -> None:
    with pytest.raises(NotExactError, match="not rational"):
        Hadamard().encode(layer([[1] * columns]))


def test_what_it_spreads_is_easier_to_round() -> None:
    start = layer([[8, 0, 1, -1]], np.eye(4, dtype=int).tolist())
    lost = LOSSES["output_l2"].of
    assert lost((Hadamard() >> AbsMax(3)).encode(start)) < lost(AbsMax(3).encode(start))


def test_what_survives() -> None:
    start = layer([[1, 2, 3, 4], [5, 6, 7, 8]])
    low = (TruncatedSVD(2) >> Hadamard()).encode(start)
    assert low.format.rank == 2
    pruned = (Magnitude(Fraction(1, 2), pattern="2:4") >> AbsMax(4) >> Hadamard()).encode(start)
    assert (pruned.format.mask, pruned.format.pattern, pruned.format.grid) == (None, None, None)
    cut = Cut(np.array([True, False]), np.array([True, True, False, True]))
    form = replace(start.format, cut=cut, mask=np.outer(cut.rows, cut.columns))
    after = Hadamard().encode(replace(start, weight=start.weight * form.mask, format=form))
    assert after.format.cut is not None and after.format.mask is not None
    assert after.format.cut.rows.tolist() == [True, False] and after.format.cut.columns.tolist() == [True] * 4
    assert after.format.mask.tolist() == [[True] * 4, [False] * 4]
    assert (after.weight[1] == 0).all() and (after.weight[0] != 0).all()


def test_pruning_acts_on_the_rotated_weight() -> None:
    after = (Hadamard() >> Magnitude(Fraction(1, 2))).encode(layer([[1, 2, 3, 4]]))
    assert after.weight.tolist() == [[5, 0, -2, 0]]
    assert after.effective().tolist() == [[Fraction(3, 2), Fraction(3, 2), Fraction(7, 2), Fraction(7, 2)]]


def test_dense_scores_are_of_the_rotated_dense_weight() -> None:
    state = Hadamard().encode(layer([[1, 2, 3, 4]]))
    state = replace(state, weight=state.weight * 0 + Fraction(1))
    after = LayerState.taken_back(state, view := state.working(), Magnitude(Fraction(1, 2), of="dense").encode(view))
    assert after.weight.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("given", [3, 6, 0, -4, "4", True, HUGE])
def test_bad_blocks(given: Any) -> None:
    refused(lambda: Hadamard(given), "Hadamard.block")


def test_layers_it_does_not_fit() -> None:
    refused(lambda: Hadamard().encode(layer([[1, 2, 3]])), "3 features", "power of two")
    refused(lambda: Hadamard(4).encode(layer([[1] * 6])), "6 features", "blocks of 4")
