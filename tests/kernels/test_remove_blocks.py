from __future__ import annotations

import pytest
import torch

from compcomp.kernels.remove_blocks import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import RemoveBlocks
from tests.helpers import DEVICES, refused


def stack(blocks: int, width: int, device: str = "cpu") -> tuple[LayerState, torch.Tensor]:
    generator = torch.Generator().manual_seed(blocks)
    weight = 0.3 * torch.randn(blocks * width, width, generator=generator, dtype=torch.float64)
    inputs = torch.randn(width, 30, generator=generator, dtype=torch.float64)
    return LayerState.dense(weight.to(device), inputs.to(device)), inputs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_against_hidden_states(device: str, count: int) -> None:
    """The cosines of the states themselves, one after another, as the papers have them but over all tokens."""
    layer, inputs = stack(6, 5, device)
    states = [inputs]
    for branch in layer.weight.cpu().split(5):
        states.append(states[-1] + branch @ states[-1])

    def angle(one: torch.Tensor, other: torch.Tensor) -> float:
        cosine = (one * other).sum() / (one.norm() * other.norm())
        return float(torch.arccos(cosine) / torch.pi)

    single = torch.tensor([angle(states[b], states[b + 1]) for b in range(6)])
    after = kernel(RemoveBlocks(count=count), layer)
    assert after.format.cut is not None
    gone = (~after.format.cut.rows.reshape(6, 5)).all(1).nonzero()[:, 0].tolist()
    assert gone == sorted(single.argsort()[:count].tolist())
    stretches = [angle(states[b], states[b + count]) for b in range(6 - count + 1)]
    after = kernel(RemoveBlocks(count=count, score="angular"), layer)
    assert after.format.cut is not None
    gone = (~after.format.cut.rows.reshape(6, 5)).all(1).nonzero()[:, 0].tolist()
    first = stretches.index(min(stretches))
    assert gone == list(range(first, first + count))


def test_wrong_use() -> None:
    layer, _ = stack(3, 2)
    refused(lambda: kernel(RemoveBlocks(count=3), layer), "3 blocks")
    refused(lambda: kernel(RemoveBlocks(count=1), LayerState.dense(torch.ones(4, 2))), "calibration inputs")
