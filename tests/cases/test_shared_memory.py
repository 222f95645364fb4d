"""Weights that share memory have one owner, or are refused with the model as it was; slices apart go on working."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models.devices import move_together
from compcomp.models.memory import overlap, overlaps_itself
from compcomp.models.save import load_weights
from compcomp.techniques import AbsMax, Magnitude

P, Q = Magnitude("1/2"), AbsMax(4)


def addresses(tensor: Tensor) -> list[int]:
    """The address of every byte of every entry, by hand."""
    steps = itertools.product(*(range(size) for size in tensor.shape))
    places = [sum(i * s for i, s in zip(index, tensor.stride(), strict=True)) for index in steps]
    size = tensor.element_size()
    return [tensor.data_ptr() + place * size + byte for place in places for byte in range(size)]


def views(source: random.Random, buffer: Tensor) -> Tensor:
    """A random strided view of a buffer of numbers."""
    part = buffer.view(source.choice([torch.float32, torch.float16, torch.float64]))
    shape = [source.randint(1, 4) for _ in range(source.randint(1, 3))]
    strides = [source.choice([0, 1, 2, 3, 4]) for _ in shape]
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return part.as_strided(shape, strides, source.randint(0, max(0, len(part) - 1 - last)))


def test_overlap_is_that_of_the_addresses() -> None:
    source, found = random.Random(0), set[bool]()
    for _ in range(2000):
        buffer = torch.zeros(96)
        one, other = views(source, buffer), views(source, buffer)
        mine, yours = addresses(one), addresses(other)
        assert overlap(one, other) is bool(set(mine) & set(yours))
        assert overlaps_itself(one) is (len(set(mine)) < len(mine))
        found.add(overlap(one, other))
    assert found == {True, False}


class Two(nn.Module):
    """Two layers after each other, 6 -> 6 -> 6, whose weights are given."""

    def __init__(self, first: Tensor, second: Tensor, **more: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.first.weight, self.second.weight = nn.Parameter(first), nn.Parameter(second)
        for name, tensor in more.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def flat() -> Tensor:
    return torch.randn(400, generator=torch.Generator().manual_seed(0))


def square(start: int = 0) -> Tensor:
    return flat()[start : start + 36].view(6, 6)


def shared(make: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Two:
    return Two(*make(flat()))


APART = {
    "slices of one buffer": lambda b: (b[:36].view(6, 6), b[36:72].view(6, 6)),
    "columns of one matrix": lambda b: (b[:72].view(6, 12)[:, :6], b[:72].view(6, 12)[:, 6:]),
    "every other number": lambda b: (b[:72].view(6, 12)[:, ::2], b[:72].view(6, 12)[:, 1::2]),
    "slices, one of them transposed": lambda b: (b[:36].view(6, 6), b[36:72].view(6, 6).T),
}
SHARED = {
    "in part": lambda b: (b[:36].view(6, 6), b[30:66].view(6, 6)),
    "one number": lambda b: (b[:36].view(6, 6), b[35:71].view(6, 6)),
    "rows of a larger step": lambda b: (b[:72].view(6, 12)[:, :6], b[:72].view(6, 12)[:, 3:9]),
    "expanded": lambda b: (b[:6].view(6, 1).expand(6, 6), b[36:72].view(6, 6)),
    "windows": lambda b: (b[:11].unfold(0, 6, 1), b[36:72].view(6, 6)),
}


@pytest.mark.parametrize("kind", APART)
def test_slices_apart_are_layers_of_their_own(kind: str, tmp_path: Path) -> None:
    model, x = shared(APART[kind]), torch.randn(5, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = Two(before["first.weight"], before["second.weight"])
    alone.load_state_dict(before)
    plan = cc.optimize_order([P, Q], model=model, loss="weight_l2", evaluate=lambda m: {"loss": m(x).norm().item()})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    memory = model.first.weight.data_ptr()
    plan.apply(model)
    cc.apply(plan.order, alone)
    assert model.first.weight.data_ptr() == memory
    plan.save(tmp_path)
    saved = load_weights(Two(square(), square()), tmp_path).state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) and torch.equal(saved[name], tensor)


@pytest.mark.parametrize("kind", SHARED)
def test_memory_shared_in_part_is_refused_before_anything_is_written(kind: str) -> None:
    model = shared(SHARED[kind])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for act in (lambda: cc.apply(P, model), lambda: cc.optimize_order([P, Q], model=model, loss="weight_l2")):
        with pytest.raises(InputError, match="share"):
            act()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_buffer_or_a_bias_that_is_part_of_a_weight_is_refused() -> None:
    weight = square()
    for model in (
        Two(weight, square(36), part=weight[:3]),
        Two(weight, square(36), other=weight.view(torch.int32)[1:]),
    ):
        with pytest.raises(InputError, match=r"layer first: .*shares memory with (part|other)"):
            cc.apply(P, model)
    model = Two(weight, square(36))
    model.second.bias = nn.Parameter(weight[:, 0])
    with pytest.raises(InputError, match=r"layer first: .*shares memory with second\.bias"):
        cc.apply(P, model)


def test_what_is_ignored_may_share() -> None:
    model = shared(SHARED["in part"])
    with pytest.raises(InputError, match="memory"):
        cc.apply(P, model, ignore=["second"])
    b = flat()
    model = Two(b[:36].view(6, 6), b[36:72].view(6, 6))
    model.third = nn.Linear(6, 6)
    model.third.weight = nn.Parameter(b[40:76].view(6, 6))
    before = model.second.weight.detach().clone()
    cc.apply(P, model, ignore=["second", "third"])
    assert torch.equal(model.second.weight, before) and int((model.first.weight == 0).sum()) == 18


@pytest.mark.parametrize("narrow", [6, 4])
def test_a_transposed_tie_has_one_owner(narrow: int) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.decoder = nn.Linear(6, narrow, bias=False), nn.Linear(narrow, 6, bias=False)
            self.decoder.weight = nn.Parameter(self.encoder.weight.t())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.decoder(torch.relu(self.encoder(x)))
            return y

    model, x = Tied(), torch.randn(5, 6)
    y, dense = model(x).detach(), model.encoder.weight.detach().clone()
    plan = cc.optimize_order([P, Q], model=model, calibration=x, evaluate=lambda m: {"loss": (m(x) - y).norm().item()})
    assert torch.equal(model(x), y) and torch.equal(model.encoder.weight, dense)
    assert any("decoder" in note and "another layout" in note for note in plan.notes)
    cc.apply(P, model)
    by_hand = cc.apply(P, nn.Sequential(nn.Linear(6, narrow, bias=False)).requires_grad_(False))
    by_hand[0].weight.copy_(dense)
    cc.apply(P, by_hand)
    assert torch.equal(model.encoder.weight, by_hand[0].weight)
    assert torch.equal(model.decoder.weight, model.encoder.weight.T)
    assert model.decoder.weight.data_ptr() == model.encoder.weight.data_ptr()
    for ignored in ("encoder", "decoder"):  # one weight: to leave one alone is to leave both
        with pytest.raises(InputError, match="no Linear layer"):
            cc.apply(P, Tied(), ignore=[ignored])


@pytest.mark.parametrize("layout", [lambda w: w, lambda w: w.detach(), lambda w: w.view(6, 6), lambda w: w.T.T])
def test_a_tie_in_one_layout_is_one_layer(layout: Callable[[Tensor], Tensor]) -> None:
    model = Two(square(), square(36))
    model.second.weight = nn.Parameter(layout(model.first.weight.detach()))
    cc.apply(P, model)
    assert torch.equal(model.first.weight, model.second.weight) and int((model.first.weight == 0).sum()) == 18
    assert model.first.weight.data_ptr() == model.second.weight.data_ptr()


@pytest.mark.parametrize("layout", [lambda w: w, lambda w: w.t(), lambda w: w[:4], lambda w: w.view(4, 9)])
def test_a_layer_over_an_embedding_is_left_alone_or_refused(layout: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(6, 6), nn.Linear(6, 6)
            weight = layout(self.embed.weight.detach())
            self.out = nn.Linear(weight.shape[1], weight.shape[0])
            self.out.weight = nn.Parameter(weight)

    model = Net()
    before = model.embed.weight.detach().clone()
    try:
        cc.apply(P, model)
        assert int((model.body.weight == 0).sum()) == 18
    except InputError as error:
        assert "layer out" in str(error) and "embed.weight" in str(error)
        assert int((model.body.weight == 0).sum()) == 0
    assert torch.equal(model.embed.weight, before)


def test_what_shares_memory_is_moved_together() -> None:
    """On the way to another device and back nothing is untied; here the copy is on the same one."""
    b = flat()
    model = Two(b[:36].view(6, 6), b[:36].view(6, 6).T, part=b[30:66], whole=b.view(torch.float16)[100:110])
    model.third, model.fourth = nn.Linear(6, 6), nn.Linear(6, 6)
    model.fourth.weight = model.third.weight
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.clone() for tensor in tensors]
    pairs = [(i, j) for i in range(len(tensors)) for j in range(i) if overlap(tensors[i], tensors[j])]
    memory = b.data_ptr()
    move_together(tensors, torch.device("cpu"))
    assert model.first.weight.data_ptr() != memory and len(pairs) == 4
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    assert [(i, j) for i in range(len(tensors)) for j in range(i) if overlap(tensors[i], tensors[j])] == pairs
    assert model.fourth.weight is model.third.weight


def test_recurrent_weights_do_not_matter() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.out = nn.LSTM(6, 6, num_layers=2), nn.Linear(6, 6)
            sizes = [p.numel() for p in self.memory.parameters()]
            buffer, start = torch.randn(sum(sizes) + 36), 0
            for p in self.memory.parameters():
                p.data = buffer[start : start + p.numel()].view_as(p)
                start += p.numel()
            self.out.weight.data = buffer[start:].view(6, 6)

    model = Net()
    before = [p.detach().clone() for p in model.memory.parameters()]
    cc.apply(P, model)
    assert all(torch.equal(a, b) for a, b in zip(model.memory.parameters(), before, strict=True))
    assert int((model.out.weight == 0).sum()) == 18
