from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from compcomp.kernels import _shared
from compcomp.kernels.prune_rows import kernel
from compcomp.layers.state import Factors
from compcomp.techniques import PruneRows
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("score", "norm"), [("l1", 1), ("l2", 2)])
def test_against_torch(device: str, score: str, norm: int) -> None:
    """torch.nn.utils.prune.ln_structured drops the same rows."""
    layer = tensors((24, 40), device)
    module = torch.nn.Linear(40, 24, bias=False, device=device)
    module.weight = torch.nn.Parameter(layer.weight.clone())
    prune.ln_structured(module, "weight", amount=9, n=norm, dim=0)
    after = kernel(PruneRows("3/8", score=score), layer)
    assert torch.equal(after.weight, module.weight)
    assert torch.equal(after.format.mask, module.weight_mask.bool())


@pytest.mark.parametrize("device", DEVICES)
def test_the_rows_that_go_send_the_least_on(device: str) -> None:
    layer = tensors((24, 40), device, torch.float64)
    assert layer.gram is not None
    sent = torch.einsum("ij,jk,ik->i", layer.weight, layer.gram, layer.weight).reshape(-1, 4).sum(dim=1)
    after = kernel(PruneRows("1/2", size=4, score="activation"), layer)
    assert after.format.cut is not None
    expected = torch.ones(6, dtype=torch.bool, device=device)
    expected[sent.argsort()[:3]] = False
    assert torch.equal(after.format.cut.rows, expected.repeat_interleave(4))
    assert bool(after.format.cut.columns.all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_scored_in_double(device: str, dtype: Any) -> None:
    layer = tensors((16, 64), device, dtype)
    assert layer.gram is not None
    double = replace(layer, weight=layer.weight.double(), reference=layer.reference.double(), gram=layer.gram.double())
    for score in ("l1", "l2", "activation"):
        after, exact = (kernel(PruneRows("1/2", score=score), state) for state in (layer, double))
        assert after.weight.dtype is dtype
        assert torch.equal(after.weight.double(), exact.weight)


def test_the_low_rank_term() -> None:
    layer = tensors((8, 8), dtype=torch.float64)
    left, right = torch.ones(8, 1, dtype=torch.float64), torch.full((1, 8), 9.0, dtype=torch.float64)
    left[3] = 0
    start = replace(layer, format=replace(layer.format, factors=Factors(left, right)))
    after = kernel(PruneRows("1/8"), start)
    assert not bool(after.format.cut.rows[3]) and after.format.cut.rows.sum() == 7  # type: ignore[union-attr]
    more = kernel(PruneRows("1/2"), after)
    assert not more.effective()[~more.format.cut.rows].any()  # type: ignore[union-attr]
    assert more.format.factors is not None and more.format.factors.left.sum() == 4
    assert left.sum() == 7, "the factor that was given stays"


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((33, 64), dtype=torch.float64)
    for score in ("l1", "activation"):
        whole = kernel(PruneRows("1/2", score=score, size=3), layer)
        with monkeypatch.context() as patch:
            patch.setattr(_shared, "MEMORY", 32 * 64 * 4)
            assert torch.equal(kernel(PruneRows("1/2", score=score, size=3), layer).weight, whole.weight)


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    refused(lambda: kernel(PruneRows("1/2", size=3), layer), "4 rows", "groups of 3")
    refused(lambda: kernel(PruneRows("1/2", score="activation"), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(PruneRows("1/2"), replace(layer, weight=layer.weight / 0)), "nan or infinite")
