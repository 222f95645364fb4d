"""Searches that people wait for: their progress, what an interruption leaves, and what an estimate promises."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.models import states
from compcomp.ordering import search as searching
from compcomp.ordering.ask import Asker
from compcomp.ordering.progress import PHASES, Progress
from compcomp.ordering.questions import Questions
from compcomp.ordering.store import Store
from compcomp.techniques import GPTQ, AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.architectures import ARCHITECTURES
from tests.models.fakes import Tiny, tokens

HALF: Any = "1/2"
ROOT = Path(__file__).resolve().parent.parent
P, Q, D = Magnitude(HALF), AbsMax(bits=4, group=4), LeastSquaresDistill()
B = Magnitude(HALF, pattern="2:4")
G, L = GPTQ(bits=4), TruncatedSVD(2, residual=True)
KEPT = ("order", "optimality", "orders", "left", "measurements", "dense", "best", "worst", "compression_rate", "pareto")


class Windows:
    """A metric that is a mean over parts; counts the parts that it was asked for."""

    exp_of_mean = ("perplexity",)
    key = "windows of the tiny model"

    def __init__(self, parts: int = 8, batch_size: int | None = None) -> None:
        self.parts, self.asked, self.calls = parts, 0, 0
        self.ids = torch.randint(0, 16, (parts, 6), generator=torch.Generator().manual_seed(3))
        if batch_size is not None:
            self.batch_size = batch_size

    def __call__(self, model: nn.Module, parts: Sequence[int] | None = None) -> dict[str, Any]:
        assert parts is not None, "a search asks for parts"
        self.asked, self.calls = self.asked + len(parts), self.calls + 1
        found = []
        for k in parts:
            with torch.no_grad():
                logits = model(self.ids[k : k + 1, :-1])
            found.append((nn.functional.cross_entropy(logits[0], self.ids[k, 1:], reduction="sum").item(), 5.0))
        return {"perplexity": found}


class Whole:
    """A metric of the whole model; counts its calls."""

    key = "loss of the tiny model"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.calls += 1
        with torch.no_grad():
            return {"loss": float(model(tokens()[0]).square().mean())}


@pytest.fixture(autouse=True)
def quick_prover(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for counterexamples: it takes time and decides no order."""
    ask = Asker.ask

    def by_rules(self: Asker, claims: Any, scope: Any, options: Any = None, *rest: Any) -> Any:
        return ask(self, claims, scope, {**(options or {}), "stages": ("rule",)}, *rest)

    monkeypatch.setattr(Asker, "ask", by_rules)


def optimized(techniques: Sequence[Any], **more: Any) -> cc.Plan:
    return cc.optimize_order(techniques, **{"model": Tiny(), "calibration": tokens(), "device": "cpu", **more})


def estimated(techniques: Sequence[Any], **more: Any) -> cc.Estimate:
    return cc.estimate(techniques, **{"model": Tiny(), "calibration": tokens(), "device": "cpu", **more})


def kept(plan: cc.Plan) -> dict[str, Any]:
    data = plan.to_json()
    return {name: data[name] for name in KEPT}


# ------------------------------------------------------------------------------------------------ progress

SEARCHES: list[tuple[list[Any], dict[str, Any], str]] = [
    ([P, Q], {}, "screen prove calibrate explore"),
    ([P, Q, D], {"evaluate": Whole}, "screen prove calibrate apply evaluate measure"),
    ([P, Q, D], {"evaluate": Whole, "evaluations": 2}, "screen prove calibrate explore apply evaluate measure"),
    ([P, G], {"evaluate": Windows, "passes": "own"}, "screen prove calibrate apply evaluate measure"),
    ([P, G], {"evaluate": Windows, "calibrate": "dense"}, "screen prove calibrate apply evaluate measure"),
    ([P, Q], {"evaluate": lambda: Windows(32, 3), "loss": "weight_l2"}, "screen prove apply evaluate measure"),
    ([P, Q, D], {"model": None, "calibration": None}, "screen prove measure"),
    ([P, Q, D], {"granularity": "layer", "evaluate": Whole}, "screen prove calibrate explore apply evaluate measure"),
]


def runs_of(events: list[dict[str, Any]]) -> dict[str, list[list[dict[str, Any]]]]:
    """Split the events of each phase where they start anew."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for event in events:
        runs = found.setdefault(event["phase"], [])
        if event["done"] == 0:
            runs.append([])
        runs[-1].append(event)
    return found


def complete(events: list[dict[str, Any]]) -> set[str]:
    """Check that each run of each phase begins with nothing, goes on, and ends with all of it. Return the phases."""
    runs = runs_of(events)
    assert runs.keys() <= PHASES.keys()
    for phase, own in runs.items():
        for run in own:
            done = [event["done"] for event in run]
            assert done == sorted(done) and done[0] == 0, phase
            assert run[-1]["done"] == run[-1]["total"], (phase, run[-1])
            assert len({event["total"] for event in run if event["total"] is not None} - {done[-1]}) <= 1, phase
            for event in run:
                assert event["remaining"] is None or event["remaining"] >= 0
            assert run[-1]["remaining"] in (0, None)
    return set(runs)


@pytest.mark.parametrize(("techniques", "how", "phases"), SEARCHES)
def test_every_phase_reports_from_nothing_to_all(techniques: list[Any], how: dict[str, Any], phases: str) -> None:
    events: list[dict[str, Any]] = []
    make = how.get("evaluate")
    how = how if make is None else {**how, "evaluate": make()}
    optimized(techniques, progress=events.append, **how)
    assert complete(events) == set(phases.split())


def test_parts_are_reported_as_they_run_together() -> None:
    events: list[dict[str, Any]] = []
    optimized([P, Q], evaluate=Windows(8, 3), loss="weight_l2", confidence=None, progress=events.append)
    runs = runs_of(events)["evaluate"]
    assert [[event["done"] for event in run] for run in runs] == [[0, 3, 6, 8]] * len(runs)
    one, other = Windows(8, 3), Windows(8)
    assert optimized([P, Q], evaluate=one).dense == optimized([P, Q], evaluate=other).dense


@pytest.mark.parametrize("order", [P >> G, Q, P >> Q])
@pytest.mark.parametrize("how", [{}, {"calibrate": "dense"}, {"passes": "own"}, {"blocks": ["blocks.0", "blocks.1"]}])
def test_applying_reports_its_blocks(order: Any, how: dict[str, Any]) -> None:
    events: list[dict[str, Any]] = []
    cc.apply(order, Tiny(), tokens(), device="cpu", progress=events.append, **how)
    assert "apply" in complete(events)
    last = [event for event in events if event["phase"] == "apply"][-1]
    assert last["done"] == last["total"] == 6


def test_calibration_of_unknown_length_reports_its_batches() -> None:
    events: list[dict[str, Any]] = []
    optimized([P, D], calibration=(batch for batch in tokens()), calibrate="dense", progress=events.append)
    (run,) = runs_of(events)["calibrate"]
    assert [(event["done"], event["total"]) for event in run] == [(0, None), (1, None), (2, None), (3, None), (3, 3)]


def test_the_time_left_is_what_the_rest_takes_at_this_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(events.append)
    for done in range(5):
        progress.report("measure", done, 4, "")
        now[0] += 3
    assert [event["remaining"] for event in events] == [None, 9, 6, 3, 0]


# ------------------------------------------------------------------------------------------------ interruptions


class Pressed:
    """Press Ctrl-C inside the n-th call of a function."""

    def __init__(self, function: Callable[..., Any], n: int) -> None:
        self.function, self.left = function, n

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*given, **named)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("place", ["evaluate", "kernel"])
def test_an_interruption_keeps_what_is_known(
    place: str, parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment: the model is as it was, the plan has what was measured, and the store continues from there."""
    make: Any = Windows if parts else Whole
    techniques = [P, Q, G]
    whole = optimized(techniques, evaluate=make(), store=tmp_path / "whole.db")
    values = {row.text: row.metrics for row in whole.measurements}
    kernel, seen = states.run_kernel, set[int]()
    stride = 1 if place == "evaluate" else 17  # an order takes 18 kernel runs
    for number in range(1, 200, stride):
        model, evaluate, store = Tiny(), make(), tmp_path / f"{number}.db"
        before = {name: value.clone() for name, value in model.state_dict().items()}
        pressed: Any = evaluate
        if place == "evaluate":
            pressed = _Like(evaluate, number)
        else:
            monkeypatch.setattr(states, "run_kernel", Pressed(kernel, number))
        try:
            optimized(techniques, model=model, evaluate=pressed, store=store)
            break
        except cc.Interrupted as stop:
            plan = stop.plan
        monkeypatch.setattr(states, "run_kernel", kernel)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        measured = 0 if plan is None else plan.orders["measured"]
        seen.add(measured)
        if plan is not None:
            check_partial(plan, whole, values)
        again = make()
        resumed = optimized(techniques, evaluate=again, store=store)
        assert kept(resumed) == kept(whole)
        assert again.calls <= 1 + whole.orders["measured"] - measured
    else:
        raise AssertionError("the search never ended")
    assert seen >= {0, 1, whole.orders["measured"] - 1}


class _Like:
    """An ``evaluate`` with the attributes of another one, in whose n-th call Ctrl-C is pressed."""

    def __init__(self, evaluate: Any, n: int) -> None:
        self.evaluate, self.call = evaluate, Pressed(evaluate, n)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.call(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.evaluate, name)


def check_partial(plan: cc.Plan, whole: cc.Plan, values: dict[str, Any]) -> None:
    """Check that a partial plan has true values, and says of each order what is known of it."""
    assert plan.optimality == "interrupted" and "interruption" in plan.standing
    assert plan.orders["measured"] + plan.orders.get("open", 0) == whole.orders["measured"]
    assert plan.orders["total"] == sum(count for name, count in plan.orders.items() if name != "total")
    assert {row.text: row.metrics for row in plan.measurements}.items() <= values.items()
    assert plan.best.text == next(row.text for row in whole.measurements if row.text in map(str, measured_of(plan)))
    assert any("interrupted" in note for note in plan.notes)
    kinds = [account["fate"] for account in plan.accounts]
    assert kinds.count("open") == plan.orders.get("open", 0)
    for account in plan.accounts:
        assert plan.explain(account["order"])
    assert json.loads(json.dumps(plan.to_json()))["optimality"] == "interrupted"
    model = plan.apply(Tiny(), tokens())
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def measured_of(plan: cc.Plan) -> list[Any]:
    return [row.order for row in plan.measurements]


def test_an_interruption_after_exploring_ranks_the_rest_by_loss() -> None:
    whole = optimized([P, Q, L], evaluate=Whole(), evaluations=2)
    with pytest.raises(cc.Interrupted) as caught:
        optimized([P, Q, L], evaluate=_Like(Whole(), 2), evaluations=2)  # the first after the dense model
    plan = caught.value.plan
    losses = [row.losses["output_l2"] for row in plan.measurements]
    assert losses == sorted(losses) and not any(row.metrics for row in plan.measurements)
    assert plan.dense == whole.dense and plan.optimality == "interrupted"


def test_an_interruption_before_any_measurement_has_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asker, "ask", partialmethod(Pressed(Asker.ask, 2)))
    with pytest.raises(KeyboardInterrupt) as caught:
        optimized([P, Q])
    assert isinstance(caught.value, cc.Interrupted) and caught.value.plan is None


RECIPE = """
techniques: ["Magnitude(sparsity=1/2, pattern='2:4')", "AbsMax(bits=4, group=32)"]
model: embedded
calibration: {batches: 1, batch_size: 1, length: 32}
evaluate: {windows: 2, length: 32}
store: plan.db
"""
INTERRUPTED = """
import sys
from compcomp import cli
from compcomp.models.evaluation import Evaluation
sums, left = Evaluation.sums, [3]  # the dense model, one order, and in the midst of the second

def pressed(self, *given):
    left[0] -= 1
    if left[0] == 0:
        raise KeyboardInterrupt
    return sums(self, *given)

Evaluation.sums = pressed
sys.argv = ["compcomp", "optimize", "recipe.yaml", "--out", "out"]
cli.main()
"""


@pytest.mark.slow
def test_the_command_line_estimates_and_leaves_a_partial_plan(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    known: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
    command = [sys.executable, "-m", "compcomp", "optimize", "recipe.yaml"]
    dry = subprocess.run([*command, "--dry-run", "--json"], check=False, **known)
    assert dry.returncode == 0, dry.stderr
    found = json.loads(dry.stdout)
    assert (found["applications"], found["evaluations"], found["orders"]["left"]) == (4, 3, 2)
    assert not (tmp_path / "out").exists() and (tmp_path / "plan.db").exists()
    stopped = subprocess.run([sys.executable, "-c", INTERRUPTED], check=False, **known)
    assert stopped.returncode == 130 and "compcomp: interrupted; out/plan.json has Magnitude" in stopped.stderr
    assert stopped.stderr.strip().endswith(
        "the only order measured before an interruption, of 2 that no proof excludes"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]
    partial = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert partial["optimality"] == "interrupted" and partial["orders"]["open"] == 1
    done = subprocess.run([*command, "--json"], check=False, **known)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["optimality"] == "measured" and plan["dense"] == partial["dense"]
    assert {row["order"]: row["metrics"] for row in partial["measurements"]}.items() <= {
        row["order"]: row["metrics"] for row in plan["measurements"]
    }.items()
    assert plan["applications"]["done"] < found["applications"], (
        "what was applied for the first order is not applied again"
    )


# ------------------------------------------------------------------------------------------------ estimates

ESTIMATES: list[tuple[list[Any], dict[str, Any]]] = [
    ([P, Q, D], {}),
    ([P, Q, D], {"evaluate": Whole}),
    ([P, Q, D], {"evaluate": Whole, "calibrate": "dense"}),
    ([P, Q, D], {"evaluate": Whole, "evaluations": 1}),
    ([P, G], {"evaluate": Whole, "passes": "own"}),
    ([B, Q], {"evaluate": Whole, "loss": "weight_l2"}),
    ([P, cc.one_of(AbsMax(bits=4, group=4), AbsMax(bits=3, group=4)), D], {"evaluate": Whole}),
    ([P, cc.optional(G)], {"evaluate": Whole}),
]


@pytest.mark.parametrize(("techniques", "how"), ESTIMATES)
def test_an_estimate_counts_what_the_search_does(techniques: list[Any], how: dict[str, Any]) -> None:
    evaluate = how["evaluate"]() if "evaluate" in how else None
    how = {**how, "evaluate": evaluate} if evaluate is not None else how
    found = estimated(techniques, **how)
    if evaluate is not None:
        evaluate.calls = 0
    plan = optimized(techniques, **how)
    orders = plan.orders
    assert found.orders == {**{k: orders[k] for k in ("total", "merged", "dropped")}, "left": orders["measured"]}
    assert found.applications == plan.applications["done"]
    assert found.evaluations == (0 if evaluate is None else evaluate.calls)
    assert found.minutes > 0 and found.memory > 0 and math.isfinite(found.minutes)
    assert json.loads(json.dumps(found.to_json()))["applications"] == found.applications
    assert "applications" in str(found) and "about" in str(found)


def test_an_estimate_runs_each_part_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs: list[str] = []
    kernel = states.run_kernel

    def counted(technique: Any, *rest: Any) -> Any:
        runs.append(str(technique))
        return kernel(technique, *rest)

    monkeypatch.setattr(states, "run_kernel", counted)
    model, evaluate = Tiny(), Windows(64, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = estimated([P, Q, G], model=model, evaluate=evaluate, store=tmp_path / "plan.db", ignore=())
    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)}
    assert sorted(runs) == sorted(str(t) for t in (P, Q, G) for _ in shapes) and len(shapes) == 2
    assert (evaluate.asked, evaluate.calls) == (2, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.batches == 3 * (1 + found.orders["left"])
    assert len(Store(tmp_path / "plan.db")) > 0, "verdicts are kept for the search"
    monkeypatch.setattr(Questions, "ask_conditional", lambda *given: None)
    plan = optimized([P, Q, G], evaluate=Windows(64, 2), store=tmp_path / "plan.db", ignore=())
    assert plan.claims["asked"] == 0


def test_fused_experts_are_estimated_too() -> None:
    one = ARCHITECTURES["mixtral"]
    found = estimated([B, Q], model=one.build(), calibration=one.batches(), loss="weight_l2")
    assert found.applications == 2 and found.memory > 0


def test_claims_that_take_too_long_leave_an_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    real = estimated([B, Q], evaluate=Whole(), loss="weight_l2")
    monkeypatch.setattr(searching, "HURRIED", 0.0)
    found = estimated([B, Q], evaluate=Whole(), loss="weight_l2")
    assert (real.orders["left"], found.orders["left"]) == (1, 2)
    assert any("not decided" in note for note in found.notes)


def test_without_a_model_orders_alone_are_counted() -> None:
    found = cc.estimate([P, Q, D])
    assert found.orders["total"] == 6 and found.applications == 0 and found.minutes == 0


# ------------------------------------------------------------------------------------------------ logging


def test_what_happens_is_logged(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG, logger="compcomp"):
        plan = optimized([P, Q, D], evaluate=Whole())
    assert {record.name for record in caplog.records} == {"compcomp"}
    info = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    for text in ("6 orders of", "proofs:", "calibrating: 3 of 3", "measuring: 4 of 4"):
        assert any(message.startswith(text) for message in info), text
    debug = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert all(any(str(verdict.claim) in message for message in debug) for verdict in plan.verdicts)
    assert all(any(row.text in message for message in debug) for row in plan.measurements)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_shown_unless_asked_for() -> None:
    script = "import logging, compcomp; logging.getLogger('compcomp').warning('heard'); print(logging.lastResort.level)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
