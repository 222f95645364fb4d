"""Give kernels that act on the whole model access to it, to its states and to its calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.layers.state import LayerState
from compcomp.layers.whole import Group, Outputs
from compcomp.models.calibrate import token_mask
from compcomp.models.devices import move
from compcomp.models.layers import Layer, is_from_transformers, unwrap
from compcomp.models.structure import attentions, block_list, blocks, feed_forwards

PROMPT = 4
"""The dense model continues from the first 1/PROMPT of a calibration sequence."""


class Whole:
    """A :class:`compcomp.layers.whole.WholeModel` over a torch module that holds the dense weights, in eval mode."""

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Layer], states: Mapping[str, LayerState], batches: Sequence[Any]
    ) -> None:
        self.model, self.layers, self.states = unwrap(model), layers, states
        self.batches = [move(batch, next(self.model.parameters()).device) for batch in batches]
        found = block_list(self.model, layers)
        self._points: list[nn.Module] = (
            list(found[1]) if found is not None else list({layer.modules[0]: None for layer in layers.values()})
        )

    def forward(self, batch: Any, weights: Mapping[str, Tensor] | None = None) -> Outputs:
        """See :meth:`compcomp.layers.whole.WholeModel.forward`."""
        args, kwargs = _arguments(batch)
        if is_from_transformers(self.model, "PreTrainedModel"):
            kwargs = {"use_cache": False, **kwargs}
        hidden: list[Tensor | None] = [None] * (1 + len(self._points))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden[0] = args[0] if args else next(iter(kwargs.values()))

        def after(place: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                hidden[place] = output[0] if isinstance(output, tuple | list) else output

            return hook

        with ExitStack() as stack:
            stack.callback(self._points[0].register_forward_pre_hook(before, with_kwargs=True).remove)
            for place, module in enumerate(self._points, start=1):
                stack.callback(module.register_forward_hook(after(place)).remove)
            if weights is None:
                output = self.model(*args, **kwargs)
            else:
                output = torch.func.functional_call(self.model, self._parameters(weights), args, kwargs)
        return Outputs(_logits(output), tuple(h for h in hidden if h is not None), token_mask(batch))

    def _parameters(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the module's parameters with these weights (out x in), in its dtype."""
        found: dict[str, Tensor] = {}
        for name, weight in weights.items():
            layer = self.layers[name]
            weight = weight.to(layer.parameter.dtype)
            if layer.index is None:
                found[layer.stored] = weight.T if layer.transposed else weight
            else:
                if layer.stored not in found:
                    found[layer.stored] = layer.parameter.detach().clone()
                layer.of(found[layer.stored]).copy_(weight)
        return found

    def generated(self, seed: int) -> list[Any]:
        """Sample at temperature 1 on the CPU's generator, see :meth:`compcomp.layers.whole.WholeModel.generated`.

        Raises InputError unless batches are sequences of tokens without padding, as a tensor or as ``input_ids``.
        """
        source = torch.Generator().manual_seed(seed)
        return [self._continued(batch, source) for batch in self.batches]

    @torch.no_grad()
    def _continued(self, batch: Any, source: torch.Generator) -> Any:
        ids = batch.get("input_ids") if isinstance(batch, dict) else batch
        plain = isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point()
        if not plain or token_mask(batch) is not None or (isinstance(batch, dict) and set(batch) - _TEXT):
            allowed = "batches of tokens (batch x length) without padding, to go on from their beginnings"
            raise InputError("other calibration batches", allowed, "targets='self'")
        assert isinstance(ids, Tensor)
        start = max(1, ids.shape[1] // PROMPT)
        found, cache, cached = ids[:, :start], None, is_from_transformers(self.model, "PreTrainedModel")
        fresh = found
        for _ in range(start, ids.shape[1]):
            if cached:
                output = self.model(input_ids=fresh, past_key_values=cache, use_cache=True)
                cache = getattr(output, "past_key_values", None)
                cached = cache is not None
            else:
                args, kwargs = _arguments({"input_ids": found} if isinstance(batch, dict) else found)
                output = self.model(*args, **kwargs)
            chances = torch.softmax(_logits(output)[:, -1].float(), dim=-1).cpu()
            fresh = torch.multinomial(chances, 1, generator=source).to(ids)
            found = torch.cat([found, fresh], dim=1)
        return {"input_ids": found} if isinstance(batch, dict) else found

    def neurons(self) -> list[Group]:
        """See :meth:`compcomp.layers.whole.WholeModel.neurons`."""
        allowed = "a model with feed-forward networks such as gate_proj, up_proj and down_proj, all to be compressed"
        return _some(feed_forwards(self.model, self.layers), "no feed-forward network", allowed)

    def heads(self) -> list[Group]:
        """See :meth:`compcomp.layers.whole.WholeModel.heads`."""
        allowed = "a model with attentions such as q_proj, k_proj, v_proj and o_proj, all to be compressed"
        return _some(attentions(self.model, self.layers), "no attention", allowed)

    def blocks(self) -> list[list[str]]:
        """See :meth:`compcomp.layers.whole.WholeModel.blocks`."""
        return blocks(self.model, self.layers)


_TEXT = {"input_ids", "attention_mask", "labels"}


def _some(groups: list[Group], none: str, allowed: str) -> list[Group]:
    if not groups:
        raise InputError(none, allowed, "model")
    return groups


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, dict):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, list | tuple) else (batch,)), {}


def _logits(output: Any) -> Any:
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) else output
