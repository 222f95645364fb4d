"""Time to decide one claim: the paper's plain formula in z3 and in cvc5, and this library, side by side in one run.

    python -m benchmarks.proving [--limit 60] [--bits 4] [--out benchmarks/results]

The claim is "prune half, then quantize, dominates the reverse" (weight_l1 and weight_l2), for 1 x n layers. The plain
formula is the If/Abs encoding of both sequences over n real weights and the negated claim, as in [hu2026] with its
faults mended: no reduction, no lemma, no centred loss. Each solver gets it in a process of its own with a hard limit.

This library is timed twice. "from nothing": no lemma and no answer is known, the two solvers' processes are running.
"theorem known": the claim for any shape was proved before in this run (its time is in the row "any shape", from
nothing), and the claim at this size is an instance of it; the median of several times, as one is short. A plain formula
has no such theorem to fall back on.

Ratios matter, seconds do not. Writes proving.json, proving.md and proving.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import z3
from rich.progress import track

import compcomp as cc
from benchmarks.machine import heading, machine
from compcomp.layers.state import LayerState
from compcomp.proving.meaning import fails
from compcomp.proving.solver import FIRST_RLIMIT, Cvc5Process, Portfolio, Remembering, Z3Process
from compcomp.techniques import AbsMax, Magnitude

SIZES = (2, 3, 4, 8, 16, 32, 64, 128)
LOSSES = ("weight_l1", "weight_l2")
PLAIN: dict[str, tuple[Callable[[], Any], ...]] = {
    "plain, z3": (partial(Z3Process, rlimit=0), partial(Z3Process, simple=False, rlimit=0)),
    "plain, cvc5": (partial(Cvc5Process, rlimit=0),),
}
"""Without a resource limit; of z3's two solvers the one that is faster."""
REPEATS = 25
"""How often an instance of a known theorem is decided."""
OURS = ("compcomp, from nothing", "compcomp, theorem known")
COLUMNS = (*PLAIN, *OURS)


def claim_of(bits: int, loss: str) -> cc.Claim:
    prune, quantize = Magnitude("1/2"), AbsMax(bits)  # type: ignore[arg-type]
    return cc.dominates(prune >> quantize, quantize >> prune, loss=loss)


def plain_formula(claim: cc.Claim, columns: int) -> str:
    """The negated claim over ``columns`` real weights, as SMT-LIB."""
    weight = np.array([[z3.Real(f"w{j}") for j in range(columns)]], dtype=object)
    runs = [sequence.trace(LayerState.dense(weight)) for sequence in claim.sequences]
    solver = z3.Solver()
    solver.add(fails(claim, runs))
    return solver.to_smt2()


def timed(solver: Any, script: str, limit: float) -> dict[str, Any]:
    start = time.perf_counter()
    answer = solver.ask(script, limit)
    seconds = time.perf_counter() - start
    solver.close()
    return {"seconds": round(seconds, 4), "answer": answer.answer, "decided": answer.answer == "unsat"}


class Ours:
    """This library with solver processes of its own, which are running already."""

    def __init__(self) -> None:
        self._processes = Portfolio(Z3Process(rlimit=FIRST_RLIMIT), Z3Process(simple=False)), Cvc5Process()
        for process in (*self._processes[0].solvers, self._processes[1]):
            process.ask("(declare-const x Real)(assert (> x 0))(check-sat)", 20)
        self._known = self.from_nothing()

    def from_nothing(self) -> cc.Prover:
        """A prover that remembers answers and lemmas from now on: none is known."""
        first, second = self._processes
        return cc.Prover(Remembering(first), Remembering(second))

    def decide(self, claim: cc.Claim, scope: Any, limit: float, *, known: bool) -> dict[str, Any]:
        if known:
            return timed_proof(claim, scope, limit, self._known, REPEATS)
        return timed_proof(claim, scope, limit, self.from_nothing(), 1)


def timed_proof(claim: cc.Claim, scope: Any, limit: float, prover: cc.Prover, times: int) -> dict[str, Any]:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        verdict = prover.prove(claim, scope, timeout=limit)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": round(median(seconds), 7),
        "answer": f"{verdict.status} ({verdict.reason}; {verdict.grade})",
        "decided": verdict.proved,
    }


def measure(bits: int, limit: float) -> list[dict[str, Any]]:
    rows, prover = [], Ours()
    for loss in LOSSES:
        prover.decide(claim_of(bits, loss), "any", limit, known=True)
    jobs = [(loss, size) for loss in LOSSES for size in (*SIZES, None)]
    given_up: set[tuple[str, str]] = set()
    for loss, size in track(jobs, description="deciding"):
        claim = claim_of(bits, loss)
        row: dict[str, Any] = {"loss": loss, "weights": size or "any shape"}
        for name, kinds in PLAIN.items():
            if size is None or (loss, name) in given_up:  # what failed at n is not tried at more than n
                row[name] = {"seconds": None, "answer": "not tried", "decided": False}
                continue
            tried = [timed(kind(), plain_formula(claim, size), limit) for kind in kinds]
            row[name] = min(tried, key=lambda cell: (not cell["decided"], cell["seconds"]))
            if not row[name]["decided"]:
                given_up.add((loss, name))
        scope = "any" if size is None else (1, size)
        for name, known in zip(OURS, (False, True), strict=True):
            row[name] = prover.decide(claim, scope, limit, known=known)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    heads = ["loss", "weights", *COLUMNS, "plain z3 / from nothing", "plain z3 / theorem known"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = []
        for name in COLUMNS:
            cell = row[name]
            shown = "not tried" if cell["seconds"] is None else f"{cell['seconds']:.3g} s"
            cells.append(shown if cell["decided"] or cell["seconds"] is None else f"no answer in {shown}")
        plain = row["plain, z3"]
        cells += [ratio(plain["seconds"] / row[name]["seconds"]) if plain["decided"] else "" for name in OURS]
        lines.append(f"| {row['loss']} | {row['weights']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(LOSSES), figsize=(11, 4.2), sharey=True)
    for axis, loss in zip(axes, LOSSES, strict=True):
        sized = [row for row in rows if row["loss"] == loss and row["weights"] != "any shape"]
        for name, style in zip(COLUMNS, ("o-", "s-", "^--", "v-"), strict=True):
            tried = [(r["weights"], r[name]) for r in sized if r[name]["seconds"] is not None]
            solved = [(n, cell["seconds"]) for n, cell in tried if cell["decided"]]
            line = (
                axis.plot(*zip(*solved, strict=True), style, label=name)
                if solved
                else axis.plot([], [], style, label=name)
            )
            failed = [(n, cell["seconds"]) for n, cell in tried if not cell["decided"]]
            if failed:
                axis.plot(*zip(*failed, strict=True), "x", color=line[0].get_color(), markersize=9)
        axis.set(xscale="log", yscale="log", xlabel="weights", title=loss)
        axis.set_xticks(SIZES, [str(n) for n in SIZES])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds (x: no answer)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one question")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    rows = measure(given.bits, given.limit)
    given.out.mkdir(parents=True, exist_ok=True)
    about = {"bits": given.bits, "limit": given.limit, **machine("z3-solver", "cvc5")}
    (given.out / "proving.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    asked = f"{given.bits} bits, {given.limit:g} s for one question"
    (given.out / "proving.md").write_text(f"{asked}; {heading(about)}\n\n{table(rows)}\n")
    draw(rows, given.out / "proving.png")
    print(table(rows))


if __name__ == "__main__":
    main()
