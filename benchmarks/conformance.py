"""Every registered technique with every convention: kernel against encoding on hundreds of exact layers each.

    python -m benchmarks.conformance [--layers 200] [--only Magnitude,AbsMax] [--out benchmarks/results]

The check that the tests run on a few layers a convention (tests/test_conformance.py), on many: layers are drawn until
so many were compared. Counted apart: layers away from ties and midpoints, layers at a tie or midpoint that floats meet
exactly, and layers that were left out, as floats may choose otherwise there or the result is not rational. Writes
conformance.md (and conformance.json with a row for each convention), where --only leaves the lines of other techniques
as they are; exits with 1 where a technique fails, or a convention has fewer layers compared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loky import get_reusable_executor
from rich.progress import Progress

import compcomp.techniques
from benchmarks.machine import heading, machine
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.testing import check_encoding, conventions

Row = dict[str, Any]

MOST = 10
"""Layers to draw for each one that is to be compared, before the rest is given up."""


def checked(text: str, layers: int) -> Row:
    """What checking one technique, given as text, covered; with the first line of what went wrong, if anything did."""
    assert compcomp.techniques.__all__, "the registry is filled, in a worker too"
    torch.set_num_threads(1)
    (technique,) = parse_sequence(text)
    start, drawn = time.perf_counter(), layers
    try:
        while True:
            coverage = check_encoding(technique, max_examples=drawn, minimise=False)
            compared = coverage.clear + coverage.at_ties
            if compared >= layers or drawn == MOST * layers:
                break
            drawn = min(MOST * layers, math.ceil(1.1 * drawn * layers / max(compared, 1)))
        found: Row = asdict(coverage)
        if compared < layers:
            found["failure"] = f"{text}: {compared} of {layers} layers compared, {drawn} drawn"
    except AssertionError as error:
        found = {"failure": str(error).splitlines()[0]}
    return {"technique": type(technique).__name__, "text": text, "seconds": time.perf_counter() - start, **found}


def table(rows: Iterable[Row], layers: int, others: Iterable[str] = ()) -> str:
    """Return one line for each technique, its conventions together. ``others``: such lines of an earlier run."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row["technique"], []).append(row)
    lines = [
        f"at least {layers} layers compared for each convention, float64 on the CPU; {heading(machine('torch'))}",
        "",
        "| technique | conventions | compared, clear of ties | compared, at ties and midpoints | left out | failures |",
        "|---|---|---|---|---|---|",
    ]
    done = list[str]()
    for kind in kinds:
        total = Counter[str]()
        for row in kinds[kind]:
            total.update({k: row[k] for k in ("clear", "at_ties", "skipped") if k in row})
            total["failures"] += "failure" in row
        counts = (f"{total[k]:,}" for k in ("clear", "at_ties", "skipped", "failures"))
        done.append(f"| {kind} | {len(kinds[kind])} | {' | '.join(counts)} |")
    return "\n".join([*lines, *sorted([*done, *others])]) + "\n"


def lines_of_others(path: Path, done: set[str]) -> list[str]:
    """Return the lines of an earlier table that are about techniques other than those in ``done``."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| technique ")]
    return [line for line in rows if line.split()[1] not in done]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=200, help="to compare, for each convention")
    parser.add_argument("--only", default="", help="names of techniques, with commas between")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    kinds = [Technique.named(name) for name in given.only.split(",") if name] or list(Technique.kernels)
    texts = [str(technique) for kind in kinds for technique in conventions(kind)]
    rows: list[Row] = []
    pool = get_reusable_executor(os.cpu_count(), env={"OMP_NUM_THREADS": "1"})
    with Progress() as progress:
        task = progress.add_task("conventions", total=len(texts))
        for job in as_completed([pool.submit(checked, text, given.layers) for text in texts]):
            rows.append(job.result())
            if "failure" in rows[-1]:
                progress.console.print(rows[-1]["failure"], style="red")
            progress.advance(task)
    rows.sort(key=lambda row: row["text"])
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "conformance.json").write_text(json.dumps(rows, indent=1) + "\n")
    path = given.out / "conformance.md"
    others = lines_of_others(path, {kind.__name__ for kind in kinds}) if given.only else []
    text = table(rows, given.layers, others)
    path.write_text(text)
    print(text)
    return int(any("failure" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
