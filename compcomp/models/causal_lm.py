"""Load language models from a local transformers directory, and text files to calibrate on and to measure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.parameters import whole
from compcomp.models.windows import PerplexityOn

WHERE, ALLOWED = "recipe: model", "a directory with a transformers causal language model, of plain weights"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
BYTES = range(256, 512)
"""Sizes of a vocabulary that consists of bytes and a few other tokens."""


def load_directory(directory: Path) -> nn.Module:
    """Load the causal language model in a directory, in eval mode. Nothing is downloaded.

    Raises InputError, with the reason in one line, if it cannot be loaded with all of its weights as saved.
    """
    config_of(directory)
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                directory, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except Exception as error:  # whatever is wrong with the files, found by any library
            raise refused(directory, reason(error)) from None
    if other := sorted(report["mismatched_keys"]):
        name, saved, wanted = other[0]
        given = f"{name} is {_size(saved)} in the file and {_size(wanted)} by config.json"
        raise refused(directory, given + (f", and {len(other) - 1} more" if len(other) > 1 else ""))
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise refused(directory, f"its files lack {missing[0]}{more}")
    loaded: nn.Module = model.eval()
    return loaded


def config_of(directory: Path) -> Any:
    """Return the configuration of the model in a directory.

    Raises InputError, with the reason in one line, if there is none, or its weights are not plain ones.
    """
    if not (directory / "config.json").is_file() or (directory / "adapter_config.json").is_file():
        raise refused(directory, _instead(directory))
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # whatever is wrong with the file
            raise refused(directory, reason(error)) from None
    if quantized := getattr(config, "quantization_config", None):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise refused(directory, f"quantized already, by {str(method)[:40]}")
    return config


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the number of tokens that the model's embedding has, or None if it does not say."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
        return int(table.weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        return None


def token_windows(directory: Path, text: Path, length: int, count: int, vocabulary: int | None = None) -> Tensor:
    """Return ``count`` windows of ``length`` tokens spread evenly over a text file: int64, count x length.

    The directory's tokenizer cuts the text. A model without a tokenizer, with a vocabulary of bytes, reads bytes.

    Args:
        directory: The model's directory.
        text: The text file.
        length: Tokens in a window.
        count: The number of windows.
        vocabulary: The number of tokens that the model knows, or None.

    Raises:
        InputError: There is no such text, it is shorter than one window, it has tokens outside the vocabulary, or the
            tokenizer does not load.
    """
    if not text.is_file():
        raise InputError(f"{str(text)!r}, which is not there", "a text file", "recipe")
    ids = torch.tensor(_tokens(directory, text, vocabulary), dtype=torch.int64, device="cpu")
    if len(ids) < length:
        raise InputError(f"a text of {len(ids)} tokens", f"at least {length} tokens (its length)", f"recipe: {text}")
    if vocabulary is not None and int(ids.max()) >= vocabulary:
        raise refused(directory, f"its tokenizer gives token {int(ids.max())}, its vocabulary has {vocabulary}")
    starts = torch.linspace(0, len(ids) - length, count, device="cpu").long()
    return ids[starts[:, None] + torch.arange(length, device="cpu")]


def token_batches(directory: Path, text: Path, length: int, count: int, batch_size: int) -> list[dict[str, Tensor]]:
    """Return batches of windows of a text file's tokens, as :func:`token_windows` cuts them, for the model there."""
    for value, where in ((length, "length"), (count, "windows"), (batch_size, "batch_size")):
        whole(value, 1, 10**6, where)
    vocabulary = getattr(config_of(directory).get_text_config(), "vocab_size", None)
    found = token_windows(directory, text, length, count, vocabulary)
    return [{"input_ids": batch} for batch in found.split(batch_size)]


def _tokens(directory: Path, text: Path, vocabulary: int | None) -> Any:
    if any((directory / name).is_file() for name in TOKENIZERS):
        from transformers import AutoTokenizer

        with quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
                return tokenizer(text.read_text(encoding="utf-8"))["input_ids"]
            except UnicodeDecodeError:
                raise InputError(f"{str(text)!r}, which is not UTF-8", "a text file", "recipe") from None
            except Exception as error:
                raise refused(directory, f"its tokenizer does not load: {reason(error)}") from None
    if vocabulary is not None and vocabulary not in BYTES:
        raise refused(directory, f"no tokenizer, and a vocabulary of {vocabulary}, which is not one of bytes")
    return list(text.read_bytes())


def refused(directory: Path, why: str) -> InputError:
    """Return the error for a directory whose model cannot be used."""
    return InputError(f"{str(directory)!r} ({why})", f"'embedded' or {ALLOWED}", WHERE)


def _instead(directory: Path) -> str:
    """Describe in a few terms the contents of a directory that holds no model."""
    if not directory.exists():
        return "not there"
    if not directory.is_dir():
        return "a file"
    if (directory / "adapter_config.json").is_file():
        return "an adapter: merge it into its model and save that"
    if any(directory.glob("*.gguf")):
        return "GGUF files, which hold no plain weights"
    return "no config.json" if any(directory.iterdir()) else "empty"


def reason(error: Exception) -> str:
    """Return the first line of an error of another library, with its class."""
    lines = str(error).split("\n")
    line = " ".join(next((line for line in lines if line.strip()), "").split())
    return f"{type(error).__name__}: {line[:160]}" if line else type(error).__name__


def _size(shape: Any) -> str:
    return "x".join(map(str, shape))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' reports and bars: the message of an error has all that matters."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def perplexity_on(windows: Tensor, batch_size: int = 4) -> PerplexityOn:
    """Return ``evaluate(model) -> {"perplexity": p}``: per token, over windows of int64 ids, count x length."""
    return PerplexityOn(windows, batch_size)
