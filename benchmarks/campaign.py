"""Random claims about registered techniques: how many stay unknown, and which refusals of rules are most frequent.

    python -m benchmarks.campaign [--count 200] [--seed 0 1] [--timeout 20] [--before DIR] [--out benchmarks/results]

Each claim is one of the five kinds, over sequences of one to three representatives of registered techniques, for any
shape. Claims of which both sides have one text are left out. With --before, another checkout of this repository decides
the same claims at the same time. Writes campaign.json (a row a claim) and campaign.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

import compcomp as cc
import compcomp.techniques
from benchmarks.machine import heading, machine
from compcomp.errors import InputError
from compcomp.language.claim import Claim, dominates, equal, fits, keeps, orthogonal
from compcomp.language.samples import representatives
from compcomp.language.technique import Sequence, Technique
from compcomp.layers.state import INVARIANTS

LOSSES = ("weight_l1", "weight_l2", "output_l2")
SCHEMES = ("W4", "W4 2:4", "2:4", "50%", "W8 A8")
KINDS = ("dominates", "equal", "keeps", "fits", "orthogonal")


def drawn(seed: int) -> Iterator[Claim]:
    """Draw claims without end, the same for each seed and catalogue."""
    draw = random.Random(seed)
    kinds = [kind for _, kind in sorted(Technique.known().items()) if kind.__module__.startswith("compcomp.")]
    known = [technique for kind in kinds for technique in representatives(kind) if not technique.whole_model]
    while True:
        few = [draw.choice(known) for _ in range(draw.choice((1, 2, 2, 3)))]
        left, kind = Sequence(tuple(few)), draw.choice(KINDS)
        shuffled = draw.sample(few, len(few))
        right = Sequence(tuple(draw.choice((shuffled, few[:-1], few[1:], [draw.choice(known)]))))
        try:
            if kind in ("dominates", "equal") and str(left) == str(right):
                continue
            if kind == "dominates":
                yield dominates(left, right, draw.choice(LOSSES))
            elif kind == "equal":
                yield equal(left, right)
            elif kind == "keeps":
                yield keeps(left, draw.choice(tuple(INVARIANTS)))
            elif kind == "fits":
                yield fits(left, draw.choice(SCHEMES))
            else:
                yield orthogonal(left, right, draw.choice(LOSSES[:2]))
        except InputError:
            continue


def claims(count: int, seed: int = 0) -> list[Claim]:
    """Return this many different claims."""
    found: dict[str, Claim] = {}
    for claim in drawn(seed):
        found.setdefault(f"{claim} {claim.loss and claim.loss.name}", claim)
        if len(found) == count:
            break
    return list(found.values())


def decide(claim: Claim, timeout: float) -> dict[str, Any]:
    """Decide one claim, with the nearest refusal of a rule where it stays unknown."""
    start = time.perf_counter()
    verdict = cc.prove(claim, timeout=timeout)
    row = {"claim": str(claim), "loss": claim.loss.name if claim.loss else None, "kind": claim.kind}
    row |= {"status": str(verdict.status), "cause": verdict.cause, "seconds": round(time.perf_counter() - start, 3)}
    if verdict.tried:
        row["refusal"] = general(verdict.tried[0].rule, verdict.tried[0].reason)
    return row


def general(rule: str, reason: str) -> str:
    """Return a reason without the texts of techniques, so that like reasons count as one."""
    text, depth = "", 0
    for letter in reason:  # what stands in brackets are parameters
        depth += (letter == "(") - (letter == ")")
        text += letter if depth == 0 and letter != ")" else ""
    tokens = (("T" if token.rstrip(",:") in Technique.known() else token) for token in text.split())
    return f"{rule}: {' '.join(tokens)}"


def summary(rows: list[dict[str, Any]], before: list[dict[str, Any]], about: dict[str, Any], how: str) -> str:
    """Return the table of statuses by kind, and the most frequent refusals.

    Args:
        rows: the decided claims.
        before: the same claims as another checkout decided them, or nothing.
        about: what the result was measured with.
        how: one line on the claims.
    """
    lines = [heading(about), "", how, "", "| kind | claims | unknown | share |", "|---|---|---|---|"]
    if before:
        lines[-2:] = ["| kind | claims | unknown before | share | unknown | share |", "|---|---|---|---|---|---|"]
    for kind in (*KINDS, ""):
        parts = [[row for row in each if kind in ("", row["kind"])] for each in (before, rows) if each]
        if parts[-1]:
            counts = [sum(row["status"] == "UNKNOWN" for row in own) for own in parts]
            shares = (f"{count} | {100 * count / len(parts[-1]):.0f} %" for count in counts)
            lines.append(f"| {kind or 'all'} | {len(parts[-1])} | {' | '.join(shares)} |")
    if before:
        pairs = Counter((was["status"], row["status"]) for was, row in zip(before, rows, strict=True))
        lines += ["", "| before | now | claims |", "|---|---|---|"]
        lines += [f"| {was} | {now} | {count} |" for (was, now), count in sorted(pairs.items()) if was != now]
    refusals = Counter(row["refusal"] for row in rows if "refusal" in row)
    lines += ["", "| unknown | nearest refusal |", "|---|---|"]
    lines += [f"| {count} | {text.replace('|', '/')} |" for text, count in refusals.most_common(12)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--before", type=Path, default=None, help="another checkout of this repository")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    rows, before = list[dict[str, Any]](), list[dict[str, Any]]()
    for seed in given.seed:
        with tempfile.TemporaryDirectory() as folder:
            other = None if given.before is None else started(given, seed, Path(folder))
            own = [decide(claim, given.timeout) for claim in track(claims(given.count, seed), f"seed {seed}")]
            if other is not None:
                if other.wait():
                    raise SystemExit(f"the checkout in {given.before} failed")
                before += json.loads((Path(folder) / "campaign.json").read_text())
        rows += own
    if before and [row["claim"] for row in before] != [row["claim"] for row in rows]:
        raise SystemExit("the other checkout draws other claims")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "campaign.json").write_text(json.dumps(rows, indent=1) + "\n")
    seeds = ", ".join(map(str, given.seed))
    how = f"{given.count} claims from each of the seeds {seeds}; {given.timeout:g} seconds for a claim."
    if given.before is not None:
        how += f" Before: commit {commit(given.before)}, at the same time on the same machine."
    text = summary(rows, before, machine("z3-solver", "cvc5"), how)
    (given.out / "campaign.md").write_text(text)
    print(text)


def started(given: argparse.Namespace, seed: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start deciding the claims of a seed in the other checkout."""
    options = ["--count", given.count, "--seed", seed, "--timeout", given.timeout, "--out", folder]
    command = [sys.executable, "-m", "benchmarks.campaign", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(given.before.resolve())}
    return subprocess.Popen(command, cwd=given.before, env=environment, stdout=subprocess.DEVNULL)


def commit(checkout: Path) -> str:
    """Return the commit of a checkout."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


if __name__ == "__main__":
    main()
