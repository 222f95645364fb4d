"""Orders that workers of an executor measure on whole models: the plan is the one without an executor, bit for bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.language.claim import Claim, Scope
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.models import sent
from compcomp.models.bench import ModelBench
from compcomp.models.calibration import DENSE, SEQUENTIAL, Calibration
from compcomp.models.causal_lm import perplexity_on
from compcomp.ordering import branches
from compcomp.ordering.progress import Progress
from compcomp.ordering.search import search
from compcomp.ordering.store import Store
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude
from tests.models.fakes import Tiny, tokens
from tests.ordering.fakes import verdict

TECHNIQUES: list[Technique] = [Magnitude("1/2"), AbsMax(3, group=4), LeastSquaresDistill()]


def nothing_proved(claim: Claim, scope: Scope, options: dict[str, Any]) -> Verdict:
    return verdict(claim, Status.UNKNOWN)


def noisy(model: nn.Module) -> dict[str, float]:
    """A metric that depends on the random numbers it begins with."""
    inputs = torch.cat(tokens()) if torch.rand(()) < 2 else None
    return {"loss": float(model(inputs).detach().square().mean() + torch.rand(()))}


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32
    )
    torch.manual_seed(3)
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def windows(count: int) -> torch.Tensor:
    return torch.randint(0, 32, (count, 6), generator=torch.Generator().manual_seed(5))


class FromDense:
    """The mean squared difference from the dense outputs, each row of tokens one part."""

    parts, key, higher_is_better = 64, "difference from dense outputs", False

    def __init__(self) -> None:
        self.tokens = torch.cat(tokens(self.parts // 2))
        self.dense = Tiny().eval()(self.tokens).detach()

    def __call__(self, model: nn.Module, parts: list[int] | None = None) -> Any:
        some = list(range(self.parts)) if parts is None else parts
        rows = (model(self.tokens[some]).detach() - self.dense[some]).square().mean((1, 2)).tolist()
        return {"difference": sum(rows) / len(rows) if parts is None else [(row, 1.0) for row in rows]}


@dataclass
class Setup:
    """A search, which is the same each time it is run."""

    model: Callable[[], nn.Module] = Tiny
    evaluate: Callable[..., Any] | None = noisy
    inputs: Calibration = DENSE
    techniques: tuple[Technique, ...] = tuple(TECHNIQUES)
    confidence: float | None = 0.99
    offload: bool = False

    def run(self, executor: Executor | None, store: Path | None = None, progress: Progress | None = None) -> Any:
        torch.manual_seed(7)
        kept = None if store is None else Store(store)
        with ModelBench(
            self.model(), tokens(), self.evaluate, "cpu", inputs=self.inputs, offload=self.offload, keep_batches=True
        ) as bench:
            plan = search(
                self.techniques,
                bench=bench,
                prover=nothing_proved,
                executor=executor,
                store=kept,
                progress=progress,
                confidence=self.confidence,
            )
            assert bench.changed() is None
        if kept is not None:
            kept.close()
        return plan


def compared(plan: Any) -> dict[str, Any]:
    """All of a plan but times."""
    data: dict[str, Any] = plan.to_json()
    del data["seconds"], data["verdicts"]
    return data | {"accounts": plan.accounts}


class Elsewhere(Executor):
    """Run every function as another process would: from its pickle, under other random states. ``loses``: results."""

    def __init__(self, loses: int = 0, max_workers: int = 2) -> None:
        self.jobs, self.loses, self._max_workers = list[Any](), loses, max_workers
        self.bytes = self.parts = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        message = cloudpickle.dumps((function, args))
        self.bytes = max(self.bytes, len(message))
        state, own = torch.get_rng_state(), branches.OWN
        torch.manual_seed(len(self.jobs))
        branches.OWN = "another process"
        try:
            found, given = cloudpickle.loads(message)
            result = found(*given)
        except Exception as error:
            future.set_exception(error)
        else:
            if len(given) > 1 and given[1] is branches.BranchJob:
                self.jobs.append(given[2])
                stretches = () if result.result is None else result.result.stretches
                self.parts += sum(len(next(iter(sums.values()))) for sums in stretches)
            if self.loses and self.jobs:
                self.loses -= 1
                future.set_exception(RuntimeError("the worker is gone"))
            else:
                future.set_result(result)
        finally:
            branches.OWN = own
            torch.set_rng_state(state)
        return future


@pytest.fixture(autouse=True)
def _nothing_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sent, "FORGET", 0.05)
    yield
    sent._open.close()


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(Setup(), id="shared prefixes"),
        pytest.param(Setup(offload=True), id="states in main memory"),
        pytest.param(Setup(inputs=SEQUENTIAL), id="whole orders"),
        pytest.param(Setup(model=llama, evaluate=perplexity_on(windows(40))), id="a race"),
        pytest.param(Setup(model=llama, evaluate=perplexity_on(windows(40)), inputs=SEQUENTIAL), id="a race, whole"),
        pytest.param(Setup(model=llama, evaluate=perplexity_on(windows(9)), confidence=None), id="no race, in parts"),
    ],
)
def test_the_plan_is_the_same(setup: Setup) -> None:
    executor = Elsewhere()
    alone, elsewhere = setup.run(None), setup.run(executor)
    assert compared(elsewhere) == compared(alone)
    assert len(executor.jobs) >= 6, "each of the six orders was measured elsewhere"
    assert executor.bytes < 40_000


def test_shared_prefixes_are_made_once() -> None:
    executor = Elsewhere()
    plan = Setup().run(executor)
    kept = [job for job in executor.jobs if job["keep"]]
    assert sorted(job["steps"] for job in kept) == sorted([str(technique)] for technique in TECHNIQUES)
    rest = [job for job in executor.jobs if not job["keep"]]
    assert len(rest) == 6 and all(len(job["steps"]) == 2 and job["start"] is not None for job in rest)
    assert plan.applications["done"] == sum(len(job["steps"]) for job in executor.jobs) == 3 + 6 * 2


def test_lost_workers_cost_a_job_each() -> None:
    alone, some, all_ = Setup().run(None), Elsewhere(loses=2), Elsewhere(loses=10**6)
    assert compared(Setup().run(some)) == compared(alone)
    assert compared(Setup().run(all_)) == compared(alone), "in the end the searching process measures itself"


@pytest.mark.parametrize("inputs", [DENSE, SEQUENTIAL])
def test_a_race_stops_orders_on_workers_too(inputs: Calibration) -> None:
    setup = Setup(evaluate=FromDense(), inputs=inputs)
    alone, one, three = setup.run(None), Elsewhere(max_workers=1), Elsewhere(max_workers=3)
    assert sum(bool(row.note) for row in alone.measurements) >= 2, "there are orders to stop"
    for executor in (one, three):
        assert compared(setup.run(executor)) == compared(alone)
    assert all(job["racing"].rivals for job in one.jobs[-2:]), "a job knows what to compare with"
    assert one.parts < three.parts <= 6 * 64, "the fewer jobs at once, the fewer parts are measured for nothing"


def test_a_store_is_filled_and_read(tmp_path: Path) -> None:
    evaluate = perplexity_on(windows(40))
    setup = Setup(model=llama, evaluate=evaluate)
    alone, first = setup.run(None), Elsewhere()
    assert compared(setup.run(first, tmp_path / "one.db")) == compared(alone)
    second = Elsewhere()
    again = setup.run(second, tmp_path / "one.db")
    assert not second.jobs and again.applications["kernel_runs"] == 0
    assert again.measurements[0].to_json() == alone.measurements[0].to_json()
    setup.run(None, tmp_path / "two.db")
    third = Elsewhere()
    setup.run(third, tmp_path / "two.db")
    assert not third.jobs, "what this process has measured counts as well"
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "no files of workers are left"


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    setup = Setup(model=llama, evaluate=perplexity_on(windows(40)))

    def stop(event: dict[str, Any]) -> None:
        if event["phase"] == "measure" and event["done"] == 2:
            raise KeyboardInterrupt

    first, second = Elsewhere(), Elsewhere()
    partial_ = setup.run(first, tmp_path / "one.db", Progress(stop))
    assert partial_.optimality == "interrupted" and len(partial_.measurements) == 2
    whole = setup.run(second, tmp_path / "one.db")
    alone = setup.run(None)
    assert [row.to_json() for row in whole.measurements] == [row.to_json() for row in alone.measurements]
    assert 0 < len(second.jobs) < len(first.jobs) + 6


def test_notes_of_workers_are_in_the_plan() -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        loss = float(model(tokens()[0]).detach().square().mean())
        return {"loss": loss, "spread": float("nan") if loss != dense else 1.0}

    dense = float(Tiny().eval()(tokens()[0]).detach().square().mean())
    with ModelBench(Tiny(), tokens(), evaluate, "cpu") as bench:
        search(TECHNIQUES, bench=bench, prover=nothing_proved, executor=Elsewhere())
        assert "evaluate: spread was nan" in bench.notes


def test_an_error_on_a_worker_names_the_order() -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        loss = float(model(tokens()[0]).detach().square().mean())
        return {"loss": loss} if loss == dense else {"other": loss}

    dense = float(Tiny().eval()(tokens()[0]).detach().square().mean())
    with pytest.raises(cc.InputError, match=r"evaluate of \w+\(.*\) >> .*: no 'loss' among other"):
        Setup(evaluate=evaluate).run(Elsewhere())


class Locked:
    """An ``evaluate`` that no other process can have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, model: nn.Module) -> dict[str, float]:
        with self.lock:
            return noisy(model)


@pytest.mark.parametrize(
    ("setup", "executor", "note"),
    [
        (Setup(evaluate=Locked()), Elsewhere(), "evaluate cannot be sent (TypeError: cannot pickle '_thread.lock'"),
        (Setup(), ThreadPoolExecutor(1), None),
    ],
)
def test_what_cannot_be_sent_is_measured_here(setup: Setup, executor: Executor, note: str | None) -> None:
    found = setup.run(executor)
    notes = [line for line in found.notes if "without the executor" in line]
    assert (note is None and not notes) or (note is not None and note in notes[0] and "\n" not in notes[0])
    assert [row.to_json() for row in found.measurements] == [row.to_json() for row in setup.run(None).measurements]
    executor.shutdown()


def test_a_closed_executor_is_named(tmp_path: Path) -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    found = Setup().run(executor)
    (note,) = [line for line in found.notes if "without the executor" in line]
    assert "cannot schedule new futures after shutdown" in note


def test_a_bench_is_closed_when_its_files_are_gone() -> None:
    Setup().run(Elsewhere())
    until = time.monotonic() + 10
    while sent._open.bench is not None and time.monotonic() < until:
        time.sleep(0.02)
    assert sent._open.bench is None, "a worker that waits for the next search holds no model"


# ------------------------------------------------------------------------------------------- a cluster


def slowly(started: str, evaluate: Callable[[nn.Module], Any], model: nn.Module) -> Any:
    """Tell which process measures, and give the test time to kill it."""
    path = Path(started) / f"{os.getpid()}"
    if not path.exists():
        path.write_text("")
        time.sleep(1.5 if len(list(Path(started).iterdir())) > 1 else 0)  # not in the searching process
    return evaluate(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "evaluate", "inputs"), [(Tiny, noisy, DENSE), (llama, perplexity_on(windows(8)), SEQUENTIAL)]
)
def test_a_cluster_of_which_a_worker_is_killed(
    model: Callable[[], nn.Module], evaluate: Callable[[nn.Module], Any], inputs: Calibration, tmp_path: Path
) -> None:
    """A worker process is killed while it measures a branch. The plan is the one without a cluster."""
    distributed = pytest.importorskip("distributed")
    started, other = tmp_path / "started", tmp_path / "other"
    started.mkdir()
    other.mkdir()
    alone = Setup(model, partial(slowly, str(other), evaluate), inputs).run(None)
    killed = list[int]()

    def kill() -> None:
        while not killed:
            if pids := {int(path.name) for path in started.iterdir()} - {os.getpid()}:
                killed.append(min(pids))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.02)

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        setup = Setup(model, partial(slowly, str(started), evaluate), inputs)
        clustered = setup.run(client.get_executor(pure=False), tmp_path / "plan.db")
        thread.join(10)
    measured = {int(path.name) for path in started.iterdir()} - {os.getpid()}
    assert killed and len(measured) >= 2, "the other worker, or the one in its place, has gone on"
    assert compared(clustered) == compared(alone)


@pytest.mark.slow
def test_clusters_that_are_of_no_use() -> None:
    """Workers that are threads of this process measure nothing, and a closed client is named."""
    distributed = pytest.importorskip("distributed")
    alone = Setup().run(None)
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor(pure=False)
        assert compared(Setup().run(executor)) == compared(alone)
    closed = Setup().run(executor)
    (note,) = [line for line in closed.notes if "without the executor" in line]
    assert "\n" not in note
    assert [row.to_json() for row in closed.measurements] == [row.to_json() for row in alone.measurements]
