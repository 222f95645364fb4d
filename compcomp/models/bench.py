"""A model as something to measure sequences on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.claim import Claim
from compcomp.language.layer import LayerState, Magnitudes
from compcomp.language.loss import LOSSES, loss_named
from compcomp.language.named import registrations
from compcomp.language.size import dense_bits, layer_bits
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.models.batches import iterate, prepared
from compcomp.models.calibrate import calibrate
from compcomp.models.coverage import coverage
from compcomp.models.devices import choose, move
from compcomp.models.explore import explore
from compcomp.models.layers import IGNORE, Layer, check_sequence, evaluating, find_layers, nothing_dropped
from compcomp.models.measure import MEASURED, effective_weight, layer_losses, total
from compcomp.models.metrics import is_log, metric_direction, parts_of, read_metrics, read_parts
from compcomp.models.outside import note_of, outside
from compcomp.models.patterns import Patterns
from compcomp.models.size import compression_rate
from compcomp.models.states import applied, checked, digest, digest_of, tensors_in, versions_of
from compcomp.models.whole import Whole

ModelState = dict[str, LayerState]
"""The state of each compressed layer by qualified name, with torch tensors. Never changed in place."""


class ModelBench:
    """Runs techniques on a model, layer by layer, and measures what they do to it.

    ``model``: a torch.nn.Module. ``calibration``: see :func:`compcomp.models.calibrate.calibrate`; None when
    no technique and no loss looks at inputs. ``evaluate``: ``model -> number or dict of numbers``, given the
    model in eval mode on ``device``; see :func:`compcomp.models.metrics.parts_of` for one that has parts.
    ``device``: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1". ``targets``, ``ignore``: see
    :func:`compcomp.models.layers.find_layers`. ``loss_names``: what ``losses`` measures, all that can be by
    default. ``offload``: keep states in main memory and bring one layer at a time to the device, for models
    whose states do not fit there. ``keep_batches``: keep the calibration batches, which techniques need that act on
    the whole model.

    Weights are worked on in float32 (float64 for a float64 model), Gram matrices are float64. The model is
    as it was after every call but ``write``; ``start`` moves it to the device and ``close``, or leaving a
    ``with`` block, moves it back. A model spread over several devices stays where it is. ``notes`` lists
    what a report should tell, such as a metric that was not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Any = None,
        evaluate: Callable[..., Any] | None = None,
        device: str | torch.device = "auto",
        targets: Patterns = None,
        ignore: Patterns = IGNORE,
        loss_names: Iterable[str] | None = None,
        offload: bool = False,
        keep_batches: bool = False,
    ) -> None:
        self.layers: dict[str, Layer] = {layer.name: layer for layer in find_layers(model, targets, ignore)}
        if calibration is not None:
            calibration = list(prepared(model, calibration)) if keep_batches else iterate(calibration)
        if evaluate is not None and not callable(evaluate):
            raise InputError(f"a {type(evaluate).__name__}", "a function of the model", "evaluate")
        self.model, self.user_evaluate = model, evaluate
        self.outside = outside(model, self.layers.values())
        self.notes = [*filter(None, [note_of(self.outside)])]
        self.loss_names = _losses(loss_names, calibration is not None)
        self.device = choose(model, device)
        self._home = next(model.parameters()).device
        self._offload, self._batches = offload, calibration
        self._calibrated = calibration is not None
        self._kept: list[Any] | None = calibration if isinstance(calibration, list) and keep_batches else None
        self._dense: ModelState | None = None
        self._present: ModelState = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Move the model back to the device it came from. States stay usable."""
        if self.device is not None and self.device != self._home:
            self.model.to(self._home)

    def check(self, sequence: Technique | Sequence) -> None:
        """Raise InputError where the sequence does not fit a layer, looks at single tokens, or lacks calibration."""
        if changing := [t for t in as_sequence(sequence) if t.promises().changes_inputs]:
            allowed = "techniques that act on weights: of its inputs a model keeps Gram matrices only"
            raise InputError("a technique that changes a layer's inputs", allowed, str(changing[0]))
        if looking := [t for t in as_sequence(sequence) if t.needs_tokens]:
            allowed = "techniques for which Gram matrices do: of its inputs a model keeps these and magnitudes only"
            raise InputError("a technique that looks at single tokens", allowed, str(looking[0]))
        if not self._calibrated and (needing := [t for t in as_sequence(sequence) if t.needs_inputs]):
            raise InputError("no calibration", "calibration data", str(needing[0]))
        alone = Sequence(tuple(t for t in as_sequence(sequence) if not t.whole_model))
        check_sequence(self.layers.values(), alone)
        self.notes += [n for n in nothing_dropped(list(self.layers.values()), alone) if n not in self.notes]

    def start(self) -> ModelState:
        """The dense state. The first call moves the model to the device and calibrates."""
        self._place()
        if self._dense is None:
            grams: Mapping[str, Tensor] = {}
            magnitudes: dict[str, Magnitudes] = {}
            if self._batches is not None:
                grams = calibrate(self.model, self.layers.values(), self._batches, magnitudes, self.notes)
                self._batches = None
                if self._offload:  # layers that share a Gram matrix go on sharing it
                    moved = {id(gram): gram.cpu() for gram in grams.values()}
                    grams = {name: moved[id(gram)] for name, gram in grams.items()}
                    magnitudes = move(magnitudes, torch.device("cpu"))
            self._dense = {
                name: replace(self._dense_layer(layer, grams.get(name)), magnitudes=magnitudes.get(name))
                for name, layer in self.layers.items()
            }
            self._present = self._dense
        return dict(self._dense)

    def apply(self, technique: Technique | Sequence, state: ModelState) -> ModelState:
        """The state after the technique's kernel has run on every layer.

        Raises InputError, naming the layer, where the technique does not fit or its result is not finite.
        """
        self.check(technique)
        result = dict(state)
        with torch.no_grad():
            for step in as_sequence(technique):
                if step.whole_model:
                    result = self._apply_whole(step, result)
                    continue
                for name in result:
                    result[name] = self._apply(step, name, result[name])
        return result

    def apply_each(self, orders: Mapping[str, Sequence]) -> ModelState:
        """The state after an order of its own for each layer, by qualified name; InputError where names differ."""
        if set(orders) != set(self.layers):
            other = sorted(set(orders) ^ set(self.layers))
            raise InputError(f"orders for other layers ({other[0]})", f"the {len(self.layers)} layers", "apply_each")
        for order in orders.values():
            self._check_apart(order)
        result, layers = self.start(), self.layers
        for name in result:
            self.layers = {name: layers[name]}
            try:
                self.check(orders[name])
            finally:
                self.layers = layers
            for step in orders[name]:
                with torch.no_grad():
                    result[name] = self._apply(step, name, result[name])
        return result

    total = staticmethod(total)

    def losses(self, state: ModelState) -> dict[str, float]:
        """Sums over layers of the chosen losses, in float64, and "relative_output_l2" (see measure.total).

        They speak of the state itself, before its weights are rounded to the model's dtype.
        """
        return total(list(self.layer_losses(state).values()))

    def layer_losses(self, state: ModelState) -> dict[str, dict[str, float]]:
        """The losses of each layer by name; with "output_l2" comes "output_norm2", |W X|_F^2 when dense."""
        with torch.no_grad():
            return {name: layer_losses(self._bring(name, layer), self.loss_names) for name, layer in state.items()}

    def evaluate(self, state: ModelState) -> dict[str, float]:
        """The user's metrics of the model with this state's weights in it; {} without an ``evaluate``.

        The weights that were in the model come back bitwise, and its modes too, whatever happens.
        """
        if self.user_evaluate is None:
            return {}
        with self._holding(state) as model:
            metrics = read_metrics(self.user_evaluate(model), self.user_evaluate)
        for name, value in metrics.items():
            self._note_unless_finite(name, value)
        return metrics

    @property
    def parts(self) -> int:
        """How many independent parts the user's metrics are means over (see :mod:`compcomp.models.metrics`)."""
        return parts_of(self.user_evaluate)

    def evaluate_parts(self, state: ModelState, parts: Items[int]) -> dict[str, list[tuple[float, float]]]:
        """Like ``evaluate``, for an ``evaluate`` that has parts: by metric the sum and count of each of these."""
        assert self.user_evaluate is not None
        with self._holding(state) as model:
            found = read_parts(self.user_evaluate(model, parts=list(parts)), len(parts))
        for name, pairs in found.items():
            for part, _ in pairs:
                self._note_unless_finite(name, part)
        return found

    def is_log(self, metric: str) -> bool:
        """Whether a metric is exp of a mean over parts."""
        return is_log(metric, self.user_evaluate)

    @contextmanager
    def _holding(self, state: ModelState) -> Iterator[nn.Module]:
        """The model, in eval mode, with this state's weights in it."""
        self._place()
        try:
            self._put(state)
            with evaluating(self.model):
                yield self.model
        finally:
            self._put(self._present)

    def _note_unless_finite(self, name: str, value: float) -> None:
        note = f"evaluate: {name} was {value}"
        if not math.isfinite(value) and note not in self.notes:
            self.notes.append(note)

    def write(self, state: ModelState) -> nn.Module:
        """Put this state's weights into the model for good, in its dtype, and return it.

        Raises InputError, with the model as it was, when a weight is beyond the range of that dtype.
        """
        self._place()
        for name, layer in state.items():
            check_range(name, effective_weight(layer), self.layers[name].parameter.dtype)
        self._put(state)
        self._present = {**self._present, **state}
        return self.model

    def bits(self, state: ModelState) -> int:
        """Bits of the compressed layers (see :func:`compcomp.language.size.layer_bits`)."""
        return sum(layer_bits(layer.format, self.layers[name].shape) for name, layer in state.items())

    def compression_rate(self, state: ModelState) -> float:
        """1 - bits / dense bits over the compressed layers, against 16 bits a weight."""
        return compression_rate((layer.format, self.layers[name].shape) for name, layer in state.items())

    def lower_is_better(self, metric: str) -> bool:
        """Which way a metric of ``evaluate`` goes (see :func:`compcomp.models.metrics.metric_direction`)."""
        return metric_direction(metric, self.user_evaluate) == "lower"

    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer."""
        return [layer.shape for layer in self.layers.values()]

    def digest(self, state: ModelState) -> str:
        """The same text for two states only if weight and format are bitwise equal in every layer (0 equals -0)."""
        return digest_of([(name, digest(layer)) for name, layer in state.items()])

    def fingerprint(self) -> str | None:
        """What measurements depend on beside states: dense weights, inputs, and ``evaluate`` by its ``key``.

        None where ``evaluate`` has no such attribute: a text that is another whenever its numbers may be others.
        """
        key = getattr(self.user_evaluate, "key", None) if self.user_evaluate is not None else ""
        if not isinstance(key, str):
            return None
        layers = [(name, layer.weight, layer.gram, layer.magnitudes) for name, layer in self.start().items()]
        devices = sorted({str(layer.parameter.device) for layer in self.layers.values()})
        batches = [] if self._kept is None else [[list(tensors_in(batch))] for batch in self._kept]
        return digest_of([key, sorted(self.loss_names), devices, layers, *batches])

    explore = staticmethod(explore)

    @property
    def parallel(self) -> bool:
        """Whether jobs gain from several processes: on a CPU."""
        return all(layer.parameter.device.type == "cpu" for layer in self.layers.values())

    def layer_names(self) -> list[str]:
        """Every layer's name, in the order of the model."""
        return list(self.layers)

    def layer_jobs(
        self,
        techniques: Items[Technique],
        parents: Items[int],
        steps: Items[int],
        ends: Items[int],
        memory: int,
        layers: Items[str],
        more: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """For each of these layers its name and a job for :func:`compcomp.models.explore.explore`, made when needed."""
        self.check(Sequence(tuple(techniques)))
        self._check_apart(techniques)
        register, dense = registrations(techniques), self.start()
        for name in layers:
            layer = dense[name]
            tensors = {"weight": layer.weight, **({} if layer.gram is None else {"gram": layer.gram})}
            if layer.magnitudes is not None and any(t.needs_magnitudes for t in techniques):
                tensors |= {"largest": layer.magnitudes.largest, "mean": layer.magnitudes.mean}
            yield (
                name,
                {
                    "layer": name,
                    "techniques": list(techniques) if register is None else [str(t) for t in techniques],
                    "register": register or [],
                    "portable": register is not None,
                    "tensors": save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}),
                    "device": str(self.layers[name].parameter.device),
                    "parents": list(parents),
                    "steps": list(steps),
                    "ends": list(ends),
                    "losses": list(self.loss_names),
                    "memory": memory,
                    **(more or {}),
                },
            )

    def coverage(self, claims: Items[Claim]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """For each layer its name and, of every claim, on what part of it the conditions hold, and what it loses where.

        See :class:`compcomp.models.coverage.Coverage`. Nothing where a claim speaks of inputs and there are none.
        """
        if not self._calibrated and any(claim.needs_inputs for claim in claims):
            return
        for name, layer in self.start().items():
            with torch.no_grad():
                found = [one.to_json() for one in coverage(claims, name, self._bring(name, layer))]
            yield name, found

    def rate(self, bits: int) -> float:
        """The compression rate of layers that take so many bits in all, against 16 bits a weight."""
        return float(1 - bits / sum(dense_bits(layer.shape) for layer in self.layers.values()))

    def _dense_layer(self, layer: Layer, gram: Tensor | None) -> LayerState:
        weight = layer.weight.to(_working(layer.weight.dtype), copy=True).contiguous()
        return LayerState.dense(weight.cpu() if self._offload else weight, gram=gram)

    def _place(self) -> None:
        if self.device is not None:
            self.model.to(self.device)

    def _put(self, state: ModelState) -> None:
        with torch.no_grad():
            for name, layer in state.items():
                self.layers[name].set(effective_weight(layer))

    def _bring(self, name: str, layer: LayerState) -> LayerState:
        """The state on the device where the layer's weight is."""
        moved: LayerState = move(layer, self.layers[name].parameter.device) if self._offload else layer
        return moved

    def _apply(self, technique: Technique, name: str, layer: LayerState) -> LayerState:
        after = applied(technique, name, self._bring(name, layer))
        if self._offload:
            after = move(after, torch.device("cpu"))
        known = {name: getattr(layer, name) for name in ("reference", "gram", "inputs", "magnitudes")}
        return replace(after, **known, reference_inputs=None)

    def _apply_whole(self, technique: Technique, state: ModelState) -> ModelState:
        """The state after a technique that acts on all layers together."""
        if technique.needs_inputs and self._kept is None:
            raise InputError("calibration batches that were not kept", "keep_batches=True", str(technique))
        given = {name: self._bring(name, layer) for name, layer in state.items()}
        versions = {name: versions_of(layer) for name, layer in given.items()}
        with self._holding(self.start()) as model:
            whole = Whole(model, self.layers, given, self._kept or [])
            found = technique.kernel_model()(technique, whole)
        if set(found) != set(given):
            raise InputError("states of other layers", f"those of the {len(given)} layers", str(technique))
        result = dict(state)
        for name, after in found.items():
            if after is not given[name]:
                after = checked(technique, name, given[name], after, versions[name])
                after = move(after, torch.device("cpu")) if self._offload else after
                layer = state[name]
                result[name] = replace(after, reference=layer.reference, gram=layer.gram, inputs=layer.inputs)
        return result

    def _check_apart(self, techniques: Iterable[Technique]) -> None:
        """Raise InputError for a technique that cannot act on one layer apart from the others."""
        if found := [technique for technique in techniques if technique.whole_model]:
            allowed = "techniques that act on one layer at a time"
            raise InputError("a technique that acts on the whole model", allowed, str(found[0]))


def check_range(name: str, weight: Tensor, dtype: torch.dtype) -> None:
    """Raise InputError when the dtype cannot hold a weight."""
    largest = float(weight.abs().max())
    if not largest <= torch.finfo(dtype).max:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"a weight of magnitude {largest:.3g}", f"what fits into {kind}", f"layer {name}")


def _working(dtype: torch.dtype) -> torch.dtype:
    """The dtype weights are worked on in: exact for those that models use."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _losses(names: Iterable[str] | None, calibrated: bool) -> tuple[str, ...]:
    if names is None:
        return tuple(name for name in MEASURED if calibrated or not LOSSES[name].needs_inputs)
    chosen = tuple(loss_named(name).name for name in ((names,) if isinstance(names, str) else names))
    for name in chosen:
        if LOSSES[name].needs_inputs and not calibrated:
            raise InputError("no calibration", "calibration data", f"loss {name}")
    return chosen
