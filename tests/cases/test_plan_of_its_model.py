"""A plan writes and saves the model it was made for, as it was or as it wrote it, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models.save import load_weights
from compcomp.techniques import AbsMax, Magnitude

P, Q = Magnitude("1/2"), AbsMax(4)
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()


def tune(*names: str) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        chosen = [p for name, p in model.named_parameters() if name in names or not names]
        optimizer = torch.optim.SGD(chosen, lr=0.1)
        model(X).square().mean().backward()
        optimizer.step()

    return act


def replaced(m: Any) -> None:
    m[3] = nn.Linear(16, 4)


def activation(m: Any) -> None:
    m[2] = nn.Tanh()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "all tuned": tune(),
    "norm tuned": tune("1.weight", "1.bias"),
    "bias tuned": tune("0.bias"),
    "layer tuned": tune("3.weight"),
    "statistics": lambda m: (m.train()(X), m.eval()),
    "another state": lambda m: m.load_state_dict(net().state_dict() | {"3.bias": torch.ones(4)}),
    "dtype": lambda m: m.double(),
    "half and back": lambda m: m.half().float(),
    "layer replaced": replaced,
    "activation replaced": activation,
    "more layers": lambda m: m.append(nn.Linear(4, 4)),
    "compressed again": lambda m: cc.apply(Magnitude("3/4"), m),
    "one buffer": lambda m: m[1].num_batches_tracked.add_(1),
}
HARMLESS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: None,
    "modes": lambda m: m.train(),
    "frozen": lambda m: m.requires_grad_(False),
    "gradients": lambda m: m(X).sum().backward(),
    "the same state": lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}),
    "the same state, assigned": lambda m: m.load_state_dict(
        {k: v.clone() for k, v in m.state_dict().items()}, assign=True
    ),
    "there and back": lambda m: m.double().float(),
}


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_neither_written_nor_saved(change: str, applied: bool, tmp_path: Path) -> None:
    model = net()
    plan = cc.optimize_order([P, Q], model=model, calibration=X)
    if applied:
        plan.apply(model)
    CHANGES[change](model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for where, act in (("Plan.save", lambda: plan.save(tmp_path / "out")), ("Plan.apply", lambda: plan.apply(model))):
        with pytest.raises(InputError, match=f"^{where}: a model whose weights have changed since") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("change", HARMLESS)
def test_the_model_as_it_was_is_written_and_saved_as_often_as_one_likes(
    change: str, applied: bool, tmp_path: Path
) -> None:
    model = net()
    plan = cc.optimize_order([P, Q], model=model, calibration=X)
    if applied:
        plan.apply(model)
    HARMLESS[change](model)
    plan.save(tmp_path / "first")
    assert plan.apply(model) is model
    plan.save(tmp_path / "second")
    plan.apply(model)
    expected = cc.apply(plan.order, net(), calibration=X).state_dict()
    for state in (model, load_weights(net(), tmp_path / "first"), load_weights(net(), tmp_path / "second")):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.state_dict().items())


def test_other_models_are_compressed_as_they_are(tmp_path: Path) -> None:
    model, other = net(), net()
    plan = cc.optimize_order([P, Q], model=model, calibration=X)
    tune()(other)
    expected = cc.apply(plan.order, load_like(other), calibration=X).state_dict()
    plan.apply(other)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())
    plan.save(tmp_path)
    saved = load_weights(net(), tmp_path).state_dict()
    mine = cc.apply(plan.order, net(), calibration=X).state_dict()
    assert all(torch.equal(tensor, mine[name]) for name, tensor in saved.items())


def load_like(model: nn.Module) -> nn.Module:
    made = net()
    made.load_state_dict(model.state_dict())
    return made
