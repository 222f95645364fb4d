"""Measure perplexity over windows of tokens, as a mean over independent parts: one part a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.models.states import digest_of


class PerplexityOn:
    """The metric ``evaluate(model) -> {"perplexity": p}``: exp of the mean cross entropy (nats) of next tokens.

    A window's first token is given, not predicted. The model maps ``input_ids`` to an output with ``logits`` (batch x
    length x vocabulary). It stays on its device and in its mode. The attributes ``parts``, ``key`` and ``exp_of_mean``
    let a search measure part by part and keep its measurements, see docs/measuring.md.

    Args:
        windows: int64 ids, count x length.
        batch_size: The number of windows that run together. It bounds memory.
    """

    exp_of_mean = ("perplexity",)
    higher_is_better = False

    def __init__(self, windows: Tensor, batch_size: int) -> None:
        if batch_size < 1 or windows.ndim != 2 or windows.shape[1] < 2 or not len(windows):
            given = f"windows of shape {tuple(windows.shape)}, batch_size {batch_size}"
            raise InputError(given, "at least one window of two tokens, and batch_size 1", "perplexity")
        self.windows, self.batch_size, self.parts = windows, batch_size, len(windows)
        self.key = f"perplexity, {batch_size} windows at a time, {digest_of(windows)}"

    @overload
    def __call__(self, model: nn.Module) -> dict[str, float]: ...

    @overload
    def __call__(self, model: nn.Module, parts: Sequence[int]) -> dict[str, list[tuple[float, float]]]: ...

    def __call__(self, model: nn.Module, parts: Sequence[int] | None = None) -> Any:
        """Return the perplexity; with ``parts``, the summed cross entropy and the tokens of each window."""
        sums = self._sums(model, self.windows if parts is None else self.windows[list(parts)])
        tokens = self.windows.shape[1] - 1
        if parts is not None:
            return {"perplexity": [(total, float(tokens)) for total in sums]}
        mean = sum(sums) / (len(sums) * tokens)
        return {"perplexity": math.exp(mean) if mean < 700 else math.nan if math.isnan(mean) else math.inf}

    def _sums(self, model: nn.Module, windows: Tensor) -> list[float]:
        device, found = next(model.parameters()).device, list[float]()
        options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
        with torch.inference_mode():
            for batch in windows.to(device).split(self.batch_size):
                logits = model(input_ids=batch, **options).logits[:, :-1].float()
                losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
                found += losses.double().view(len(batch), -1).sum(1).tolist()
        return found
