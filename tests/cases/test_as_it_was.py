"""What `evaluate`, eval mode and torch's modes do to a model does not leak: into other orders, or past the search."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.text import parse_sequence
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude
from tests.amount import spread

P, Q, D = Magnitude("1/2"), AbsMax(2), LeastSquaresDistill()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.drop = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.25)
        self.head = nn.Linear(16, 4)
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.limits = [1.0, 2.0]
        self.options = {"on": True}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.drop(torch.relu(self.norm(self.first(x))))) * self.scale
        return y


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def loss(model: nn.Module) -> float:
    with torch.no_grad():
        return (model(X) - 1).square().mean().item()


def described(model: nn.Module) -> list[Any]:
    """Everything that a model holds, by hand."""
    found: list[Any] = []
    for name, module in model.named_modules():
        found += [
            name,
            type(module),
            module.training,
            sorted(vars(module)),
            list(module._modules),
            len(module._forward_hooks),
        ]
        found += [(k, v) for k, v in vars(module).items() if isinstance(v, int | float | str | bool)]
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        gradient = None if p.grad is None else p.grad.tolist()
        found += [name, id(p), p.dtype, p.requires_grad, p.data_ptr(), p.detach().double().tolist(), gradient]
    return [*found, getattr(model, "limits", None) and list(model.limits), dict(getattr(model, "options", {}))]


def statistics(m: Any) -> None:
    m.train()(X)


def train(m: Any) -> None:
    with torch.enable_grad():
        m.requires_grad_(True)
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        m(X).square().mean().backward()
        optimizer.step()


def swap(m: Any) -> None:
    m.norm = nn.Identity()
    m.head.weight = nn.Parameter(m.head.weight.detach() * 2)
    m.extra = nn.Linear(2, 2)


def settings(m: Any) -> None:
    m.drop.p, m.norm.eps = 0.9, 0.5
    m.limits.append(3.0)
    m.options.clear()
    m.note = "evaluated"


def hooks(m: Any) -> None:
    m.head.register_forward_hook(lambda module, args, output: output * 3)
    m.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def parametrized(m: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    parametrize.register_parametrization(m.first, "weight", Doubled())


LEAKS: dict[str, Callable[[Any], Any]] = {
    "statistics": statistics,
    "training": train,
    "half and back": lambda m: m.half().float(),
    "another dtype": lambda m: m.to(torch.bfloat16),
    "modes": lambda m: m.first.train(),
    "biases": lambda m: m.head.bias.data.mul_(2),
    "weights": lambda m: m.first.weight.data.zero_(),
    "buffers": lambda m: m.scale.mul_(3),
    "frozen": lambda m: m.requires_grad_(False),
    "swapped": swap,
    "settings": settings,
    "hooks": hooks,
    "parametrized": parametrized,
    "deleted": lambda m: delattr(m, "drop"),
    "gradients": lambda m: m.zero_grad(),
}


@pytest.mark.parametrize(("leak", "training", "fails"), spread(product(LEAKS, (False, True), (False, True)), 20))
def test_whatever_evaluate_does_to_the_model_is_undone(leak: str, training: bool, fails: bool) -> None:
    def evaluate(model: Any) -> dict[str, float]:
        found = loss(model)
        LEAKS[leak](model)
        if fails:
            raise KeyError("no")
        return {"loss": found}

    def given() -> nn.Module:
        model = Net().train(training)
        model(X).sum().backward()
        return model

    model = given()
    before = described(model)
    if fails:
        with pytest.raises(KeyError):
            cc.optimize_order([P, Q], model=model, calibration=X, evaluate=evaluate)
    else:
        plan = cc.optimize_order([P, Q], model=model, calibration=X, evaluate=evaluate)
        for row in plan.measurements:  # each as on a fresh model
            alone = cc.apply(parse_sequence(row["order"]), given(), calibration=X)
            assert row["metrics"]["loss"] == loss(alone.eval())
    assert described(model) == before


def test_recalibrated_statistics_rank_orders_as_on_fresh_models() -> None:
    def evaluate(model: Any) -> dict[str, float]:
        statistics(model)
        return {"loss": loss(model.eval())}

    plan = cc.optimize_order([P, Q, D], model=Net(), calibration=X, evaluate=evaluate)
    alone = {
        row["order"]: evaluate(cc.apply(parse_sequence(row["order"]), Net(), calibration=X))["loss"]
        for row in plan.measurements
    }
    assert {row["order"]: row["metrics"]["loss"] for row in plan.measurements} == alone
    assert str(plan.order) == min(alone, key=lambda order: alone[order])


class Merging(nn.Linear):
    """Adds a low-rank term to its weight in eval mode, as loralib does."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, bias=False)
        self.left, self.right = nn.Parameter(torch.randn(sizes[1], 2) / 3), nn.Parameter(torch.randn(2, sizes[0]) / 3)
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data.add_(self.left @ self.right, alpha=-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight)
        return y if self.merged else y + x @ self.right.T @ self.left.T


def merging(mode: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Merging(8, 8), nn.Tanh(), nn.Sequential(Merging(8, 8), nn.Tanh()), nn.Linear(8, 4))
    if mode == "mixed":
        model[2].eval()
        return model
    return model.train(mode == "train")


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_modules_that_merge_in_eval(mode: str) -> None:
    """The layer is the merged one, in whichever mode the model is given, and after `apply` in any mode."""
    y = merging("eval")(X).detach()
    plain = nn.Sequential(
        nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 4)
    )
    merged = merging("eval")
    for own, other in zip((0, 2, 4), (merged[0], merged[2][0], merged[3]), strict=True):
        plain[own].weight.data = other.weight.detach().clone()
    plain[4].bias.data = merged[3].bias.detach().clone()

    def evaluate(m: nn.Module) -> dict[str, float]:
        return {"loss": (m(X) - y).norm().item()}

    model = merging(mode)
    before = described(model)
    plan = cc.optimize_order([P, Q], model=model, calibration=X, evaluate=evaluate)
    assert described(model) == before
    expected = cc.optimize_order([P, Q], model=plain, calibration=X, evaluate=evaluate)
    for ours, theirs in zip(plan.measurements, expected.measurements, strict=True):
        assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], rel=1e-5)
    plan.apply(model)
    expected.apply(plain)
    for moded in (model.eval, model.train):
        torch.testing.assert_close(moded()(X), plain(X), rtol=1e-4, atol=1e-5)
    assert any("left, right" in note for note in plan.notes)


def run() -> tuple[Any, list[Tensor]]:
    model = Net().eval()
    plan = cc.optimize_order([P, Q], model=model, calibration=X, evaluate=lambda m: {"loss": loss(m)})
    plan.apply(model)
    cc.apply(P >> D, model, calibration=X)
    return [row["metrics"] for row in plan.measurements], [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("made", ["before", "inside"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inside_the_modes_of_torch(mode: Any, made: str) -> None:
    metrics, parameters = run()
    model = Net().eval() if made == "before" else None
    with mode():
        model = Net().eval() if model is None else model
        before = described(model)
        plan = cc.optimize_order([P, Q], model=model, calibration=X, evaluate=lambda m: {"loss": loss(m)})
        assert described(model) == before
        assert [row["metrics"] for row in plan.measurements] == metrics
        plan.apply(model)
        cc.apply(P >> D, model, calibration=X)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode) and not torch.is_grad_enabled()


def test_autocast_is_for_evaluate_alone() -> None:
    seen: list[tuple[bool, float]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        found = (model(X) - 1).square().mean().item()  # with gradients: autocast keeps copies of weights
        seen.append((torch.is_autocast_enabled("cpu"), found))
        return {"loss": found}

    model = Net().eval()
    with torch.autocast("cpu", torch.bfloat16):
        plan = cc.optimize_order([P, Q], model=model, calibration=X, evaluate=evaluate)
        assert torch.is_autocast_enabled("cpu")
    assert all(on for on, _ in seen)
    for row in plan.measurements:
        alone = cc.apply(parse_sequence(row["order"]), Net().eval(), calibration=X)
        with torch.autocast("cpu", torch.bfloat16):
            assert row["metrics"]["loss"] == (alone(X) - 1).square().mean().item()
    outside = cc.optimize_order([P, Q], model=model, calibration=X)
    assert {r["order"]: r["losses"] for r in plan.measurements} == {
        r["order"]: r["losses"] for r in outside.measurements
    }


def test_random_numbers_and_settings_are_kept() -> None:
    drawn = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        drawn.append((torch.rand(1).item(), random.random(), float(np.random.rand())))
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        return {"loss": loss(model.float())}

    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = torch.rand(1).item(), random.random(), float(np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Net()
    torch.manual_seed(3)
    cc.optimize_order([P, Q], model=model, calibration=X, evaluate=evaluate)
    cc.apply(P, model)
    assert len(drawn) == 3 and set(drawn) == {expected}
    assert (torch.rand(1).item(), random.random(), float(np.random.rand())) == expected
    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_float32_matmul_precision() == "highest"


def test_a_search_that_is_refused_leaves_the_model_as_it_was() -> None:
    model = Net().train()
    before = described(model)
    for act in (
        lambda: cc.optimize_order([P, Q], model=model, calibration=torch.randn(4, 9)),
        lambda: cc.apply(AbsMax(4, group=5), model),
        lambda: cc.apply(D, model, calibration=X * float("nan")),
    ):
        with pytest.raises((InputError, RuntimeError)):
            act()
        assert described(model) == before
