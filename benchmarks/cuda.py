"""Time kernels, and a recipe on the embedded model, on a CUDA device and on the CPU, and compare their results.

    python -m benchmarks.cuda [--device cuda] [--sizes 512 2048] [--repeats 3] [--out benchmarks/results]

Layers are square, in float32, with a Gram matrix. A time is the fastest of some runs after one that warms up. Writes
cuda.md, and cuda.json with the same rows. Results differ where sums are rounded otherwise: the column says by how much.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import compcomp as cc
from benchmarks.machine import heading, machine
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState
from compcomp.models import embedded
from compcomp.models.devices import move
from compcomp.models.states import applied
from compcomp.techniques import GPTQ, NF4, AbsMax, Hadamard, Magnitude, SparseGPT, TruncatedSVD, Wanda

TECHNIQUES: list[Technique] = [
    Magnitude("1/2", pattern="2:4"),
    Wanda("1/2", pattern="2:4"),
    AbsMax(bits=4, group=128),
    NF4(group=64),
    Hadamard(),
    TruncatedSVD(rank=8),
    SparseGPT("1/2", pattern="2:4"),
    GPTQ(bits=4, group=64),
]
RECIPE = SparseGPT("1/2", pattern="2:4") >> GPTQ(bits=4, group=64, mask="kept")


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    rows = [*kernels(device, given.sizes, given.repeats), recipe(device)]
    about = machine("torch", "transformers")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    lines = [f"{heading(about)}, {name}", "", "| what | CPU (s) | device (s) | CPU / device | difference |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        times = f"{row['cpu']:.4g} | {row['device']:.4g} | {row['cpu'] / row['device']:.3g}"
        lines.append(f"| {row['what']} | {times} | {row['difference']:.2g} |")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "cuda.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (given.out / "cuda.json").write_text(json.dumps({**about, "device": name, "rows": rows}, indent=1) + "\n")
    print("\n".join(lines))


def kernels(device: torch.device, sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Return a row for each technique and size: seconds, and the largest difference of weights over the largest one."""
    rows = []
    for size in sizes:
        here = layer(size)
        there = move(here, device)
        for technique in TECHNIQUES:
            cpu, one = timed(lambda state=here, step=technique: applied(step, "layer", state), repeats)
            gpu, two = timed(lambda state=there, step=technique: applied(step, "layer", state), repeats)
            apart = (one.effective() - two.effective().cpu()).abs().max() / one.effective().abs().max()
            what = f"{technique}, {size} x {size}"
            rows.append({"what": what, "cpu": cpu, "device": gpu, "difference": float(apart)})
    return rows


def recipe(device: torch.device) -> dict[str, Any]:
    """Return a row for the recipe on the embedded model. The difference is that of the logarithm of perplexity."""
    seconds, sizes = [], []
    for place in (torch.device("cpu"), device):
        model, batches = embedded.load(), embedded.calibration(batches=2)
        took, _ = timed(lambda m=model, b=batches, p=place: cc.apply(RECIPE, m, b, device=p), 0)
        seconds.append(took)
        sizes.append(embedded.perplexity(model, windows=8))
    difference = abs(float(torch.tensor(sizes, device="cpu").log().diff()))
    return {"what": f"{RECIPE}, embedded model", "cpu": seconds[0], "device": seconds[1], "difference": difference}


def layer(size: int) -> LayerState:
    """Return a random layer with the Gram matrix of correlated inputs."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=source)
    inputs = torch.randn(size, size, generator=source) @ torch.randn(size, 2 * size, generator=source) / size**0.5
    return LayerState.dense(weight, gram=inputs.double() @ inputs.double().T)


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the fewest seconds of some runs after a first one, or of this alone, and its result."""
    found, seconds = None, []
    for _ in range(1 + repeats):
        finished()
        start = time.perf_counter()
        found = run()
        finished()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds), found


def finished() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
