"""Long runs: killed at any point and started again, and with workers that die, they end with the same plan."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.amount import spread

HERE = Path(__file__).resolve().parents[2]
RUN = """
import json, os, signal, sys, threading
import torch
torch.set_num_threads(1)
import compcomp as cc
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.models.fakes import Tiny, tokens

def evaluate(model):
    return {"loss": float(model(tokens()[0]).detach().square().mean())}

evaluate.key = "outputs of the tiny model"
left, delay = int(sys.argv[2]), float(sys.argv[3])

def on_event(event):
    global left
    left -= 1
    if left == 0:
        threading.Timer(delay, lambda: os.killpg(0, signal.SIGKILL)).start()

techniques = [Magnitude("1/2"), AbsMax(4, group=4), TruncatedSVD(2, residual=True), LeastSquaresDistill()]
plan = cc.optimize_order(
    techniques, model=Tiny(), calibration=tokens(), evaluate=evaluate, device="cpu", store=sys.argv[1], evaluations=6,
    progress=on_event,
)
if left <= 0:
    threading.Event().wait()
data = plan.to_json()
kept = ("order", "optimality", "orders", "left", "measurements", "dense", "best", "worst", "loss", "metric")
print(json.dumps({"plan": {key: data[key] for key in kept}, "claims": data["claims"], "runs": data["applications"]}))
"""
NEVER = 10**9
EVENTS = 130
"""Of a run that is not killed: questions, proofs and measurements, nearly to its end."""


def run(store: Path, events: int = NEVER, delay: float = 0.0) -> dict[str, Any] | None:
    """What a run prints; None where it was killed, so long after so many events of its progress."""
    env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(store), str(events), str(delay)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=HERE, start_new_session=True)
    out, _ = process.communicate(timeout=300)
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("most", spread([2, 20], 1))
def test_kills(most: int, tmp_path: Path) -> None:
    """Runs are killed with all their workers somewhere on their way, and go on from their store to the same plan.

    So many in all, on as many stores as it takes: one that is nearly done has no way left on which to be killed.
    """
    whole, chance, kills, number = run(tmp_path / "whole.db"), random.Random(0), 0, 0
    assert whole is not None
    while kills < most:
        store, number = tmp_path / f"killed {number}.db", number + 1
        while (end := run(store, chance.randint(1, EVENTS), chance.uniform(0, 0.05))) is None and kills < most:
            kills += 1
        end = end or run(store)
        assert end is not None and end["plan"] == whole["plan"]
        again = run(store)
        assert again is not None and again["plan"] == whole["plan"]
        assert again["claims"]["asked"] == 0, "no solver is asked a second time"
        assert again["runs"]["kernel_runs"] == 0, "and nothing is measured a second time"


@pytest.mark.slow
def test_a_dask_cluster_of_which_a_worker_is_killed() -> None:
    """Two worker processes of a real cluster; one is killed while it works. The plan is the one without a cluster."""
    distributed = pytest.importorskip("distributed")

    import compcomp as cc
    from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
    from tests.models.fakes import Tiny, tokens

    techniques = [Magnitude("1/2"), AbsMax(4, group=4), TruncatedSVD(2, residual=True), LeastSquaresDistill()]

    def plan(executor: Any, progress: Any = False) -> cc.Plan:
        return cc.optimize_order(
            techniques, model=Tiny(), calibration=tokens(), device="cpu", executor=executor, progress=progress
        )

    alone = plan(None)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = sorted(client.run(os.getpid).values())
        killed = []

        def on_event(event: dict[str, Any]) -> None:
            if event["phase"] == "explore" and event["done"] >= 1 and not killed:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

        clustered = plan(client.get_executor(pure=False), on_event)
    assert killed
    same = ("order", "optimality", "orders", "left", "measurements", "applications")
    one, other = alone.to_json(), clustered.to_json()
    assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert alone.accounts == clustered.accounts
