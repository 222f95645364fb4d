"""Time each part of a search once: a calibration batch, the techniques on a layer of each shape, parts of evaluate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.bench import Trial
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.models.batches import prepared, run
from compcomp.models.calibrate import calibrate
from compcomp.models.devices import move
from compcomp.models.evaluation import Evaluation
from compcomp.models.explore import size_of
from compcomp.models.held import HeldModel
from compcomp.models.layers import Layer, evaluating
from compcomp.models.measure import layer_losses
from compcomp.models.states import applied, digest
from compcomp.models.wrappers import uncompiled


class Calibrated:
    """The trial of one calibration batch: seconds of a run alone, and of one with Gram matrices. ``count``: of all."""

    def __init__(self, model: nn.Module, layers: Iterable[Layer], batches: Iterable[Any] | None) -> None:
        self.grams: dict[str, Tensor] = {}
        self.magnitudes: dict[str, Magnitudes] = {}
        self.count, self.forward, self.seconds, self.known = 0, 0.0, 0.0, True
        if batches is None:
            return
        self.known = isinstance(batches, Sized)
        self.count = len(batches) if isinstance(batches, Sized) else 1
        first = list(islice(prepared(model, batches), 1))
        with uncompiled(model) as model, evaluating(model), torch.no_grad():
            device = next(p.device for p in model.parameters() if p.device.type != "meta")
            start = time.perf_counter()
            run(model, move(first[0], device))
            self.forward = time.perf_counter() - start
            start = time.perf_counter()
            self.grams = calibrate(model, layers, first, self.magnitudes)
            self.seconds = time.perf_counter() - start

    @property
    def bytes(self) -> int:
        """The bytes of the Gram matrices. Layers that read the same tensors share one."""
        return sum({id(gram): gram.numel() * gram.element_size() for gram in self.grams.values()}.values())


def trial_of(
    techniques: Sequence[Technique],
    path: Sequence[int],
    loss_names: Sequence[str],
    calibrated: Calibrated,
    evaluation: Evaluation,
    held: HeldModel,
) -> Trial:
    """Return how long each part of a search takes, and what it holds, from a trial of each.

    Args:
        techniques: The techniques of the search.
        path: An order, by positions, along which techniques are timed. The others are timed on the dense layer.
        loss_names: The losses that are measured.
        calibrated: The trial of the calibration.
        evaluation: The user's ``evaluate``.
        held: The model, whose present state is the dense one.
    """
    apply, losses, state = _on_layers(techniques, path, loss_names, held)
    notes = [] if calibrated.known else ["the number of calibration batches is not known: one was assumed"]
    if coupled := [technique for technique in techniques if technique.whole_model]:
        notes.append(f"the time of {coupled[0]}, which acts on the whole model, is not estimated")
    return Trial(
        batches=calibrated.count,
        calibrate=calibrated.seconds,
        forward=calibrated.forward,
        apply=tuple(apply),
        losses=losses,
        evaluate=0.0 if evaluation.evaluate is None else _evaluated(evaluation, held),
        dense=_bytes(held) + calibrated.bytes,
        state=state,
        notes=tuple(notes),
    )


def _on_layers(
    techniques: Sequence[Technique], path: Sequence[int], loss_names: Sequence[str], model: HeldModel
) -> tuple[list[float], float, int]:
    """Return seconds of each technique and of measuring losses, for all layers, and the bytes of the largest state."""
    dense, shapes = model.present, Counter(layer.shape for layer in model.layers.values())
    apply, losses, held = [0.0] * len(techniques), 0.0, 0
    others = [step for step in range(len(techniques)) if step not in path]
    for shape, count in shapes.items():
        name = next(name for name, layer in model.layers.items() if layer.shape == shape)
        state, largest = dense[name], 0
        for step in [*others, *path]:
            if not techniques[step].whole_model:
                before = state if step in path else dense[name]
                seconds, after = _timed(techniques[step], name, before)
                state = after if step in path else state
                apply[step] += count * seconds
                largest = max(largest, size_of(after))
        start = time.perf_counter()
        with torch.no_grad():
            layer_losses(state, tuple(loss_names))
        losses += count * (time.perf_counter() - start)
        held += count * largest
    return apply, losses, held


def _timed(technique: Technique, name: str, layer: LayerState) -> tuple[float, LayerState]:
    """Return the seconds that a technique takes on a layer, with the checks and the digest of its result."""
    start = time.perf_counter()
    with torch.no_grad():
        after = applied(technique, name, layer)
    digest(after)
    return time.perf_counter() - start, after


def _evaluated(evaluation: Evaluation, held: HeldModel) -> float:
    """Return the estimated seconds of one evaluation: from a few parts, or from one whole run if there are no parts."""
    start = time.perf_counter()
    with held.holding(held.present) as model:
        begun = time.perf_counter()
        if not evaluation.parts:
            evaluation.metrics(model)
            scale = 1.0
        else:
            some = evaluation.at_once(evaluation.parts)
            some = 1 if some == evaluation.parts else some  # it does not say how many it runs together
            evaluation.sums(model, range(some))
            scale = evaluation.parts / some
        spent = time.perf_counter() - begun
    return (time.perf_counter() - start - spent) + spent * scale


def _bytes(held: HeldModel) -> int:
    """Return the bytes of the dense state, and of the copies of all that it does not have."""
    tensors = [*held.model.parameters(), *held.model.buffers()]
    own = {id(module._parameters[layer.own]) for layer in held.layers.values() for module in layer.modules}
    kept = [t for t in tensors if t.device.type != "meta" and id(t) not in own]
    weights: list[Any] = [layer.weight for layer in held.present.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*kept, *weights))
