"""What kernels that round to codebooks share: brute force over all values."""

from __future__ import annotations

from typing import Any

import torch

from compcomp.language.steps import CodebookMap
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState
from tests.helpers import tensors


def assert_nearest(technique: Technique, device: str, shape: tuple[int, int] = (6, 64)) -> None:
    """Every weight of a random layer goes to the value of its grid at the least distance, in the step of its group."""
    layer = tensors(shape, device, torch.float64)
    after = technique.kernel()(technique, layer)
    (step_map,) = technique.steps()
    assert isinstance(step_map, CodebookMap)
    groups = layer.weight.reshape(-1, step_map.partition.group_size(shape))
    largest = groups.abs().amax(dim=1, keepdim=True)
    if step_map.scale == "power_of_two":
        step = torch.exp2(
            torch.floor(torch.log2(largest)) - float(torch.log2(torch.tensor(float(step_map.largest))).floor())
        )
    else:
        step = largest / float(step_map.largest)
    step = step.expand(groups.shape).reshape(shape)
    codes = torch.tensor([float(code) for code in step_map.codes], dtype=torch.float64, device=device)
    grid = step[..., None] * codes
    nearest = grid.gather(2, (grid - layer.weight[..., None]).abs().argmin(dim=2, keepdim=True))[..., 0]
    torch.testing.assert_close(after.weight, nearest, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.format.grid.step, step, rtol=1e-12, atol=0)
    assert after.format.grid.scales == len(groups)
    assert after.format.grid.codes == step_map.codes


def assert_midpoints(technique: Technique, weight: Any, expected: Any, device: str, dtype: Any) -> None:
    after = technique.kernel()(technique, LayerState.dense(torch.tensor([weight], device=device).to(dtype)))
    assert after.weight.dtype is dtype
    assert after.weight.tolist() == [expected]
