"""Random claims about registered techniques: how many stay unknown, and which refusals of rules are most frequent.

    python -m benchmarks.campaign [--count 200] [--seed 0] [--timeout 20] [--out benchmarks/results]

Each claim is one of the five kinds, over sequences of one to three representatives of registered techniques, for any
shape. Claims of which both sides have one text are left out. Writes campaign.json (a row a claim) and campaign.md.
"""

from __future__ import annotations

import argparse
import json
import random
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
    words = (("T" if word.rstrip(",:") in Technique.known() else word) for word in text.split())
    return f"{rule}: {' '.join(words)}"


def summary(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Return the table of statuses by kind, and the most frequent refusals."""
    lines = [heading(about), "", "| kind | claims | unknown | share |", "|---|---|---|---|"]
    for kind in (*KINDS, ""):
        own = [row for row in rows if kind in ("", row["kind"])]
        unknown = sum(row["status"] == "UNKNOWN" for row in own)
        if own:
            lines.append(f"| {kind or 'all'} | {len(own)} | {unknown} | {100 * unknown / len(own):.0f} % |")
    counts = Counter(row["refusal"] for row in rows if "refusal" in row)
    lines += ["", "| unknown | nearest refusal |", "|---|---|"]
    lines += [f"| {count} | {text.replace('|', '/')} |" for text, count in counts.most_common(12)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    rows = [decide(claim, given.timeout) for claim in track(claims(given.count, given.seed), "claims")]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "campaign.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = summary(rows, machine("z3-solver"))
    (given.out / "campaign.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
