"""How much of the full prefix tree a search applies: sets with and without members that absorb each other, in one run.

    python -m benchmarks.ordering [--sets schedule,four] [--out benchmarks/results]

Every set is searched on the embedded model, from nothing, with ``evaluate`` where the table says so. "applied" counts
kernel runs on single layers, divided by the number of layers, and is checked: the runs are counted a second time, where
the kernels are called. Writes ordering.json and ordering.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import compcomp as cc
from benchmarks.machine import heading, machine
from compcomp.models import embedded, states
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD, Wanda

D, L = LeastSquaresDistill(), TruncatedSVD(rank=8, residual=True)


def pruned(*shares: str, **given: Any) -> list[cc.Technique]:
    return [Magnitude(share, **given) for share in shares]  # type: ignore[arg-type]


SETS: dict[str, tuple[list[cc.Technique], bool, str]] = {
    "schedule": (
        [*pruned("1/4", "3/8", "1/2", "3/4"), AbsMax(7, group=32), AbsMax(4, group=32), L, D],
        True,
        "a gradual pruning schedule, two nested bit widths, a low-rank correction, distillation",
    ),
    "four": ([*pruned("1/4", "1/2"), L, D], True, "two sparsities, a low-rank correction, distillation"),
    "four, nothing absorbs": (
        [*pruned("1/2", pattern="2:4"), AbsMax(4, group=32), L, D],
        True,
        "2:4 pruning, 4 bits, a low-rank correction, distillation: the demo",
    ),
    "six, nothing absorbs": (
        [
            *pruned("1/2", pattern="2:4"),
            Wanda("1/4"),  # type: ignore[arg-type]
            AbsMax(8, group=64),
            AbsMax(4, group=32),
            L,
            D,
        ],
        False,
        "no two members absorb each other",
    ),
}


class Counted:
    """Kernel runs, counted where kernels are called; only in this process."""

    def __init__(self) -> None:
        self.runs, self._applied = 0, states.applied

    def __call__(self, *given: Any) -> Any:
        self.runs += 1
        return self._applied(*given)


def measure(name: str, executor: Any) -> dict[str, Any]:
    techniques, evaluated, what = SETS[name]
    start = time.perf_counter()
    plan = cc.optimize_order(
        techniques,
        model=embedded.load(),
        calibration=embedded.calibration(),
        evaluate=embedded.evaluator() if evaluated else None,
        executor=executor,
        progress=True,
        evaluations=24,
    )
    seconds = time.perf_counter() - start
    orders, applied = plan.orders, plan.applications
    assert orders["total"] == orders["merged"] + orders["dropped"] + orders["measured"]
    return {
        "set": name,
        "what": what,
        "techniques": [str(t) for t in techniques],
        "orders": orders,
        "left by proofs": plan.left,
        "applications": applied,
        "share": applied["kernel_runs"] / (applied["full_tree"] * len(list_layers())),
        "claims": plan.claims,
        "seconds": {**plan.seconds, "wall": round(seconds, 1)},
        "order": str(plan.order),
        "standing": plan.standing,
        "best": plan.best.to_json(),
        "dense": plan.dense,
    }


def list_layers() -> list[str]:
    from compcomp.models.layers import find_layers

    return [layer.name for layer in find_layers(embedded.load(), None, ("lm_head",))]


def checked(name: str) -> int:
    """Kernel runs of the same search in this process alone, counted where the kernels are called."""
    from compcomp.models import bench, explore

    counter = Counted()
    explore.applied = bench.applied = counter  # type: ignore[assignment,attr-defined]
    try:
        row = measure(name, Here())
    finally:
        explore.applied = bench.applied = counter._applied  # type: ignore[attr-defined]
    assert counter.runs == row["applications"]["kernel_runs"], (counter.runs, row["applications"])
    return counter.runs


class Here:
    """An executor that hands everything back, so that this process does it."""

    def submit(self, *given: Any) -> Any:
        raise RuntimeError("run it here")


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| set | orders | merged | dropped | measured | applied | of the full tree | wall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        orders, applied = row["orders"], row["applications"]
        lines.append(
            f"| {row['set']}: {row['what']} | {orders['total']:,} | {orders['merged']:,} | {orders['dropped']:,} "
            f"| {orders['measured']:,} | {applied['done']:,} of {applied['full_tree']:,} | {row['share']:.1%} "
            f"| {row['seconds']['wall']:,.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS).replace(", ", "+"), help="which, separated by commas")
    parser.add_argument("--check", default="four", help="the set whose kernel runs are counted a second time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.sets.split(","):
        rows.append(measure(name.replace("+", ", "), None))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    counted = checked(given.check)
    given.out.mkdir(parents=True, exist_ok=True)
    about = {
        **machine("torch", "z3-solver", "cvc5"),
        "checked": {"set": given.check, "kernel runs, counted a second time": counted},
    }
    (given.out / "ordering.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    text = table(rows)
    where = f"The embedded model, {len(list_layers())} layers; {heading(about)}"
    (given.out / "ordering.md").write_text(f"{where}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
