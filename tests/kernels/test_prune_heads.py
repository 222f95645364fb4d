from __future__ import annotations

from fractions import Fraction

import torch

from compcomp.kernels.prune_heads import kernel, kernel_model
from compcomp.layers.whole import Group, Part
from compcomp.techniques import PruneHeads
from tests.helpers import NoModel, tensors


class Fake(NoModel):
    """Two key and value heads of two rows, each shared by two query heads."""

    def __init__(self) -> None:
        shapes = {"q": (8, 5), "k": (4, 5), "v": (4, 5), "o": (5, 8)}
        self.states = {
            name: tensors(shape, dtype=torch.float64, seed=seed) for seed, (name, shape) in enumerate(shapes.items())
        }

    def heads(self) -> list[Group]:
        return [Group("attn", 2, (Part("q", "out", 4), Part("k", "out", 2), Part("v", "out", 2), Part("o", "in", 4)))]


def test_heads_that_share_keys_and_values_go_together() -> None:
    whole = Fake()
    after = kernel_model(PruneHeads(Fraction(1, 2), score="l1"), whole)
    q, k, v, o = (state.weight.abs() for state in whole.states.values())
    scores = [
        float(q[4 * u : 4 * u + 4].sum() + k[2 * u : 2 * u + 2].sum() + v[2 * u : 2 * u + 2].sum())
        + float(o[:, 4 * u : 4 * u + 4].sum())
        for u in range(2)
    ]
    kept = [u != scores.index(min(scores)) for u in range(2)]
    for name, size in (("q", 4), ("k", 2), ("v", 2)):
        cut = after[name].format.cut
        assert cut is not None and cut.rows.tolist() == [keep for keep in kept for _ in range(size)]
    cut = after["o"].format.cut
    assert cut is not None and cut.columns.tolist() == [keep for keep in kept for _ in range(4)]


def test_one_stack() -> None:
    layer = tensors((4, 6))
    after = kernel(PruneHeads(Fraction(1, 4)), layer)
    assert after.format.cut is not None
    assert int((~after.format.cut.rows).nonzero()) == int(layer.weight.square().sum(1).argmin())
