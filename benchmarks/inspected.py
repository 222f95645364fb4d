"""Inspect what llm-compressor and compcomp write for the same recipe, and a checkpoint of the shape of a 3B model.

    python -m benchmarks.inspected DIR    the table; DIR is what `benchmarks.models prepare` wrote; needs llm-compressor

Every model is made, and every folder inspected, in a process of its own. Peak memory is that of inspecting, less
what the process had before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import heading, machine

RESULTS = Path(__file__).parent / "results"
EXPECTED = "2:4 W4g64"
SHAPED, BLOCKS = "3B", 2
GRID = ", scales='float32', grid='full_range')"


def by_llm_compressor(source: Path, folder: Path) -> None:
    """Compress with llm-compressor, SparseGPT 2:4 and then GPTQ, and save as it does."""
    from benchmarks.models import loaded, theirs, windows

    model = loaded(source, off_grid=False)
    theirs(model, windows(source, "calib.txt"), source)
    model.save_pretrained(folder, save_compressed=True)


def by_compcomp(source: Path, folder: Path) -> None:
    """Compress with compcomp by the same techniques, on the same grid with the mask kept, and export."""
    import compcomp as cc
    from benchmarks.models import BATCH, ORDER, windows

    calibration = [{"input_ids": rows} for rows in windows(source, "calib.txt").split(BATCH)]
    order = cc.parse_sequence(ORDER.removesuffix(")") + GRID)
    with tempfile.TemporaryDirectory() as place:
        cc.compress_checkpoint(order, source / "hf", Path(place) / "saved", calibration, "cpu")
        cc.export(Path(place) / "saved", folder, "compressed-tensors")


def shaped(source: Path, folder: Path) -> None:
    """Write a checkpoint of random weights."""
    from benchmarks.streamed import SHAPES, generate

    generate(folder, SHAPES[SHAPED], BLOCKS)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "llm-compressor": by_llm_compressor,
    "compcomp": by_compcomp,
    f"random, in the shape of {SHAPED}": shaped,
}


def inspected(folder: Path, expect: str | None) -> dict[str, Any]:
    """Inspect a folder in this process."""
    import compcomp as cc

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = cc.inspect(folder, expect)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    largest = max(layer.shape[0] * layer.shape[1] for layer in found.layers)
    asked = [layer for layer in found.layers if layer.broken is not None]
    return {
        "verdict": found.verdict,
        "broken": sum(layer.broken or 0 for layer in asked),
        "groups": sum(layer.groups or 0 for layer in asked),
        "seconds": time.process_time() - start,
        "peak_mb": peak / 1024,
        "largest_mb": largest * 2 / 1e6,
    }


def _apart(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.inspected", *arguments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout


def table(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    lines = [
        "# What two tools wrote for SparseGPT 2:4 and GPTQ 4-bit in groups of 64, inspected",
        "",
        f"{heading(machine('torch', 'llmcompressor', 'compressed-tensors'))}. `compcomp inspect FOLDER --expect "
        f'"{EXPECTED}"`',
        "",
        "| written by | verdict | groups of 4 that are broken | CPU s | peak MB | largest tensor in 16 bits, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        broken = (
            f"{row['broken']} of {row['groups']} ({row['broken'] / row['groups']:.1%})" if row["groups"] else "none"
        )
        numbers = f"{row['seconds']:.0f} | {row['peak_mb']:.0f} | {row['largest_mb']:.0f}"
        lines.append(f"| {row['who']} | {row['verdict']} | {broken} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the checkpoints, inspect them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", choices=list(MAKERS), help="make one checkpoint in OUT")
    parser.add_argument("--inspect", choices=["", EXPECTED], help="inspect OUT, and print what is found as JSON")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.make is not None:
        MAKERS[given.make](given.folder, given.out)
    elif given.inspect is not None:
        print(json.dumps(inspected(given.out, given.inspect or None)))
    else:
        rows = []
        for who in MAKERS:
            with tempfile.TemporaryDirectory() as place:
                _apart(str(given.folder), "--make", who, "--out", f"{place}/out")
                expect = "" if MAKERS[who] is shaped else EXPECTED
                text = _apart(str(given.folder), "--inspect", expect, "--out", f"{place}/out")
            rows.append({"who": who, **json.loads(text.splitlines()[-1])})
            print(rows[-1], flush=True)
        (RESULTS / "inspected.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
