"""Run a model over calibration data once, and collect the inputs of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.bench import Watch, unwatched
from compcomp.errors import InputError
from compcomp.layers.state import Magnitudes
from compcomp.models.batches import prepared, run, running
from compcomp.models.devices import move
from compcomp.models.grams import Grams
from compcomp.models.layers import Layer, evaluating, unwrap
from compcomp.models.padding import Followed, Stream, disturbed, kept_positions, other_content, streams
from compcomp.models.products import watching

SHOWN = 8
"""The number of experts without tokens that an error names."""


def calibrate(
    model: nn.Module,
    layers: Iterable[Layer],
    batches: Any,
    magnitudes: dict[str, Magnitudes] | None = None,
    notes: list[str] | None = None,
    watch: Watch = unwatched,
) -> dict[str, Tensor]:
    """Return the Gram matrix (in x in, float64, on the layer's device) of each layer's inputs, by name.

    The inputs are those of the **dense** model, for every layer and throughout a sequence. Layers are therefore
    independent problems, and a proof about one layer applies to exactly these tensors. One pass collects all layers.
    Layers that read the same tensors share one matrix, so treat the matrices as read-only.

    The model runs in eval mode without gradients. Its modes are restored, and no hook remains. Tokens that a mask marks
    as padding are left out, in whatever form they reach a layer (:mod:`compcomp.models.padding`); a batch with padding
    runs three times.

    Args:
        model: The model, on the device to run on.
        layers: The layers to observe. Embeddings among them have no Gram matrix, as their inputs are ids.
        batches: An iterable (a DataLoader, a generator) of tensors, ``model(x)``; of dicts, ``model(**batch)``; or of
            tuples and lists, ``model(*batch)``. A tensor or dict alone is one batch. Batches are moved to the model's
            device.
        magnitudes: A dict to fill with the largest and the mean magnitude of each layer's input features.
        notes: A list to extend with lines on layers for which padding could not be determined.
        watch: Called after each batch, as the phase "calibrate".

    Raises:
        InputError: There is no batch, a batch cannot be used, a layer never runs, or activations are not finite.
    """
    model = unwrap(model)
    layers = tuple(layer for layer in layers if not layer.is_embedding)
    collected = Collected(layers)
    remarks: dict[str, set[str]] = {}
    looking: Followed | None = None
    first = False  # True in the run with other padding

    def see(layer: str, inputs: Tensor) -> None:
        if looking is not None and first:
            looking.see(layer, inputs)
        else:
            collected.add(layer, inputs, None if looking is None else looking.kept(layer, inputs))

    def hook(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: see(layer.name, args[0] if args else next(iter(kwargs.values())))

    device = next(p.device for p in model.parameters() if p.device.type != "meta")
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())  # inference_mode would mark the tensors that the model caches
        stack.enter_context(watching(layers, see))
        for layer in layers:
            for module in layer.called:
                handle = module.register_forward_pre_hook(hook(layer), with_kwargs=True)
                stack.callback(handle.remove)
        decoding = is_encoder_decoder(model)
        count, number = len(batches) if isinstance(batches, Sized) else None, 0
        count = 1 if isinstance(batches, Tensor | Mapping) else count
        watch("calibrate", 0, count, "batches")
        for number, batch in enumerate(prepared(model, batches), start=1):
            batch = move(batch, device)
            padded = streams(batch, decoding)
            with running(model, batch, number):
                if padded:
                    looking, first = Followed(padded, remarks, routed=experts_of(layers)), True
                    _disturbed_run(model, batch, padded, looking)
                    first = False
                run(model, batch)
            if looking is not None:
                looking.finish()
            looking = None
            collected.end_batch()
            watch("calibrate", number, count, "batches")
        if count is None or number < count:
            watch("calibrate", number, number, "batches")
    if notes is not None:
        notes += notes_of(remarks)
    result = collected.grams(layers)
    if magnitudes is not None:
        magnitudes.update(collected.magnitudes())
    return result


class Collected:
    """The Gram matrices and the magnitudes of the inputs that layers have seen."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        layers = tuple(layers)
        self._grams, self._seen = Grams(), {layer.name: 0 for layer in layers}
        self._experts = experts_of(layers)
        self._sizes: dict[str, tuple[Tensor, Tensor]] = {}  # of each feature the largest magnitude, and their sum

    def add(self, layer: str, inputs: Tensor, kept: Tensor | None) -> None:
        """Add the inputs (... x in) of one call. ``kept``: truth values (...), False for padding; None for none."""
        if layer in self._experts and not bool((real := inputs.detach().ne(0).any(dim=-1)).all()):
            kept = real if kept is None else kept & real  # tokens of other experts may arrive as zeros
        tokens = inputs.shape[:-1].numel() if kept is None else int(kept.sum())
        if not tokens:
            return
        self._seen[layer] += tokens
        self._grams.add(layer, inputs, kept)
        found = inputs.detach().reshape(-1, inputs.shape[-1]) if kept is None else inputs.detach()[kept]
        largest, total = found.abs().amax(dim=0).double(), found.abs().sum(dim=0, dtype=torch.float64)
        if layer in self._sizes:
            before, more = self._sizes[layer]
            largest, total = torch.maximum(largest, before), total + more
        self._sizes[layer] = largest, total

    def end_batch(self) -> None:
        """Close a batch: layers that did not read the same tensors in it get matrices of their own."""
        self._grams.end_batch()

    def grams(self, layers: Iterable[Layer]) -> dict[str, Tensor]:
        """Return the Gram matrix of each of these layers. Raises InputError if one saw nothing, or no finite inputs."""
        return _checked(tuple(layers), self._grams.result(), self._seen)

    def magnitudes(self) -> dict[str, Magnitudes]:
        """Return the largest and the mean magnitude of each layer's input features."""
        return {name: Magnitudes(most, total / self._seen[name]) for name, (most, total) in self._sizes.items()}


def _unreached(layer: Layer, unseen: list[Layer]) -> InputError:
    """Return the error for an expert that gets no token, with the numbers of all those of its module."""
    home = layer.stored.rpartition(".")[0]
    numbers = sorted({int(str(one.index)) for one in unseen if one.is_expert and one.inside == layer.inside})
    shown = ", ".join(map(str, numbers[:SHOWN])) + (f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else "")
    allowed = f"more calibration tokens, or these experts in ignore, as '{home}.*.{layer.index}'"
    return InputError(f"no token of the calibration for experts {shown} of {home}", allowed, f"layer {layer.name}")


def experts_of(layers: Iterable[Layer]) -> frozenset[str]:
    """Return the names of the layers that are experts."""
    return frozenset(layer.name for layer in layers if layer.is_expert)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Return True if the model's configuration says that it has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _disturbed_run(model: nn.Module, batch: Any, padded: list[Stream], looking: Followed) -> None:
    """Run the batch with other padding: change its embeddings, or its ids if the embeddings are not modules."""
    with disturbed(model, batch, padded, looking.notes) as (other, missed):
        run(model, other)
    if lost := missed():
        looking.forget()
        with other_content(model, batch, padded, lost, looking, everything=False) as changed:
            run(model, changed)
    looking.everything = True
    with other_content(model, batch, padded, lost, looking, everything=True) as changed:
        run(model, changed)
    looking.everything = False


def notes_of(remarks: Mapping[str, set[str]]) -> list[str]:
    """Return a line for each thing that could not be determined about padding, with the layers that it concerns."""
    return [_note(text, names) for text, names in remarks.items()]


def _note(text: str, names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"calibration: padding in {shown}: {text}"


def token_mask(batch: Any) -> Tensor | None:
    """Return truth values (batch x tokens), False for padding, or None if nothing is padding."""
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    kept = kept_positions("attention_mask", mask) if isinstance(mask, Tensor) else None
    return None if kept is None or bool(kept.all()) else kept


def _checked(layers: tuple[Layer, ...], grams: dict[str, Tensor], seen: dict[str, int]) -> dict[str, Tensor]:
    for layer in layers:
        where = f"layer {layer.name}"
        if not seen[layer.name] and layer.is_expert:
            raise _unreached(layer, [other for other in layers if not seen[other.name]])
        if not seen[layer.name]:
            allowed = "calibration that reaches the layer, or the layer in ignore"
            raise InputError("no input in any calibration batch", allowed, where)
        if not bool(torch.isfinite(grams[layer.name]).all()):
            raise InputError("calibration inputs that are not finite", "finite activations", where)
    return grams
