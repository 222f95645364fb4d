"""Language models from a local transformers directory, with text files to calibrate on and to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.models.windows import PerplexityOn


def load_directory(directory: Path) -> nn.Module:
    """The causal language model saved in a directory, in eval mode. Nothing is downloaded."""
    if not (directory / "config.json").is_file():
        raise InputError(f"{str(directory)!r}", "'embedded' or a directory with a transformers model", "recipe: model")
    from transformers import AutoModelForCausalLM

    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"{str(directory)!r} ({reason})", "a transformers causal language model", "recipe: model"
        ) from None
    return model.eval()


def token_windows(directory: Path, text: Path, length: int, count: int) -> Tensor:
    """``count`` windows of ``length`` tokens spread evenly over a text file: int64, count x length.

    The directory's tokenizer cuts the text; a model without one and with a vocabulary of bytes reads bytes.
    """
    if not text.is_file():
        raise InputError(f"{str(text)!r}, which is not there", "a text file", "recipe")
    ids = torch.tensor(_tokens(directory, text), dtype=torch.int64)
    if len(ids) < length:
        raise InputError(f"a text of {len(ids)} tokens", f"at least {length} tokens (its length)", f"recipe: {text}")
    starts = torch.linspace(0, len(ids) - length, count).long()
    return ids[starts[:, None] + torch.arange(length)]


def _tokens(directory: Path, text: Path) -> Any:
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        return tokenizer(text.read_text(encoding="utf-8"))["input_ids"]
    return list(text.read_bytes())


def perplexity_on(windows: Tensor, batch_size: int = 4) -> PerplexityOn:
    """``evaluate(model) -> {"perplexity": p}``: per token, over windows of int64 ids, count x length."""
    return PerplexityOn(windows, batch_size)
