"""Layers and checks that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.errors import InputError
from compcomp.layers.state import LayerState
from compcomp.layers.whole import Group, Outputs
from compcomp.terms import Choices, RandomChoices

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
HALVES = [torch.float16, torch.bfloat16]
HUGE = pytest.param(10**5000, id="huge")
MINUS_HUGE = pytest.param(-(10**5000), id="minus huge")


def matrix(rows: Any) -> Any:
    """An object array of Fractions from nested lists of ints, Fractions or texts such as "1/3"."""
    return np.array([[Fraction(x) for x in row] for row in rows], dtype=object)


def layer(weight: Any, inputs: Any = None, choices: Choices | None = None) -> LayerState:
    """A dense exact layer. ``weight``: out x in. ``inputs``: in x tokens."""
    return LayerState.dense(matrix(weight), None if inputs is None else matrix(inputs), choices=choices)


def row(state: LayerState) -> list[Any]:
    """The first row of the weight."""
    return list(state.weight[0])


def outcomes(run: Callable[[LayerState], LayerState], weight: Any, seeds: int = 60) -> set[tuple[Any, ...]]:
    """The weights of one row that some free choice leads to."""
    return {tuple(row(run(layer(weight, choices=RandomChoices(seed))))) for seed in range(seeds)}


def refused(make: Callable[[], Any], *parts: str) -> None:
    """The call raises InputError with a message of one line that holds the parts."""
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert all(part in message for part in parts), message


class NoModel:
    """A whole model of which a test defines what the tested kernel uses."""

    states: dict[str, LayerState]
    batches: list[Any]

    def forward(self, batch: Any, weights: Any = None) -> Outputs:
        raise NotImplementedError

    def generated(self, seed: int) -> list[Any]:
        raise NotImplementedError

    def neurons(self) -> list[Group]:
        raise NotImplementedError

    def heads(self) -> list[Group]:
        raise NotImplementedError

    def blocks(self) -> list[list[str]]:
        raise NotImplementedError


def tensors(shape: tuple[int, int], device: str = "cpu", dtype: Any = torch.float32, seed: int = 0) -> LayerState:
    """A random dense layer of tensors, out x in, with the Gram matrix of random correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(device, dtype)
    mixing = torch.randn(shape[1], shape[1], generator=generator) / shape[1] ** 0.5
    inputs = (mixing @ torch.randn(shape[1], 3 * shape[1], generator=generator)).to(device, dtype)
    return LayerState.dense(weight, gram=(inputs.float() @ inputs.float().T).to(dtype))


def correlated(device: str, seed: int) -> LayerState:
    """Inputs with a large part in common, so that which weights go depends on which others stay."""
    layer = tensors((16, 32), device, torch.float64, seed)
    assert layer.gram is not None
    shared = torch.randn(32, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)
    return replace(layer, gram=layer.gram + 30 * shared @ shared.T)


def loss(state: LayerState) -> float:
    """The squared output error, in float64."""
    error = (state.reference.double() - state.weight.double()).cpu()
    if (factors := state.format.factors) is not None:
        error -= (factors.left.double() @ factors.right.double()).cpu()
    assert state.gram is not None
    return float(((error @ state.gram.double().cpu()) * error).sum())
