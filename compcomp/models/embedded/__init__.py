"""Provide a real language model: 0.82 M parameters, bytes as tokens, trained on Python's standard library.

It loads offline in a moment, runs on a CPU, and reacts to compression as large models do. Recipes can be tried, tested
and demonstrated with it without a download. ``train.py`` in this folder made it, and ``training.json`` records how.
Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from compcomp.models.embedded import text

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Qwen2ForCausalLM

    from compcomp.models.windows import PerplexityOn

__all__ = ["FOLDER", "calibration", "evaluator", "load", "perplexity"]

FOLDER = Path(__file__).parent


def load(device: str = "cpu", folder: Path = FOLDER) -> Qwen2ForCausalLM:
    """Build the model from ``folder`` (``config.json``, ``model.safetensors``) on ``device``.

    Its input ids are bytes, 0 to 255, of shape (batch, length); it was trained on 256 bytes at a time. ``lm_head``
    shares its weight with the embedding: a technique that changes one changes both. Loading needs no network and leaves
    torch's random state as it was.

    Args:
        device: The device to load to.
        folder: The folder of the model's files.

    Returns:
        The model, in float32 and eval mode.

    Raises:
        FileNotFoundError: A file is missing.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with torch.random.fork_rng(devices=[]):
        model = Qwen2ForCausalLM(config)
    model.load_state_dict(weights)
    return model.to(device=torch.device(device), dtype=torch.float32).eval()


def calibration(batches: int = 4, batch_size: int = 8, length: int = 256, seed: int = 0) -> list[dict[str, Tensor]]:
    """Cut calibration batches out of the training text, the same ones for the same ``seed``.

    No byte is from the held-out text that `perplexity` reads.

    Args:
        batches: The number of batches.
        batch_size: Windows in a batch.
        length: Bytes in a window.
        seed: The seed of the places where windows begin.

    Returns:
        Dicts ``{"input_ids": int64 of shape (batch_size, length)}`` on the CPU.

    Raises:
        ValueError: A number is below 1, or the standard library's source is missing.
    """
    if batches < 1 or batch_size < 1:
        raise ValueError(f"batches and batch_size must be at least 1, got {batches} and {batch_size}")
    cut = text.windows(text.training_bytes(), length, batches * batch_size, seed)
    return [{"input_ids": batch} for batch in cut.split(batch_size)]


def perplexity(model: nn.Module, windows: int = 32, length: int = 256, batch_size: int = 8) -> float:
    """Measure the held-out perplexity per byte. Lower is better; 256 means no knowledge at all.

    Perplexity is exp of the mean cross entropy (in nats) of the next byte. A window's first byte is given, not
    predicted.

    Args:
        model: A model that maps ``input_ids`` to an output with ``logits`` of shape (batch, length, 256), as the one
            from `load` does. It stays on its device and in its mode.
        windows: The number of windows, spread evenly over the held-out text.
        length: Bytes in a window.
        batch_size: Windows that run together. It bounds memory and does not change the result.

    Raises:
        ValueError: ``windows`` or ``batch_size`` is below 1, ``length`` is below 2, or the standard library's source is
            missing.
    """
    return evaluator(windows, length, batch_size)(model)["perplexity"]


def evaluator(windows: int = 32, length: int = 256, batch_size: int = 8) -> PerplexityOn:
    """Return ``evaluate(model) -> {"perplexity": p}``: `perplexity` with these arguments, one part a window."""
    from compcomp.models.windows import PerplexityOn

    if batch_size < 1 or length < 2:
        raise ValueError(f"batch_size must be at least 1, length at least 2; got {batch_size} and {length}")
    return PerplexityOn(text.windows(text.held_out_bytes(), length, windows, seed=None), batch_size)
