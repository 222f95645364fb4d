"""Every claim of the test table: its verdict, the time to it from nothing, its witness, and its certificate.

    python -m benchmarks.claims [--out benchmarks/results]

Each claim is decided in one process, by both solvers, with no lemma and no answer known; torch and the solvers'
processes are loaded already. A claim that is proved for any shape is then proved again with certificates, saved, and
checked from the files alone, without solvers. Exit status 1 where a verdict is not the expected one.

Ratios matter, seconds do not. Writes claims.json, claims.md and claims.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import track

import compcomp as cc
from benchmarks.machine import heading, machine
from benchmarks.proving import Ours
from compcomp.checking.directory import check_directory
from compcomp.language.text import parse_claim
from tests.claims import CLAIMS

LIMIT = 60.0
"""Seconds for one claim."""
KINDS = {"proved, any shape": "tab:blue", "proved, one shape": "tab:cyan", "refuted": "tab:red"}
SLOWEST = 8
HEAD = ["| seconds | claim | loss | scope |", "|---|---|---|---|"]


def decide(ours: Ours, text: str, loss: str, scope: str, expected: str) -> dict[str, Any]:
    claim, prover = parse_claim(text, loss), ours.from_nothing()
    start = time.perf_counter()
    verdict = prover.prove(claim, scope, timeout=LIMIT)
    seconds = time.perf_counter() - start
    kind = str(verdict.status).lower()
    if verdict.proved:
        kind = "proved, any shape" if scope == "any" else "proved, one shape"
    row = {"claim": text, "loss": loss, "scope": scope, "expected": expected, "status": str(verdict.status)}
    row |= {"kind": kind, "seconds": round(seconds, 4), "reason": verdict.reason, "grade": str(verdict.grade)}
    if verdict.witness is not None:
        numbers = [x for line in (*verdict.witness.weight, *(verdict.witness.inputs or ())) for x in line]
        row["largest number"] = str(max(abs(x) for x in numbers))
        row["integers"] = all(x.denominator == 1 for x in numbers)
    if kind == "proved, any shape":
        row["certificate"] = checked(claim)
    return row


def checked(claim: cc.Claim) -> str:
    """What the checker says of the saved proof, without solvers."""
    with TemporaryDirectory() as folder:
        saved = cc.prove(claim, "any", timeout=LIMIT).save(Path(folder) / "proof")
        return check_directory(saved, solvers=False).outcome


def summary(rows: list[dict[str, Any]]) -> str:
    wrong = [row for row in rows if row["status"] != row["expected"]]
    lines = [f"{len(rows)} claims, {len(wrong)} of them with another verdict than expected.", ""]
    lines += [f"- {row['status']} instead of {row['expected']}: {row['claim']} ({row['loss']})" for row in wrong]
    refuted = [row for row in rows if row["kind"] == "refuted"]
    large = [row for row in refuted if not row["integers"] or int(row["largest number"]) > 99]
    lines.append(f"Witnesses of integers of two digits at the most: {len(refuted) - len(large)} of {len(refuted)}.")
    lines += [f"- up to {row['largest number']}: {row['claim']} ({row['loss']})" for row in large]
    outcomes = [row["certificate"] for row in rows if "certificate" in row]
    found = ", ".join(f"{outcomes.count(name)} {name}" for name in sorted(set(outcomes)))
    lines += [f"Saved proofs for any shape, checked without solvers: {found} of {len(outcomes)}.", ""]
    for kind in KINDS:
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: -row["seconds"])
        if own:
            lines += [f"The slowest of {len(own)} {kind}:", "", *HEAD]
            lines += [f"| {r['seconds']:.2f} | {r['claim']} | {r['loss']} | {r['scope']} |" for r in own[:SLOWEST]]
            lines.append("")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.2))
    for kind, colour in KINDS.items():
        seconds = sorted(row["seconds"] for row in rows if row["kind"] == kind)
        if seconds:
            share = [100 * (k + 1) / len(seconds) for k in range(len(seconds))]
            axis.plot(seconds, share, ".-", color=colour, label=f"{kind} ({len(seconds)})")
    axis.axvline(0.5, color="tab:red", linestyle=":", linewidth=1)
    axis.axvline(1.0, color="tab:blue", linestyle=":", linewidth=1)
    axis.set(xscale="log", xlabel="seconds from nothing (dotted: half a second, one second)", ylabel="% decided")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    ours = Ours()
    for status in ("PROVED", "REFUTED"):  # loads torch and the kernels
        decide(ours, *next(row for row in CLAIMS if row[3] == status))
    rows = [decide(ours, *row) for row in track(CLAIMS, description="deciding")]
    given.out.mkdir(parents=True, exist_ok=True)
    about = machine("z3-solver", "cvc5", "torch")
    (given.out / "claims.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    (given.out / "claims.md").write_text(f"{heading(about)}\n\n{summary(rows)}")
    draw(rows, given.out / "claims.png")
    print(summary(rows))
    if any(row["status"] != row["expected"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
