from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import prune

from compcomp.kernels import _shared
from compcomp.kernels.prune_columns import kernel
from compcomp.layers.state import Factors
from compcomp.techniques import PruneColumns
from tests.helpers import DEVICES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("score", "norm"), [("l1", 1), ("l2", 2)])
def test_against_torch(device: str, score: str, norm: int) -> None:
    """torch.nn.utils.prune.ln_structured drops the same columns."""
    layer = tensors((24, 40), device)
    module = torch.nn.Linear(40, 24, bias=False, device=device)
    module.weight = torch.nn.Parameter(layer.weight.clone())
    prune.ln_structured(module, "weight", amount=15, n=norm, dim=1)
    after = kernel(PruneColumns("3/8", score=score), layer)
    assert torch.equal(after.weight, module.weight)
    assert torch.equal(after.format.mask, module.weight_mask.bool())


@pytest.mark.parametrize("device", DEVICES)
def test_the_columns_that_go_hear_the_least(device: str) -> None:
    layer = tensors((24, 40), device, torch.float64)
    assert layer.gram is not None
    after = kernel(PruneColumns("1/2", size=5, score="activation"), layer)
    expected = torch.ones(8, dtype=torch.bool, device=device)
    expected[layer.gram.diagonal().reshape(8, 5).sum(dim=1).argsort()[:4]] = False
    assert after.format.cut is not None
    assert torch.equal(after.format.cut.columns, expected.repeat_interleave(5))
    assert bool(after.format.cut.rows.all())


def test_the_low_rank_term() -> None:
    layer = tensors((8, 8), dtype=torch.float64)
    left, right = torch.ones(8, 1, dtype=torch.float64), torch.full((1, 8), 9.0, dtype=torch.float64)
    right[0, 3] = 0
    start = replace(layer, format=replace(layer.format, factors=Factors(left, right)))
    more = kernel(PruneColumns("1/2"), start)
    assert more.format.cut is not None and not bool(more.format.cut.columns[3])
    assert not more.effective()[:, ~more.format.cut.columns].any()
    assert right.sum() == 63, "the factor that was given stays"


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64), dtype=torch.float64)
    whole = kernel(PruneColumns("1/2", size=4, score="l2"), layer)
    monkeypatch.setattr(_shared, "MEMORY", 32 * 64 * 4)
    assert torch.equal(kernel(PruneColumns("1/2", size=4, score="l2"), layer).weight, whole.weight)


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    refused(lambda: kernel(PruneColumns("1/2", size=3), layer), "8 columns", "groups of 3")
    refused(lambda: kernel(PruneColumns("1/2", score="activation"), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(PruneColumns("1/2"), replace(layer, weight=layer.weight / 0)), "nan or infinite")
