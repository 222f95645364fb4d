"""Export a real language model in each format, and measure bytes, exactness and next tokens as transformers reads it.

    python -m benchmarks.exports DIR    the table; DIR is what `benchmarks.models prepare` wrote

Linear layers are rounded to 4 bits in groups of 64, and the embedding, which the output head shares, to 8 bits.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import compcomp as cc
from benchmarks.machine import heading, machine
from compcomp.exporting.export import Exported
from compcomp.models.bench import ModelBench
from compcomp.models.save import save

RESULTS = Path(__file__).parent / "results"
LINEAR = "AbsMax(bits=4, group=64, grid='full_range', scales='{dtype}')"
EMBEDDING = "AbsMax(bits=8, group=64, scales='{dtype}')"
LENGTH, WINDOWS = 256, 4


def compressed(source: Path, folder: Path, dtype: str) -> None:
    """Save the compressed model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    with ModelBench(model, None, None, "cpu", ("*", "Embedding"), (), loss_names=()) as bench:
        texts = {name: EMBEDDING if "embed" in name else LINEAR for name in bench.layer_names()}
        orders = {name: cc.parse_sequence(text.format(dtype=dtype)) for name, text in texts.items()}
        save(model, bench.apply_each(orders), folder)


def windows(source: Path, text: Path) -> torch.Tensor:
    """Return windows of tokens from a text."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(source)(text.read_text(encoding="utf-8"), return_tensors="pt").input_ids
    found: torch.Tensor = ids[:, : LENGTH * WINDOWS].reshape(WINDOWS, LENGTH)
    return found


@torch.no_grad()
def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a folder's model, as transformers loads it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = torch.cat([model(window[None]).logits.float() for window in ids])
    del model
    gc.collect()
    return found


def row(dtype: str, found: Exported, seconds: float, given: torch.Tensor, read: torch.Tensor | None) -> dict[str, Any]:
    """Return one line of the table."""
    line: dict[str, Any] = {"dtype": dtype, "seconds": seconds, **found.to_json()}
    if read is not None:
        line["same"] = float((given.argmax(-1) == read.argmax(-1)).float().mean())
        line["apart"] = float((given - read).abs().max())
    return line


def measured(folder: Path) -> list[dict[str, Any]]:
    """Export in each format, and load what transformers loads."""
    rows, ids = [], windows(folder / "hf", folder / "eval.txt")
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as place:
            saved = Path(place) / "saved"
            compressed(folder / "hf", saved, dtype)
            given = logits(saved, ids)
            out = Path(place) / "out"
            start = time.process_time()
            found = cc.export(saved, out, "compressed-tensors")
            rows.append(row(dtype, found, time.process_time() - start, given, logits(out, ids)))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the page."""
    lines = [
        "# SmolLM2-135M-Instruct, exported",
        "",
        heading(machine("torch", "transformers", "compressed-tensors")),
        "",
        f"- Linear layers: `{LINEAR}`; embedding and output head, one weight:",
        f"  `{EMBEDDING}`; dtype: that of the model.",
        "- promised: the bytes of the compressed layers by their compression rates.",
        "- step, weight: the largest change by the dtype in the file.",
        "- same tokens, logits: next tokens that agree with the model before the export, and the largest difference of",
        f"  logits, on {WINDOWS} windows of {LENGTH} tokens. transformers loads both.",
        "",
        "| model | format | MB | layers: MB / promised | exact layers | step | weight | same tokens | logits | CPU s |",
        "|" + "---|" * 10,
    ]
    for r in rows:
        size = f"{r['bytes'] / 1e6:.1f} | {r['layer_bytes'] / 1e6:.1f} / {r['promised_bytes'] / 1e6:.1f}"
        exact = f"{r['exact']} of {r['layers']} | {r['step_error']:.2g} | {r['weight_error']:.2g}"
        read = f"{r['same']:.2%} | {r['apart']:.2g} | {r['seconds']:.0f}"
        lines.append(f"| {r['dtype']} | {r['format']} | {size} | {exact} | {read} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the table and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    rows = measured(parser.parse_args().folder)
    (RESULTS / "exports.md").write_text(table(rows), encoding="utf-8")
    (RESULTS / "exports.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
