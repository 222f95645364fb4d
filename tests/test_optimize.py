"""The main job as a user calls it: what it takes, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compcomp.errors import InputError
from compcomp.language.text import parse_sequence
from compcomp.models.save import load_weights
from compcomp.optimize import apply, optimize_order
from compcomp.ordering import on_model as measuring
from compcomp.ordering.ask import Asker
from compcomp.ordering.space import one_of, optional
from compcomp.reporting.bars import Bars
from compcomp.techniques import JSQ, AbsMax, AbsMaxInputs, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.models.fakes import Tiny, tokens

ROOT = Path(__file__).resolve().parent.parent
P, Q, D = Magnitude("1/2", pattern="2:4"), AbsMax(bits=4, group=8), LeastSquaresDistill()
L = TruncatedSVD(rank=1, residual=True)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def batches() -> list[torch.Tensor]:
    return [torch.randn(64, 16, generator=torch.Generator().manual_seed(k)) for k in range(2)]


class Error:
    """Squared difference from the dense network's outputs; counts its calls."""

    higher_is_better = False

    def __init__(self) -> None:
        self.calls, self.inputs = 0, batches()[0]
        with torch.no_grad():
            self.dense = network()(self.inputs)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.calls += 1
        with torch.no_grad():
            return {"distance": float(((model(self.inputs) - self.dense) ** 2).mean()), "layers": 2}


@pytest.fixture(autouse=True)
def quick_prover(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for counterexamples: it takes time and decides no order."""
    ask = Asker.ask

    def by_rules(self: Asker, claims: Any, scope: Any, options: Any = None, *rest: Any) -> Any:
        return ask(self, claims, scope, {**(options or {}), "stages": ("rule",)}, *rest)

    monkeypatch.setattr(Asker, "ask", by_rules)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_model_from_search_to_disk(tmp_path: Path) -> None:
    model, evaluate = network(), Error()
    before = weights(model)
    plan = optimize_order([P, Q, D], model=model, calibration=batches(), evaluate=evaluate, device="cpu")
    assert same(weights(model), before)
    assert plan.measured_on == "model" and plan.metric == "distance" and plan.dense["distance"] == 0
    assert evaluate.calls == plan.orders["measured"] + 1
    values = [one["metrics"]["distance"] for one in plan.measurements]
    assert values == sorted(values) and plan.best["losses"].keys() >= {"weight_l1", "weight_l2", "output_l2"}
    assert plan.compression_rate is not None and 0.5 < plan.compression_rate < 1
    assert plan.orders["dropped"] > 0 and plan.applications["done"] < plan.applications["full_tree"] == 15

    plan.save(tmp_path / "out")
    assert same(weights(model), before)
    data = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert data["best"]["metrics"] == plan.best["metrics"] and len(data["accounts"]) == 6
    loaded = load_weights(network(), tmp_path / "out")
    assert Error()(loaded) == plan.best["metrics"]

    assert plan.apply(model) is model and not same(weights(model), before)
    assert Error()(model) == plan.best["metrics"]
    assert same(weights(plan.apply(model)), weights(loaded))  # from the dense weights again, not on top
    assert same(weights(apply(plan.order, network(), batches(), device="cpu")), weights(loaded))
    assert same(weights(plan.apply(network())), weights(loaded))


def test_a_model_that_was_trained_on_is_not_overwritten() -> None:
    model = network()
    plan = optimize_order([P, D], model=model, calibration=batches(), device="cpu")
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(InputError, match="have changed"):
        plan.apply(model)


def test_weights_alone_need_no_calibration() -> None:
    plan = optimize_order([P, Q], model=network(), loss="weight_l2", device="cpu", targets=["0"])
    assert plan.loss == "weight_l2" and plan.metric is None and plan.dense == {}
    assert plan.best["losses"]["weight_l2"] <= plan.worst["losses"]["weight_l2"]


def test_a_search_chooses_the_grid() -> None:
    """The best of all orders on all grids, of which those that a proof excludes are not measured."""
    grids = [AbsMax(4, 8, grid=grid) for grid in ("narrow", "full_range", "signed")]
    stored = AbsMax(4, 8, grid="full_range", scales="float16")
    orders = [order for q in (*grids, stored) for order in (P >> q, q >> P)]

    def lost(order: Any) -> float:
        model = apply(order, network(), device="cpu")
        pairs = zip(weights(model)[::2], weights(network())[::2], strict=True)
        return sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)

    losses = {str(order): lost(order) for order in orders}
    plan = optimize_order([P, one_of(*grids, stored)], model=network(), loss="weight_l2", device="cpu")
    measured = {one["order"]: one["losses"]["weight_l2"] for one in plan.measurements}
    assert measured == pytest.approx({order: losses[order] for order in measured}, rel=1e-5)
    assert losses[str(plan.order)] == min(losses.values())
    assert losses.keys() - measured.keys() == {str(q >> P) for q in grids[:2]}


def test_a_plan_without_a_model_can_still_compress() -> None:
    plan = optimize_order([P, Q, D])
    assert plan.measured_on == "generated layers" and plan.compression_rate is None
    with pytest.raises(InputError, match="calibration"):
        plan.apply(network())
    model = plan.apply(network(), batches())
    assert same(weights(model), weights(apply(plan.order, network(), batches())))


def test_apply_one_technique() -> None:
    model = network()
    assert apply(P, model, device="cpu") is model
    first = model[0].weight.detach()
    assert bool(((first.reshape(-1, 4) == 0).sum(dim=1) == 2).all())


def test_an_executor_and_a_store_change_nothing(tmp_path: Path) -> None:
    plain = optimize_order([P, Q, D, L])
    with ThreadPoolExecutor(2) as executor:
        first = optimize_order([P, Q, D, L], executor=executor, store=tmp_path / "plan.db")
    second = optimize_order([P, Q, D, L], store=str(tmp_path / "plan.db"))
    for plan in (first, second):
        assert (plan.order, plan.orders, plan.measurements) == (plain.order, plain.orders, plain.measurements)
        assert [(str(v.claim), v.status) for v in plan.verdicts] == [(str(v.claim), v.status) for v in plain.verdicts]
        assert plan.accounts == plain.accounts
    assert (first.claims["reused"], second.claims["asked"]) == (0, 0)
    assert second.claims["reused"] == first.claims["asked"] == plain.claims["asked"]


def test_progress_is_reported() -> None:
    events: list[dict[str, Any]] = []
    optimize_order([P, D], model=network(), calibration=batches(), progress=events.append)
    assert {"screen", "prove", "calibrate", "explore"} == {event["phase"] for event in events}
    assert all(set(event) == {"phase", "done", "total", "text", "remaining"} for event in events)


def test_bars_wait_and_leave_standard_output_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"phase": "measure", "done": 1, "total": 2, "text": "[not markup] " + "x" * 100}
    with Bars() as bars:
        bars.event(event)
        assert bars._progress is None
        monkeypatch.setattr("compcomp.reporting.bars.PATIENCE", 0.0)
        bars.event(event)
        bars.event({**event, "phase": "another", "done": 2})
        assert bars._progress is not None
        assert [(task.description, task.completed) for task in bars._progress.tasks] == [
            ("measuring", 1),
            ("another", 2),
        ]
    optimize_order([P, D], progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"techniques": []}, "an empty list"),
        ({"techniques": "Magnitude(sparsity=1/2)"}, "parse_sequence"),
        ({"techniques": ["Magnitude(sparsity=1/2)"]}, "parse_sequence"),
        ({"techniques": P}, "a list of"),
        ({"techniques": P >> Q}, "a list of"),
        ({"techniques": [Magnitude]}, "a list of"),
        ({"techniques": [P] * 9}, "more than 8"),
        ({"techniques": 3}, "a list of"),
        ({"loss": "accuracy"}, "output_l2"),
        ({"calibration": [1]}, "without a model"),
        ({"evaluate": print}, "without a model"),
        ({"model": network()}, "loss output_l2 needs"),
        ({"model": network(), "loss": "weight_l2"}, r"LeastSquaresDistill\(\) needs"),
        ({"model": "gpt2", "calibration": [1]}, "model"),
        ({"model": nn.ReLU(), "calibration": batches()}, "no Linear layer"),
        ({"model": network(), "calibration": batches(), "evaluate": 3}, "evaluate"),
        ({"model": network(), "calibration": batches(), "device": "tpu"}, "device"),
        ({"techniques": [AbsMax(4, group=5)], "model": network(), "calibration": batches()}, "layer 0"),
        ({"techniques": [AbsMaxInputs(4)], "model": network(), "loss": "weight_l2"}, "Gram matrices only"),
        ({"techniques": [AbsMaxInputs(4)], "model": network(), "calibration": batches()}, "Gram matrices only"),
        ({"techniques": [JSQ("1/2", 4)], "model": network(), "calibration": batches()}, "magnitudes only"),
        ({"executor": 4}, "Executor"),
        ({"progress": "yes"}, "progress"),
        ({"store": "/dev/null/plan.db"}, "store"),
        ({"targets": ["nothing"], "model": network(), "calibration": batches()}, "nothing"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        optimize_order(**{"techniques": [P, D], **arguments})
    assert "\n" not in str(caught.value) and "allowed" in str(caught.value)


@pytest.mark.parametrize("sequence", ["Magnitude(sparsity=1/2)", None, [P, Q]])
def test_apply_wants_a_sequence(sequence: Any) -> None:
    with pytest.raises(InputError):
        apply(sequence, network())


def test_starting_and_a_symbolic_plan_load_no_torch() -> None:
    script = """
import sys
import compcomp.optimize
from compcomp.techniques import AbsMax, Magnitude
assert not {"torch", "transformers", "matplotlib", "rich"} & set(sys.modules)
from compcomp.ordering.search import search
from compcomp.proving.prove import prove
plan = search([Magnitude("1/2"), AbsMax(4)], "weight_l2", prover=lambda c, s, o: prove(c, s, stages=("rule",)))
assert plan.measurements and not {"torch", "transformers", "matplotlib"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_order_for_each_layer_is_applied_and_saved(tmp_path: Path) -> None:
    model, data = network(), batches()
    plan = optimize_order([P, Q, D, L], model=model, calibration=data, device="cpu", granularity="layer")
    assert plan.by_layer is not None
    plan.save(tmp_path)
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved["layer_orders"] == plan.layer_orders
    compressed = plan.apply(model)
    for name, layer in network().named_children():
        if isinstance(layer, nn.Linear):
            order = plan.layer_orders.get(name, str(plan.order))
            alone = apply(parse_sequence(order), network(), data, device="cpu", targets=[name])
            found, expected = (of.get_submodule(name) for of in (compressed, alone))
            assert isinstance(found, nn.Linear) and isinstance(expected, nn.Linear)
            assert torch.equal(found.weight, expected.weight)
    other = plan.apply(network(), data)
    assert torch.equal(other[0].weight, compressed[0].weight)


class Parts(Error):
    """The error of each of 32 groups of inputs."""

    parts, key = 32, "the error of each group of inputs"

    def __init__(self) -> None:
        super().__init__()
        self.inputs = torch.randn(32, 64, 16, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            self.dense = network()(self.inputs)

    def __call__(self, model: nn.Module, parts: Any = None) -> Any:
        assert parts is not None
        self.calls += len(parts)
        with torch.no_grad():
            apart = ((model(self.inputs[list(parts)]) - self.dense[list(parts)]) ** 2).double()
        return {"distance": [(float(one.sum()), float(one.numel())) for one in apart]}


def test_a_metric_in_parts_is_raced_and_kept(tmp_path: Path) -> None:
    given = {"model": network(), "calibration": batches(), "device": "cpu", "store": tmp_path / "kept.db"}
    evaluate, again, patient = Parts(), Parts(), Parts()
    plan = optimize_order([P, Q, D, L], evaluate=evaluate, **given)
    stopped = [one for one in plan.measurements if "note" in one]
    assert stopped and evaluate.calls == 32 + sum(one["parts"] for one in plan.measurements)
    second = optimize_order([P, Q, D, L], evaluate=again, **given)
    assert again.calls == 0 and second.measurements == plan.measurements and second.dense == plan.dense
    whole = optimize_order([P, Q, D, L], evaluate=patient, confidence=1, **given)
    assert whole.order == plan.order and whole.best["metrics"] == plan.best["metrics"]
    assert all(one["parts"] == 32 for one in whole.measurements)
    assert patient.calls == sum(32 - one["parts"] for one in stopped)


@pytest.mark.parametrize(("name", "value"), [("size", 2), ("size", "0.8"), ("confidence", -1), ("confidence", True)])
def test_shares_are_checked(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: "):
        optimize_order([P], model=network(), calibration=batches(), **{name: value})
    with pytest.raises(InputError, match="size without a model"):
        optimize_order([P], size=0.5)


def test_what_loses_more_on_some_layers_is_not_left_out_for_a_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders are left out on the way for orders of their size alone: the front of loss and size stays whole."""
    techniques: list[Any] = [P, one_of(AbsMax(bits=2, group=8), AbsMax(bits=8, group=8)), optional(L), D]
    given: dict[str, Any] = {"model": Tiny(), "calibration": tokens(), "device": "cpu"}
    whole = optimize_order(techniques, **given)
    for wanted in (1, 2):
        monkeypatch.setattr(measuring, "RANKED", wanted)
        plan = optimize_order(techniques, **given)
        assert plan.orders["dropped"] > whole.orders["dropped"] and len(plan.pareto) > 3
        assert plan.pareto == whole.pareto and plan.best == whole.best


def test_an_order_for_each_layer_is_judged_by_a_metric_in_parts() -> None:
    given = {"model": network(), "calibration": batches(), "device": "cpu", "evaluate": Parts()}
    plan = optimize_order([P, Q, D, L], granularity="layer", **given)
    assert plan.by_layer is not None and list(plan.by_layer["metrics"]) == ["distance"]
    better = plan.by_layer["metrics"]["distance"] < plan.best["metrics"]["distance"]
    assert bool(plan.layer_orders) == better
