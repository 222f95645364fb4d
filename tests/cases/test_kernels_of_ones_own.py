"""What a kernel of one's own may get wrong is said in one line, by `apply` and by `check_encoding` alike."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.technique import Declared, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import each
from compcomp.testing import check_encoding


@dataclass(frozen=True)
class Halved(Technique):
    """Every weight becomes half of itself."""

    declared = Declared(keeps=frozenset({"mask", "factors"}))
    kernel_module = "halving_of_ones_own"

    def encode(self, layer: LayerState) -> LayerState:
        return replace(
            layer,
            weight=each(lambda w: w / 2, layer.weight),
            format=replace(layer.format, grid=None, rank=None),
        )


def made(layer: LayerState, weight: Any = None, **form: Any) -> LayerState:
    weight = layer.weight / 2 if weight is None else weight
    return replace(layer, weight=weight, format=replace(layer.format, **{"grid": None, "rank": None, **form}))


def in_place(layer: LayerState) -> LayerState:
    layer.weight.mul_(0.5)
    return made(layer, layer.weight)


def past_torch(layer: LayerState) -> LayerState:
    layer.weight.data.mul_(0.5)
    return made(layer, layer.weight.clone())


WRONG: dict[str, tuple[Callable[[LayerState], Any], str]] = {
    "nothing": (lambda layer: None, "nothing"),
    "a tensor": (lambda layer: layer.weight / 2, "torch.Tensor"),
    "a tuple": (lambda layer: (layer.weight, layer.format), "a tuple"),
    "the class": (lambda layer: LayerState, "a type"),
    "numpy": (lambda layer: made(layer, (layer.weight / 2).double().numpy()), "numpy.ndarray"),
    "a list": (lambda layer: made(layer, (layer.weight / 2).tolist()), "a list"),
    "no weight": (lambda layer: replace(layer, weight=None), "nothing"),
    "no format": (lambda layer: replace(layer, weight=layer.weight / 2, format=None), "format"),
    "a row": (lambda layer: made(layer, layer.weight[:1] / 2), "shape"),
    "transposed": (lambda layer: made(layer, (layer.weight / 2).reshape(-1)), "shape"),
    "another dtype": (lambda layer: made(layer, (layer.weight / 2).half()), "float16"),
    "integers": (lambda layer: made(layer, layer.weight.int()), "int32"),
    "another device": (lambda layer: made(layer, (layer.weight / 2).to("meta")), "meta"),
    "sparse": (lambda layer: made(layer, (layer.weight / 2).to_sparse()), "sparse"),
    "nan": (lambda layer: made(layer, layer.weight * float("nan")), "not finite"),
    "infinite": (lambda layer: made(layer, layer.weight * 0 + float("inf")), "not finite"),
    "a mask of numbers": (lambda layer: made(layer, mask=torch.ones_like(layer.weight)), "truth values"),
    "a mask of another shape": (lambda layer: made(layer, mask=torch.ones(3, dtype=torch.bool)), "mask of shape"),
    "a mask of numpy": (lambda layer: made(layer, mask=torch.ones_like(layer.weight).bool().numpy()), "mask"),
    "factors that are a pair": (lambda layer: made(layer, factors=(layer.weight, layer.weight)), "left factor"),
    "in place": (in_place, "wrote to|in place"),
    "in place, past torch": (past_torch, "wrote to|in place"),
}


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Iterator[Callable[[Any, LayerState], Any]]:
    act, _ = WRONG[request.param]
    module: Any = types.ModuleType("halving_of_ones_own")
    module.kernel = lambda technique, layer: act(layer)
    sys.modules["halving_of_ones_own"] = module
    if Halved not in Technique.kernels:
        Technique.register(Halved)
    yield module.kernel
    del sys.modules["halving_of_ones_own"]


@pytest.mark.parametrize(("kernel", "message"), [(k, v[1]) for k, v in WRONG.items()], indirect=["kernel"], ids=WRONG)
def test_it_is_said_in_one_line(kernel: Callable[[Any, LayerState], Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    before = model[0].weight.detach().clone()
    with pytest.raises(InputError, match=rf"^layer 0: after Halved\(\): .*({message})") as caught:
        cc.apply(Halved(), model)
    assert "\n" not in str(caught.value) and torch.equal(model[0].weight, before)
    with pytest.raises(AssertionError, match=message):
        check_encoding(Halved(), max_examples=5, kernel=kernel, minimise=False)


def test_a_right_kernel_passes() -> None:
    assert check_encoding(Halved(), max_examples=5, kernel=lambda technique, layer: made(layer)).clear
