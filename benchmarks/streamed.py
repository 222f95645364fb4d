"""Compress generated checkpoints of known shapes with ``compcomp apply``, and show peak memory against depth.

    python -m benchmarks.streamed DIR 0.5B 1.5B 3B

Weights are random, in bfloat16, in shards on disk. Time and memory are those of a real model of this shape. Each run is
a process of its own. Every shape runs with a few blocks and with twice as many: memory must not grow with depth.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import heading, machine

RESULTS = Path(__file__).parent / "results"
SHAPES: dict[str, dict[str, int]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "heads": 14, "kv": 2, "vocab_size": 151936, "blocks": 24},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "heads": 12, "kv": 2, "vocab_size": 151936, "blocks": 28},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "heads": 24, "kv": 8, "vocab_size": 128256, "blocks": 28},
}
"""Shapes of Qwen2.5-0.5B, Qwen2.5-1.5B and Llama-3.2-3B."""
ORDER = "SparseGPT(sparsity=1/2, pattern='2:4') >> GPTQ(bits=4, group=64, mask='kept')"


def generate(folder: Path, shape: dict[str, int], blocks: int) -> int:
    """Write a checkpoint of random weights, a block in each shard. Returns its bytes."""
    import torch
    from safetensors.torch import save_file

    from compcomp.models.checkpoint import index_of

    wide, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["hidden_size"] // shape["heads"]
    rows = {"q_proj": wide, "k_proj": shape["kv"] * head, "v_proj": shape["kv"] * head, "o_proj": wide}
    source = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Any:
        return (torch.randn(*size, generator=source) * 0.02).bfloat16()

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": wide,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "vocab_size": shape["vocab_size"],
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights, size = dict[str, str](), 0
    for number in range(blocks + 1):
        if number < blocks:
            place = f"model.layers.{number}"
            tensors = {f"{place}.self_attn.{name}.weight": drawn(count, wide) for name, count in rows.items()}
            tensors |= {f"{place}.mlp.{name}.weight": drawn(inner, wide) for name in ("gate_proj", "up_proj")}
            tensors[f"{place}.mlp.down_proj.weight"] = drawn(wide, inner)
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{place}.{name}.weight"] = torch.ones(wide, dtype=torch.bfloat16)
        else:
            tensors = {"model.embed_tokens.weight": drawn(shape["vocab_size"], wide)}
            tensors["model.norm.weight"] = torch.ones(wide, dtype=torch.bfloat16)
        file = f"model-{number + 1:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weights |= dict.fromkeys(tensors, file)
        size += sum(tensor.numel() * 2 for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(index_of(weights, size))
    return size


def compress(folder: Path, out: Path, order: str, tokens: int) -> dict[str, float]:
    """Compress a checkpoint in this process. Returns CPU seconds and peak memory in GiB, libraries included."""
    import torch

    import compcomp as cc

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ids = torch.randint(0, 30000, (8, tokens // 8), generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    cc.compress_checkpoint(cc.parse_sequence(order), folder, out, [{"input_ids": rows} for rows in ids.split(2)], "cpu")
    return {
        "cpu_s": time.process_time() - start,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measured(folder: Path, name: str, blocks: int, order: str, tokens: int) -> dict[str, Any]:
    """Generate and compress one checkpoint, the latter in a process of its own."""
    import shutil

    place, out = folder / f"{name}-{blocks}", folder / f"{name}-{blocks}-compressed"
    size = generate(place, SHAPES[name], blocks)
    code = "import json, sys; from pathlib import Path; from benchmarks.streamed import compress; "
    code += "print(json.dumps(compress(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))"
    command = [sys.executable, "-c", code, str(place), str(out), order, str(tokens)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    shutil.rmtree(place)
    shutil.rmtree(out)
    row = {"shape": name, "blocks": blocks, "order": order, "tokens": tokens, "model_gib": size / 2**30}
    return row | json.loads(found.stdout.splitlines()[-1])


def write(rows: list[dict[str, Any]]) -> None:
    """Write the table of all rows, and their data as json."""
    about = machine("torch", "transformers", "safetensors")
    (RESULTS / "streamed.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    lines = [
        "# Checkpoints of generated weights, compressed one block at a time",
        "",
        f"{heading(about)}. bfloat16 shards on disk; peak memory of the process, libraries included (about 0.4 GiB).",
        "",
        "| shape | blocks | model GiB | order | tokens | peak GiB | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['shape']} | {row['blocks']} | {row['model_gib']:.2f} | `{row['order']}` | {row['tokens']} "
        f"| {row['peak_gib']:.2f} | {row['cpu_s']:.0f} |"
        for row in rows
    ]
    (RESULTS / "streamed.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="+", choices=list(SHAPES))
    parser.add_argument("--blocks", type=int, nargs="*", help="by default 2 and 4 blocks, and all of them for 0.5B")
    parser.add_argument("--order", default=ORDER)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--add", action="store_true", help="keep the rows of earlier runs")
    given = parser.parse_args()
    known = RESULTS / "streamed.json"
    rows = json.loads(known.read_text())["rows"] if given.add and known.is_file() else []
    for name in given.shapes:
        for blocks in given.blocks or (2, 4, *((SHAPES[name]["blocks"],) if name == "0.5B" else ())):
            rows.append(measured(given.folder, name, blocks, given.order, given.tokens))
            print(json.dumps(rows[-1]), flush=True)
    write(rows)


if __name__ == "__main__":
    main()
