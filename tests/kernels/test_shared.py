"""Selections by scores that tie, nearly tie, or mislead a sample, against stable sorts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.kernels import wanda
from compcomp.kernels._shared import MANY, smallest
from compcomp.layers.state import LayerState
from compcomp.techniques import Wanda


def least(scores: Any, count: int, ties: str) -> Any:
    """Brute force: the smallest of each row, the lowest index first among equal ones."""
    order = np.argsort(scores, axis=1, kind="stable")
    taken = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(taken, order[:, :count], True, axis=1)
    return taken if ties != "all" else scores <= np.take_along_axis(scores, order[:, count - 1 : count], axis=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", ["first", "all"])
def test_two_of_four_where_some_groups_tie(ties: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (512, 4), generator=generator).to(dtype)
    scores[::2] = torch.rand(256, 4, generator=generator, dtype=dtype)
    assert smallest(scores, 2, ties).tolist() == least(scores.numpy(), 2, ties).tolist()


N = 2 * MANY + 37

WHOLES: dict[str, Callable[[torch.Generator], torch.Tensor]] = {
    "random": lambda g: torch.randn(N, generator=g),
    "few values": lambda g: torch.randint(-3, 4, (N,), generator=g).float(),
    "one value": lambda g: torch.ones(N),
    "in order": lambda g: torch.arange(N).float(),
    "in the other order": lambda g: -torch.arange(N).float(),
    "the sample holds the largest": lambda g: torch.where(
        torch.arange(N) % (N // (8 * int(N**0.5)) | 1) == 0, 10.0, torch.rand(N, generator=g)
    ),
    "many equal at the threshold": lambda g: torch.rand(N, generator=g).clamp_(0.3, 0.7),
    "with infinities": lambda g: torch.where(torch.rand(N, generator=g) < 0.6, torch.inf, 1.0),
}


@pytest.mark.parametrize("kind", WHOLES)
@pytest.mark.parametrize("ties", ["first", "all"])
def test_the_smallest_of_many(kind: str, ties: str) -> None:
    scores = WHOLES[kind](torch.Generator().manual_seed(1))[None]
    for count in (1, 2, N // 3, N // 2, N - 1):
        for dtype in (torch.float32, torch.float64):
            found = smallest(scores.to(dtype), count, ties)
            assert torch.equal(found, torch.from_numpy(least(scores.numpy(), count, ties))), count


def test_a_sample_bounds_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all scores are sorted, or the fast path is gone."""
    sizes: list[int] = []
    plain = torch.Tensor.kthvalue

    def counted(scores: torch.Tensor, *given: Any, **more: Any) -> Any:
        sizes.append(scores.numel())
        return plain(scores, *given, **more)

    monkeypatch.setattr(torch.Tensor, "kthvalue", counted)
    smallest(torch.randn(1, N, generator=torch.Generator().manual_seed(0)), N // 2, "first")
    assert sizes and max(sizes) < N // 4


@pytest.mark.parametrize("ties", ["first", "all", "any"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-70, 2.0**-140, 2.0**100])
@pytest.mark.parametrize("norm", [1.0, 1e-12, 1e18])
def test_products_that_float32_cannot_order(ties: str, scale: float, norm: float) -> None:
    """The second and third of a group differ by a few units in the last place, or tie."""
    generator = torch.Generator().manual_seed(7)
    norms2 = (torch.rand(64, generator=generator, dtype=torch.float64) + 0.5) * norm
    norms2[8:12] = norms2[8]
    norms2[12:16] = 0
    weight = torch.randn(256, 64, generator=generator)
    others = weight.view(256, 16, 4)
    sizes = norms2.sqrt().view(16, 4)
    for k in (1, 2):  # like the weight before it, and then a step up or down
        others[..., k] = (others[..., 0].double() * sizes[:, 0] / sizes[:, k].clamp(min=1e-30)).float()
    moved = torch.randint(-1, 2, others[..., 1].shape, generator=generator)
    others[..., 1] = torch.where(moved == 0, others[..., 1], others[..., 1].nextafter(moved * torch.inf))
    weight = torch.nan_to_num(weight * scale, 0.0, 1.0, -1.0).clamp_(-1e30, 1e30)
    layer = LayerState.dense(weight, gram=torch.diag(norms2))
    expected = least((weight.double() ** 2 * norms2).numpy().reshape(-1, 4), 2, ties)
    quick = weight.abs() * (norms2 / norms2.max()).sqrt().float()
    assert (least(quick.numpy().reshape(-1, 4), 2, ties) != expected).any()
    after = wanda.kernel(Wanda("1/2", pattern="2:4", ties=ties), layer)
    mask: Any = after.format.mask
    assert torch.equal(mask, torch.from_numpy(~expected).reshape(256, 64))
    assert torch.equal(after.weight, weight * mask)
