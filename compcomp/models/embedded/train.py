"""Train the embedded model: ``python -m compcomp.models.embedded.train --out DIR``.

Training runs a fixed number of steps from a fixed seed, about five minutes on one idle core. It writes ``config.json``,
``model.safetensors`` (float16) and ``training.json``, the record of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from compcomp.models.embedded import load, perplexity, text

SEED = 0
STEPS = 1600
BATCH, LENGTH = 8, 256
MUON_RATE, ADAMW_RATE = 0.01, 0.02
DECAY_FROM = 0.3
EVALUATION_WINDOWS = 1024

# The inputs of every linear layer are a multiple of 128, so that groups of 32 to 128 and 2:4 divide them.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
}


def rate_at(step: int, steps: int) -> float:
    """Return the learning rate of ``step`` (from 0) as a share of the full rate: constant, then linear to zero."""
    return min(1.0, (1 - step / steps) / (1 - DECAY_FROM))


def train(steps: int = STEPS, seed: int = SEED) -> tuple[Qwen2ForCausalLM, float]:
    """Train on the standard library's source, and print progress. It seeds torch's global generator.

    Args:
        steps: The number of training steps.
        seed: The random seed.

    Returns:
        The model (float32, CPU) and its training loss in nats per byte, averaged over the last 100 steps.

    Raises:
        ValueError: ``steps`` is below 1, or the interpreter ships no library source.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    torch.manual_seed(seed)
    # Eager attention trains a third faster than the fused kernel at this size on a CPU.
    model = Qwen2ForCausalLM(Qwen2Config(**CONFIG, attn_implementation="eager")).train()
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=MUON_RATE),
        torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_at(step, steps)) for o in optimizers]
    batches = text.windows(text.training_bytes(), LENGTH, steps * BATCH, seed).split(BATCH)
    losses: list[float] = []
    start = time.perf_counter()
    for step, batch in enumerate(batches, 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            recent = sum(losses[-100:]) / len(losses[-100:])
            seconds = time.perf_counter() - start
            print(f"step {step}/{steps}  loss {recent:.4f} nats/byte  {seconds:.0f} s", flush=True)
    return model.eval(), sum(losses[-100:]) / len(losses[-100:])


def save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` (float16, no tied ``lm_head``) into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    state = {name: weight.half() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Train, save, load the saved model, and record its held-out perplexity."""
    parser = argparse.ArgumentParser(description="Train the embedded byte-level language model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="random seed (default: %(default)s)")
    # One thread by default: on a busy machine two can be many times slower than one.
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    model, loss = train(arguments.steps, arguments.seed)
    seconds = time.perf_counter() - start
    save(model, arguments.out)
    saved = load(folder=arguments.out)
    record = {
        "seed": arguments.seed,
        "steps": arguments.steps,
        "batch": BATCH,
        "length": LENGTH,
        "parameters": sum(p.numel() for p in saved.parameters()),
        "train_loss_nats_per_byte": round(loss, 4),
        "held_out_perplexity_per_byte": round(perplexity(saved, windows=EVALUATION_WINDOWS), 4),
        "held_out_windows": EVALUATION_WINDOWS,
        "training_bytes": len(text.training_bytes()),
        "held_out_bytes": len(text.held_out_bytes()),
        "wall_seconds": round(seconds),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
