"""Run a model over calibration data once, and collect what its layers see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.layer import Magnitudes
from compcomp.models.devices import move
from compcomp.models.grams import Grams
from compcomp.models.layers import Layer, evaluating, unwrap

BATCHES = "batches: an iterable or DataLoader of tensors, dicts or tuples"


def calibrate(
    model: nn.Module, layers: Iterable[Layer], batches: Any, magnitudes: dict[str, Magnitudes] | None = None
) -> dict[str, Tensor]:
    """The Gram matrix (in x in, float64, on the layer's device) of each layer's inputs, by name.

    The inputs are those of the **dense** model, for every layer and all along a sequence: layers are then
    independent problems, and what is proved about one layer applies to these very tensors. One pass collects
    all layers; layers that read the same tensors share one matrix, so treat them as read-only.

    ``batches`` is an iterable (a DataLoader, a generator) of tensors, ``model(x)``; of dicts,
    ``model(**batch)``; or of tuples and lists, ``model(*batch)``. A tensor or dict alone is one batch. They
    are moved to the model's device. Positions whose ``attention_mask`` is 0 are padding and left out. The
    model runs in eval mode without gradients; its modes come back, and no hook stays.

    ``magnitudes``: where given, filled with the largest and the mean magnitude of each layer's input features.

    Raises InputError when there is no batch, a layer never runs, or activations are not finite.
    """
    model = unwrap(model)
    layers = tuple(layers)
    grams, seen = Grams(), {layer.name: 0 for layer in layers}
    sizes: dict[str, tuple[Tensor, Tensor]] = {}  # of each feature the largest magnitude, and their sum
    mask: Tensor | None = None

    def hook(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def observe(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            kept = mask.to(inputs.device) if mask is not None and mask.shape == inputs.shape[:-1] else None
            tokens = inputs.shape[:-1].numel() if kept is None else int(kept.sum())
            if tokens:
                seen[layer.name] += tokens
                grams.add(layer.name, inputs, kept)
                if magnitudes is not None:
                    found = inputs.detach().reshape(-1, inputs.shape[-1]) if kept is None else inputs.detach()[kept]
                    largest, total = found.abs().amax(dim=0).double(), found.abs().sum(dim=0, dtype=torch.float64)
                    if layer.name in sizes:
                        before, more = sizes[layer.name]
                        largest, total = torch.maximum(largest, before), total + more
                    sizes[layer.name] = largest, total

        return observe

    device = next(p.device for p in model.parameters() if p.device.type != "meta")
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())  # inference_mode would leave its mark on what the model caches
        for layer in layers:
            for module in layer.modules:
                handle = module.register_forward_pre_hook(hook(layer), with_kwargs=True)
                stack.callback(handle.remove)
        empty = True
        for batch in iterate(batches):
            empty = False
            batch = move(batch, device)
            mask = token_mask(batch)
            run(model, batch)
            grams.end_batch()
    if empty:
        raise InputError("no batch", "at least one", "calibration")
    result = _checked(layers, grams.result(), seen)
    if magnitudes is not None:
        magnitudes.update((name, Magnitudes(most, total / seen[name])) for name, (most, total) in sizes.items())
    return result


def iterate(batches: Any) -> Iterable[Any]:
    """The batches, to be iterated over once; a tensor or dict alone is one batch."""
    if isinstance(batches, Tensor | Mapping):
        return [batches]
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise InputError(f"a {type(batches).__name__}", BATCHES, "calibration")
    return batches


def run(model: nn.Module, batch: Any) -> Any:
    """``model(x)``, ``model(**batch)`` or ``model(*batch)``."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, list | tuple):
        return model(*batch)
    raise InputError(f"a batch that is a {type(batch).__name__}", "a tensor, dict or tuple", "calibration")


def token_mask(batch: Any) -> Tensor | None:
    """Truth values (batch x tokens), or None when nothing is padding."""
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool((mask != 0).all()):
        return None
    return mask != 0


def _checked(layers: tuple[Layer, ...], grams: dict[str, Tensor], seen: dict[str, int]) -> dict[str, Tensor]:
    for layer in layers:
        where = f"layer {layer.name}"
        if not seen[layer.name]:
            allowed = "calibration that reaches the layer, or the layer in ignore"
            raise InputError("no input in any calibration batch", allowed, where)
        if not bool(torch.isfinite(grams[layer.name]).all()):
            raise InputError("calibration inputs that are not finite", "finite activations", where)
    return grams
