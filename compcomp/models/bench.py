"""A model as something to measure sequences on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
from compcomp.language.loss import LOSSES, loss_named
from compcomp.language.named import registrations
from compcomp.language.size import dense_bits, layer_bits
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers import walk
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.models.batches import iterate, prepared
from compcomp.models.calibrate import calibrate
from compcomp.models.coverage import coverage
from compcomp.models.devices import bring, choose, move
from compcomp.models.explore import explore
from compcomp.models.fingerprint import model_fingerprint
from compcomp.models.layers import (
    IGNORE,
    Layer,
    check_sequence,
    evaluating,
    find_layers,
    nothing_dropped,
    trains_itself,
)
from compcomp.models.measure import MEASURED, effective_weight, layer_losses, total
from compcomp.models.metrics import is_log, metric_direction, parts_of, read_metrics, read_parts, reading
from compcomp.models.modes import Modes, kept, plainly
from compcomp.models.outside import note_of, outside
from compcomp.models.patterns import Patterns
from compcomp.models.size import compression_rate
from compcomp.models.snapshot import Snapshot
from compcomp.models.states import applied, check_result, checked, digest, digest_of, tensors_in, versions_of
from compcomp.models.whole import Whole
from compcomp.models.wrappers import uncompiled

REMARKS = 4
"""Layers that are remarked on one by one."""

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
    as it was after every call but ``write``, whatever ``evaluate`` or a change of mode did to it (see
    :class:`compcomp.models.snapshot.Snapshot`): each state is evaluated on the model as it was given, and with the
    same random numbers. ``evaluate`` runs under the modes of torch (gradients, inference, autocast) in which the
    bench was made, all else under plain ones. ``start`` moves the model to the device and ``close``, or leaving a
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
        self._home = next(iter(self.layers.values())).parameter.device
        self._offload, self._batches = offload, calibration
        self._calibrated = calibration is not None
        self._kept: list[Any] | None = calibration if isinstance(calibration, list) and keep_batches else None
        self._dense: ModelState | None = None
        self._present: ModelState = {}
        self._modes, self._metrics = Modes.now(), tuple[str, ...]()
        self._changing = _changing(model, self.layers.values())
        self._left: Snapshot | None = None
        self.notes += _remarks(self.layers.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Move the model back to the device it came from. States stay usable."""
        if self.device is not None and self.device != self._home:
            bring(self.model, self._home)
            self._left = None if self._left is None else self._taken()

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

    @plainly
    def start(self) -> ModelState:
        """The dense state. The first call moves the model to the device and calibrates."""
        self._place()
        if self._dense is None:
            grams: Mapping[str, Tensor] = {}
            magnitudes: dict[str, Magnitudes] = {}
            with self._unchanged(), uncompiled(self.model):
                if self._batches is not None:
                    grams = calibrate(self.model, self.layers.values(), self._batches, magnitudes, self.notes)
                    self._batches = None
                    if self._offload:  # layers that share a Gram matrix go on sharing it
                        moved = {id(gram): gram.cpu() for gram in grams.values()}
                        grams = {name: moved[id(gram)] for name, gram in grams.items()}
                        magnitudes = move(magnitudes, torch.device("cpu"))
                dense = {
                    name: replace(self._dense_layer(layer, grams.get(name)), magnitudes=magnitudes.get(name))
                    for name, layer in self.layers.items()
                }
            self._dense = self._present = dense
        return dict(self._dense)

    @plainly
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

    @plainly
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

    @plainly
    def layer_losses(self, state: ModelState) -> dict[str, dict[str, float]]:
        """The losses of each layer by name; with "output_l2" comes "output_norm2", |W X|_F^2 when dense."""
        with torch.no_grad():
            return {name: layer_losses(self._bring(name, layer), self.loss_names) for name, layer in state.items()}

    @plainly
    def evaluate(self, state: ModelState) -> dict[str, float]:
        """The user's metrics of the model with this state's weights in it; {} without an ``evaluate``.

        The model is as it was afterwards, bitwise, whatever ``evaluate`` does to it. InputError where its metrics are
        not those of the calls before.
        """
        if self.user_evaluate is None:
            return {}
        with self._holding(state) as model, self._modes.on():
            metrics = read_metrics(self.user_evaluate(model), self.user_evaluate)
        self._check_names(metrics)
        for name, value in metrics.items():
            self._note_unless_finite(name, value)
        return metrics

    @property
    def parts(self) -> int:
        """How many independent parts the user's metrics are means over (see :mod:`compcomp.models.metrics`)."""
        return parts_of(self.user_evaluate)

    @plainly
    def evaluate_parts(self, state: ModelState, parts: Items[int]) -> dict[str, list[tuple[float, float]]]:
        """Like ``evaluate``, for an ``evaluate`` that has parts: by metric the sum and count of each of these."""
        assert self.user_evaluate is not None
        with self._holding(state) as model, self._modes.on():
            found = read_parts(self.user_evaluate(model, parts=list(parts)), len(parts))
        self._check_names(found)
        for name, pairs in found.items():
            for part, _ in pairs:
                self._note_unless_finite(name, part)
        return found

    def is_log(self, metric: str) -> bool:
        """Whether a metric is exp of a mean over parts."""
        return is_log(metric, self.user_evaluate)

    @contextmanager
    def _holding(self, state: ModelState) -> Iterator[nn.Module]:
        """The model, in eval mode, with this state's weights in it; see :meth:`_unchanged`."""
        self._place()
        with self._unchanged():
            self._put(state, self.layers)
            yield self.model

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """The model in eval mode. It is afterwards as it was, and so are random numbers and torch's settings."""
        self._left = self._taken()
        with kept():
            try:
                with evaluating(self.model):
                    yield
            finally:
                self._left.restore()
                self._put(self._present, self.layers.keys() - self._changing)

    def _taken(self) -> Snapshot:
        """The model as it is, but for the weights that ``_present`` has."""
        known = [layer for name, layer in self.layers.items() if name not in self._changing]
        weights = [module._parameters["weight"] for layer in known for module in layer.modules]
        return Snapshot(self.model, [w for w in weights if w is not None], self._left)

    def changed(self) -> str | None:
        """The name of a parameter, buffer or module that is no longer as this bench left it; None where all is."""
        if self._left is None:
            return None
        if (name := self._left.differs(self.model)) is not None:
            return name
        for name in self._present.keys() - self._changing:
            layer = self.layers[name]
            if not torch.equal(effective_weight(self._present[name]).to(layer.weight), layer.weight):
                return f"{name}.weight"
        return None

    def _check_names(self, metrics: Mapping[str, Any]) -> None:
        """Raise InputError unless these are the metrics of the calls before."""
        names = self._metrics = self._metrics or tuple(metrics)
        if missing := [name for name in names if name not in metrics]:
            raise InputError(
                f"no {missing[0]!r} among {', '.join(metrics)}", f"{', '.join(names)} each time", "evaluate"
            )
        if more := [name for name in metrics if name not in names]:
            raise InputError(f"{more[0]!r}, which it did not give before", f"{', '.join(names)} each time", "evaluate")

    def _note_unless_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            self._note(f"evaluate: {name} was {value}")

    def _note(self, note: str) -> None:
        if note and note not in self.notes:
            self.notes.append(note)

    @plainly
    def write(self, state: ModelState) -> nn.Module:
        """Put this state's weights into the model for good, in its dtype, and return it.

        Raises InputError, with the model as it was, when a weight is beyond the range of that dtype.
        """
        self._place()
        for name, layer in state.items():
            check_range(name, effective_weight(layer), self.layers[name].parameter.dtype)
        with evaluating(self.model):  # what modules add in eval mode they take out again
            self._put(state, self.layers)
        self._present = {**self._present, **state}
        self._left = self._taken()
        return self.model

    def bits(self, state: ModelState) -> int:
        """Bits of the compressed layers (see :func:`compcomp.language.size.layer_bits`)."""
        return sum(layer_bits(layer.format, self.layers[name].shape) for name, layer in state.items())

    def compression_rate(self, state: ModelState) -> float:
        """1 - bits / dense bits over the compressed layers, against 16 bits a weight."""
        return compression_rate((layer.format, self.layers[name].shape) for name, layer in state.items())

    def lower_is_better(self, metric: str) -> bool:
        """Which way a metric of ``evaluate`` goes (see :func:`compcomp.models.metrics.metric_direction`)."""
        self._note(reading(metric, self.user_evaluate))
        return metric_direction(metric, self.user_evaluate) == "lower"

    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer."""
        return [layer.shape for layer in self.layers.values()]

    def digest(self, state: ModelState) -> str:
        """The same text for two states only if weight and format are bitwise equal in every layer (0 equals -0)."""
        return digest_of([(name, digest(layer)) for name, layer in state.items()])

    @plainly
    def fingerprint(self) -> str | None:
        """What measurements depend on beside states: the model, all of it, inputs, and ``evaluate`` by its ``key``.

        None where ``evaluate`` has no such attribute: a text that is another whenever its numbers may be others.
        """
        key = getattr(self.user_evaluate, "key", None) if self.user_evaluate is not None else ""
        if not isinstance(key, str):
            return None
        layers = [(name, layer.weight, layer.gram, layer.magnitudes) for name, layer in self.start().items()]
        devices = sorted({str(layer.parameter.device) for layer in self.layers.values()})
        batches = [] if self._kept is None else [[list(tensors_in(batch))] for batch in self._kept]
        with uncompiled(self.model) as model:
            whole = model_fingerprint(model, [str(self._modes)])
        return digest_of([key, sorted(self.loss_names), devices, whole, layers, *batches])

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
            bring(self.model, self.device)

    def _put(self, state: ModelState, names: Collection[str]) -> None:
        """Write the weights of a state into the layers of these names."""
        with torch.no_grad():
            for name, layer in state.items():
                if name in names:
                    self.layers[name].set(effective_weight(layer))

    def _bring(self, name: str, layer: LayerState) -> LayerState:
        """The state on the device where the layer's weight is."""
        moved: LayerState = move(layer, self.layers[name].parameter.device) if self._offload else layer
        return moved

    def _apply(self, technique: Technique, name: str, layer: LayerState) -> LayerState:
        after = applied(technique, name, self._bring(name, layer))
        if self._offload:
            after = move(after, torch.device("cpu"))
        given = {field.path.partition(".")[0]: None for field in walk.FIELDS if field.given}
        return replace(after, **{name: getattr(layer, name) for name in given} | {"reference_inputs": None})

    def _apply_whole(self, technique: Technique, state: ModelState) -> ModelState:
        """The state after a technique that acts on all layers together."""
        if technique.needs_inputs and self._kept is None:
            raise InputError("calibration batches that were not kept", "keep_batches=True", str(technique))
        given = {name: self._bring(name, layer) for name, layer in state.items()}
        versions = {name: versions_of(layer) for name, layer in given.items()}
        with self._holding(self.start()), uncompiled(self.model) as model:
            whole = Whole(model, self.layers, given, self._kept or [])
            found = technique.kernel_model()(technique, whole)
        if set(found) != set(given):
            raise InputError("states of other layers", f"those of the {len(given)} layers", str(technique))
        result = dict(state)
        for name, after in found.items():
            if after is not given[name]:
                check_result(given[name], after, f"layer {name}: after {technique}")
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


def _changing(model: nn.Module, layers: Iterable[Layer]) -> set[str]:
    """The layers in modules that a change of mode may change: of these the weight is not the same in both modes."""
    inside = {part for module in model.modules() if trains_itself(module) for part in module.modules()}
    return {layer.name for layer in layers if not inside.isdisjoint(layer.modules)}


def _remarks(layers: Iterable[Layer]) -> list[str]:
    """What to say of layers whose weight is not all, or not theirs alone."""
    found = [
        f"layer {name}: its weight is that of layer {layer.name} in another layout, and is compressed as that one's"
        for layer in layers
        for name, _ in layer.followers
    ]
    for layer in layers:
        if more := [n for module in layer.modules for n in module._parameters if n not in ("weight", "bias")]:
            held = ", ".join(dict.fromkeys(more))
            found.append(f"layer {layer.name}: beside its weight there is {held}; the weight alone is compressed")
    return found if len(found) <= REMARKS else [*found[:REMARKS], f"... and {len(found) - REMARKS} more such layers"]


def _losses(names: Iterable[str] | None, calibrated: bool) -> tuple[str, ...]:
    if names is None:
        return tuple(name for name in MEASURED if calibrated or not LOSSES[name].needs_inputs)
    chosen = tuple(loss_named(name).name for name in ((names,) if isinstance(names, str) else names))
    for name in chosen:
        if LOSSES[name].needs_inputs and not calibrated:
            raise InputError("no calibration", "calibration data", f"loss {name}")
    return chosen
