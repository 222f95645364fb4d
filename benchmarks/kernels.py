"""Time of each kernel against the fastest plain torch formula that gives the same result, side by side in one run.

    python -m benchmarks.kernels [--sizes 256 1024 4096] [--threads 2] [--repeats 7] [--out benchmarks/results]

Layers are float32, square, of random weights, in which nothing ties. A kernel is called as a technique calls it, with
its checks. A formula gives the same weight, and the same mask or step for each weight; the run stops if one does not.
Where several formulas are known, the fastest counts. Each time is the least CPU time of several calls that take turns.
There is no formula for GPTQ and SparseGPT. Where llm-compressor is installed, its functions, which compute in float32,
are called on the same layer. Ratios matter, seconds do not. Writes kernels.json and kernels.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import heading, machine
from compcomp.language.technique import Technique
from compcomp.layers import codebooks
from compcomp.layers.state import LayerState
from compcomp.techniques import GPTQ, NF4, AbsMax, Magnitude, SmoothQuant, SparseGPT, TruncatedSVD, Wanda

SIZES = (256, 1024, 4096)
TOKENS = 512
LONG = 10
"""Seconds after which a case is not repeated."""
SECOND_ORDER_MOST = 1024
"""The largest size for which GPTQ and SparseGPT are run."""
Result = tuple[Tensor, ...]
"""The weight, and its step or its mask."""


@dataclass(frozen=True)
class Case:
    """A technique, and functions that do the same.

    apart: The share of weights that may differ, as float32 formulas differ near midpoints.
    """

    technique: Technique
    formulas: dict[str, Callable[[LayerState], Result]]
    apart: float = 1e-4
    most: int = 4096


def absmax(layer: LayerState, bits: int, group: int) -> Result:
    groups = layer.weight.view(-1, group)
    levels = 2 ** (bits - 1) - 1
    step = torch.maximum(groups.amax(dim=1, keepdim=True), -groups.amin(dim=1, keepdim=True)) / levels
    level = (groups / step).round_().clamp_(-levels, levels)
    return level.mul_(step).view_as(layer.weight), step.expand_as(groups).reshape(layer.weight.shape)


def nf4(layer: LayerState, group: int) -> Result:
    groups = layer.weight.view(-1, group)
    codes = torch.tensor([float(code) for code in codebooks.NF4])
    step = torch.maximum(groups.amax(dim=1, keepdim=True), -groups.amin(dim=1, keepdim=True))
    places = torch.bucketize(groups / step, (codes[1:] + codes[:-1]) / 2)
    return (codes[places] * step).view_as(layer.weight), step.expand_as(groups).reshape(layer.weight.shape)


def kthvalue(scores: Tensor, weight: Tensor) -> Result:
    groups = scores.view(-1, 4)
    mask = (groups > groups.kthvalue(2, dim=1, keepdim=True).values).view_as(weight)
    return weight * mask, mask


def topk(scores: Tensor, weight: Tensor) -> Result:
    groups = scores.view(-1, 4)
    least = groups.topk(2, dim=1, largest=False, sorted=False).indices
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(1, least, False).view_as(weight)
    return weight * mask, mask


def minima(scores: Tensor, weight: Tensor) -> Result:
    """The second least of four from minima and maxima of pairs."""
    pairs = scores.view(-1, 2, 2)
    low, high = torch.minimum(pairs[:, 0], pairs[:, 1]), torch.maximum(pairs[:, 0], pairs[:, 1])
    second = torch.minimum(torch.minimum(high[:, 0], high[:, 1]), torch.maximum(low[:, 0], low[:, 1]))
    mask = (scores.view(-1, 4) > second[:, None]).view_as(weight)
    return weight * mask, mask


def half_of_all(layer: LayerState) -> Result:
    scores = layer.weight.abs().view(-1)
    mask = (scores > scores.kthvalue(len(scores) // 2).values).view_as(layer.weight)
    return layer.weight * mask, mask


def wanda(layer: LayerState) -> Tensor:
    assert layer.gram is not None
    return layer.weight.abs() * layer.gram.diagonal().sqrt().float()


def smoothquant(layer: LayerState) -> Result:
    assert layer.inputs is not None
    inputs, columns = layer.inputs.abs().amax(dim=1), layer.weight.abs().amax(dim=0)
    scales = inputs.sqrt() / columns.sqrt()
    return (layer.weight * scales,)


def eigenvectors(layer: LayerState, rank: int) -> Result:
    weight = layer.weight.double()
    vectors = torch.linalg.eigh(weight @ weight.T).eigenvectors[:, -rank:]
    return ((vectors @ (vectors.T @ weight)).float(),)


def their_gptq(layer: LayerState) -> Result:
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    assert layer.gram is not None
    groups = layer.weight.view(len(layer.weight), -1, 64)
    scales = groups.abs().amax(dim=2) / 7
    arguments = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=64, actorder="weight")
    gram = layer.gram.float()[None].clone()
    found = quantize_weight(
        layer.weight[None].clone(), gram, scales[None], torch.zeros_like(scales)[None], None, arguments
    )
    return (found[0][0],)


def their_sparse_gpt(layer: LayerState) -> Result:
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight

    assert layer.gram is not None
    linear = torch.nn.Linear(*layer.weight.T.shape, bias=False)
    linear.weight.data = layer.weight.clone()
    _, weight = sparsify_weight(linear, {linear: layer.gram.float().clone()}, 0.5, 2, 4, 128, 0.01, False)
    return (weight,)


def theirs(function: Callable[[LayerState], Result]) -> dict[str, Callable[[LayerState], Result]]:
    return {"llm-compressor": function} if find_spec("llmcompressor") else {}


def scored(
    scores: Callable[[LayerState], Tensor], way: Callable[[Tensor, Tensor], Result], layer: LayerState
) -> Result:
    return way(scores(layer), layer.weight)


def patterns(scores: Callable[[LayerState], Tensor]) -> dict[str, Callable[[LayerState], Result]]:
    ways = {"kthvalue": kthvalue, "topk": topk, "minima of pairs": minima}
    return {name: partial(scored, scores, way) for name, way in ways.items()}


CASES = (
    Case(AbsMax(4, 128), {"formula": lambda layer: absmax(layer, 4, 128)}),
    Case(AbsMax(8, 128), {"formula": lambda layer: absmax(layer, 8, 128)}, apart=1e-3),
    Case(NF4(64), {"bucketize": lambda layer: nf4(layer, 64)}),
    Case(Magnitude("1/2", pattern="2:4"), patterns(lambda layer: layer.weight.abs())),
    Case(Magnitude("1/2"), {"kthvalue": half_of_all}),
    Case(Wanda("1/2", pattern="2:4"), patterns(wanda)),
    Case(SmoothQuant("1/2"), {"formula": smoothquant}),
    Case(TruncatedSVD(8), {"eigh": lambda w: eigenvectors(w, 8)}),
    Case(SparseGPT("1/2", pattern="2:4"), theirs(their_sparse_gpt), apart=1, most=SECOND_ORDER_MOST),
    Case(GPTQ(4, 64), theirs(their_gptq), apart=1, most=SECOND_ORDER_MOST),
)


def layer_of(size: int) -> LayerState:
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(size, size, generator=generator) * 0.02
    return LayerState.dense(weight, torch.randn(size, TOKENS, generator=generator))


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def differs(case: Case, ours: LayerState, other: Result) -> float:
    """The share of weights (or entries of mask and step) that differ by more than float32 rounding."""
    form = ours.format
    mine = [ours.weight, form.grid.step if form.grid is not None else form.mask]
    found = []
    for a, b in zip(mine, other, strict=False):
        left, right = a.double(), b.double()
        found.append((left - right).abs() > 1e-5 * right.abs() + 1e-6 * right.abs().max())
    return max(float(apart.double().mean()) for apart in found)


def run_case(case: Case, layer: LayerState, repeats: int) -> dict[str, Any]:
    kernel = case.technique.kernel()
    ways: dict[str, Callable[[LayerState], Any]] = {"ours": partial(kernel, case.technique), **case.formulas}
    times: dict[str, float] = {}
    results: dict[str, Any] = {}
    began = time.perf_counter()
    for _ in range(repeats * max(1, 1024 // len(layer.weight)) ** 2):
        for name, way in ways.items():
            taken, results[name] = seconds(partial(way, layer))
            times[name] = min(taken, times.get(name, taken))
        if time.perf_counter() - began > LONG:
            break
    ours = results.pop("ours")
    for name, result in results.items():
        if (share := differs(case, ours, result)) > case.apart:
            raise SystemExit(f"{case.technique}: {name} differs in a share of {share:.2g}")
    others = [name for name in times if name != "ours"]
    fastest = min(others, key=lambda name: times[name]) if others else None
    row = {"technique": str(case.technique), "size": len(layer.weight), "times": times, "fastest": fastest}
    print(row, flush=True)
    return row


def measure(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        layer = layer_of(size)
        rows += [run_case(case, layer, repeats) for case in CASES if size <= case.most]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| technique | side | kernel | fastest other | its time | ratio |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: [str(case.technique) for case in CASES].index(row["technique"])):
        ours, fastest = row["times"]["ours"], row["fastest"]
        cells = [row["technique"], row["size"], shown(ours)]
        cells += (
            [fastest, shown(row["times"][fastest]), f"{ours / row['times'][fastest]:.2f}"] if fastest else ["", "", ""]
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def shown(taken: float) -> str:
    return f"{taken * 1e3:.3g} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="of each call; more below a side of 1024")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with torch.no_grad():
        rows = measure(given.sizes, given.repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    about = {"threads": given.threads, **machine("torch", *(["llmcompressor"] if find_spec("llmcompressor") else []))}
    (given.out / "kernels.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    head = f"CPU time, {given.threads} threads; {heading(about)}"
    (given.out / "kernels.md").write_text(f"{head}\n\n{table(rows)}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
