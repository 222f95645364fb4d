"""Sparse, nested, quantized, meta and wrapped tensors: refused in layers, and no harm anywhere else."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.techniques import AbsMax, Magnitude

P, Q = Magnitude("1/2"), AbsMax(4)


class Wrapped(Tensor):
    """A subclass that holds its own values."""


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def fake(x: Tensor) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(x)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse_coo": Tensor.to_sparse,
    "sparse_csr": Tensor.to_sparse_csr,
    "sparse_csc": Tensor.to_sparse_csc,
    "mkldnn": Tensor.to_mkldnn,
    "meta": lambda x: x.to("meta"),
    "Wrapped": lambda x: x.as_subclass(Wrapped),
    "qint8": quantized,
    "nested": lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
    "FakeTensor": fake,
}


def converted(kind: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KINDS[kind](torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))


class Odd(nn.Module):
    """A layer, and a tensor of this kind that nothing is computed with."""

    def __init__(self, kind: str, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        if how == "parameter":
            self.odd = nn.Parameter(converted(kind), requires_grad=False)
        elif how == "buffer":
            self.register_buffer("odd", converted(kind))
        elif how == "attribute":
            self.odd = converted(kind)
        else:
            self.other._parameters["weight"] = nn.Parameter(converted(kind), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["parameter", "buffer", "attribute", "ignored layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_elsewhere_they_do_no_harm(kind: str, how: str) -> None:
    model, x = Odd(kind, how), torch.randn(4, 8)
    plain = nn.Sequential(nn.Linear(8, 8))
    plain[0].load_state_dict(model.layer.state_dict())
    holder = model.other if how == "ignored layer" else model
    odd = holder.weight if how == "ignored layer" else model.odd
    plan = cc.optimize_order(
        [P, Q], model=model, calibration=x, evaluate=lambda m: {"loss": m(x).norm().item()}, ignore=["other"]
    )
    assert (holder.weight if how == "ignored layer" else model.odd) is odd
    plan.apply(model)
    assert torch.equal(model.layer.weight, cc.apply(plan.order, plain, calibration=x)[0].weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_layer_they_are_refused_in_one_line(kind: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1]._parameters["weight"] = nn.Parameter(converted(kind), requires_grad=False)
    before = model[0].weight.detach().clone()
    with pytest.raises(InputError, match=rf"^layer 1: a weight .*{kind}") as caught:
        cc.apply(P, model)
    assert "\n" not in str(caught.value) and torch.equal(model[0].weight, before)


def test_layers_that_are_not_initialised_do_no_harm_where_they_are_ignored() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.later, self.layer = nn.LazyLinear(4), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    plan = cc.optimize_order([P, Q], model=Lazy(), loss="weight_l2", ignore=["later"])
    assert len(plan.order) == 2
    with pytest.raises(InputError, match=r"^layer later: a weight .*Uninitialized"):
        cc.apply(P, Lazy())
