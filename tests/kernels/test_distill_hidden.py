"""On a layer alone it is tested with DistillLogits, on models in tests/models/test_whole.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.kernels.distill_hidden import kernel_model
from compcomp.layers.state import LayerState
from compcomp.layers.whole import Outputs
from compcomp.techniques import DistillHidden
from tests.helpers import NoModel, tensors


class Line(NoModel):
    """A model of one layer and no blocks: what comes out of it are its hidden states."""

    def __init__(self, real: torch.Tensor | None) -> None:
        self.states = {"only": tensors((3, 4), dtype=torch.float64)}
        self.states["only"] = LayerState(self.states["only"].weight * 0.5, self.states["only"].reference)
        self.batches = [torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).double()]
        self.real = real

    def forward(self, batch: torch.Tensor, weights: Any = None) -> Outputs:
        weight = self.states["only"].reference if weights is None else weights["only"]
        return Outputs(None, (batch, batch @ weight.T), self.real)


def relative(line: Line, weight: torch.Tensor) -> float:
    real = torch.ones(2, 6, dtype=torch.bool) if line.real is None else line.real
    wanted, found = (line.batches[0][real] @ w.T for w in (line.states["only"].reference, weight))
    return float((wanted - found).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("padded", [False, True])
def test_against_a_plain_loop(padded: bool) -> None:
    """The same optimizer on the loss written out; padding counts for nothing."""
    real = torch.arange(6).expand(2, 6) < 4 if padded else None
    line = Line(real)
    after = kernel_model(DistillHidden(10, rate="1/50"), line)["only"].weight
    weight = line.states["only"].weight.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=0.02, weight_decay=0.0)
    for step in range(10):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 10)
        optimizer.zero_grad()
        tokens = line.batches[0] if real is None else line.batches[0][real]
        wanted = tokens @ line.states["only"].reference.T
        ((tokens @ weight.T - wanted).square().sum() / wanted.square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(after, weight.detach(), rtol=1e-10, atol=1e-12)
    assert relative(line, after) < relative(line, line.states["only"].weight)
