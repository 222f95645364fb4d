"""Measure sequences on a model: the bench that a search uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from compcomp.bench import Caps, Coverage, LayerJob, Trial, Watch, unwatched
from compcomp.errors import InputError
from compcomp.language.claim import Claim
from compcomp.language.loss import LOSSES, loss_named
from compcomp.language.named import registrations
from compcomp.language.size import dense_bits, layer_bits
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.models.backup import Backup
from compcomp.models.batches import iterate, prepared
from compcomp.models.blocks import find_blocks
from compcomp.models.calibrate import calibrate
from compcomp.models.calibration import DENSE, Calibration
from compcomp.models.coverage import coverage
from compcomp.models.devices import move
from compcomp.models.evaluation import Evaluation
from compcomp.models.explore import explore, packed
from compcomp.models.fingerprint import model_fingerprint
from compcomp.models.held import HeldModel, ModelState, check_range
from compcomp.models.layers import IGNORE, Layer, check_loss, check_order, find_layers, readers_of
from compcomp.models.measure import MEASURED, effective_weight, layer_losses, total
from compcomp.models.memory import is_plain, trim
from compcomp.models.modes import Modes, Process, plainly
from compcomp.models.outside import note_of, outside
from compcomp.models.patterns import Patterns
from compcomp.models.sent import Contents, Sent, pack_state, unpack_state
from compcomp.models.sequential import Inputs, compress_blocks
from compcomp.models.size import compression_rate
from compcomp.models.states import (
    alike,
    applied_abreast,
    applied_in_turn,
    check_result,
    checked,
    dense_state,
    digest,
    digest_of,
    tensors_in,
    versions_of,
    with_given,
)
from compcomp.models.trial import Calibrated, trial_of
from compcomp.models.whole import Whole
from compcomp.models.wrappers import uncompiled

LARGE = 2**20
"""Entries of a parameter from which on its copy is kept on disk."""
REMARKS = 4
"""The number of layers that get a note of their own."""


class ModelBench:
    """Run techniques on a model, layer by layer, and measure their effect.

    Weights are worked on in float32 (float64 for a float64 model); Gram matrices are float64. After every call but
    ``write``, the model is as it was, whatever ``evaluate`` or a change of mode did to it (see
    :class:`compcomp.models.snapshot.Snapshot`). Each state is evaluated on the model as it was given, and with the same
    random numbers. ``evaluate`` runs under the modes of torch (gradients, inference, autocast) in which the bench was
    made; everything else runs under plain modes. ``start`` moves the model to the device. ``close``, or the end of a
    ``with`` block, moves it back. A model spread over several devices stays where it is.

    Args:
        model: A torch.nn.Module.
        calibration: Batches, see :func:`compcomp.models.calibrate.calibrate`. None if no technique and no loss looks at
            inputs.
        evaluate: A function ``model -> number or dict of numbers``. It is given the model in eval mode on ``device``.
            See :func:`compcomp.models.metrics.parts_of` for a function that has parts.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1".
        targets: Patterns of the layers to compress, see :func:`compcomp.models.layers.find_layers`.
        ignore: Patterns of the layers to leave alone.
        loss_names: The losses that ``losses`` measures; by default all that can be measured. If a layer is an
            embedding, losses at inputs are left out.
        offload: Keep states in main memory and bring one layer at a time to the device, for models whose states do not
            fit there.
        keep_batches: Keep the calibration batches. Techniques that act on the whole model need them.
        inputs: The inputs that techniques are calibrated on.
        watch: Called as the phases "calibrate", "apply" and "evaluate" go on.

    Attributes:
        notes: Lines that a report should show, such as a metric that was not finite.
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
        inputs: Calibration = DENSE,
        watch: Watch = unwatched,
    ) -> None:
        self.watch = watch
        self.layers: dict[str, Layer] = {layer.name: layer for layer in find_layers(model, targets, ignore)}
        self.inputs, self._selected = inputs, {"targets": targets, "ignore": ignore}
        keep_batches = keep_batches or not inputs.dense
        if calibration is not None:
            calibration = list(prepared(model, calibration)) if keep_batches else iterate(calibration)
        self.model = model
        self.outside = outside(model, self.layers.values())
        self.notes = [*filter(None, [note_of(self.outside)])]
        self._evaluation = Evaluation(evaluate, self.notes, watch)
        self.loss_names = _losses(loss_names, calibration is not None, self.layers.values())
        self._held = HeldModel(model, self.layers, device)
        self._offload, self._batches = offload, calibration
        self._calibrated = calibration is not None
        self._kept: list[Any] | None = calibration if isinstance(calibration, list) and keep_batches else None
        self._dense: ModelState | None = None
        self._norms: dict[str, dict[str, float]] = {}
        self.notes += _remarks(self.layers.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Move the model back to the device it came from. States stay usable."""
        self._held.close()

    def check(self, sequence: Technique | Sequence) -> None:
        """Raise InputError unless the sequence can run on the model.

        It has to fit every layer, leave inputs as they are, need no single tokens, and have the calibration that it
        needs.
        """
        check_order(sequence, self.layers.values(), calibrated=self._calibrated, notes=self.notes)

    def check_loss(self, loss: str) -> None:
        """Raise InputError if a loss cannot be measured on every layer, as embeddings have no inputs."""
        check_loss(loss, self.layers.values())

    @plainly
    def start(self) -> ModelState:
        """Return the dense state. The first call moves the model to the device and calibrates."""
        self._held.place()
        if self._dense is None:
            grams: Mapping[str, Tensor] = {}
            magnitudes: dict[str, Magnitudes] = {}
            with self._held.unchanged(), uncompiled(self.model):
                if self._batches is not None:
                    grams = calibrate(
                        self.model, self.layers.values(), self._batches, magnitudes, self.notes, self.watch
                    )
                    self._batches = None
                    if self._offload:  # layers that share a Gram matrix go on sharing it
                        moved = {id(gram): gram.cpu() for gram in grams.values()}
                        grams = {name: moved[id(gram)] for name, gram in grams.items()}
                        magnitudes = move(magnitudes, torch.device("cpu"))
                dense = self._dense_state(grams, magnitudes)
            self._dense = self._held.present = dense
        return dict(self._dense)

    @plainly
    def apply(self, technique: Technique | Sequence, state: ModelState) -> ModelState:
        """Return the state after the technique's kernel has run on every layer.

        Raises InputError, naming the layer, if the technique does not fit or its result is not finite.
        """
        self.check(technique)
        result = dict(state)
        with torch.no_grad():
            for steps in self.inputs.passes(as_sequence(technique)):
                if steps[0].whole_model:
                    result = self._apply_whole(steps[0], result)
                else:
                    result = self._apply_alone(dict.fromkeys(result, steps), result)
        return result

    def _apply_alone(self, steps: Mapping[str, Items[Technique]], state: ModelState) -> ModelState:
        """Return the state after the steps of each layer, which act on one layer at a time."""
        if not self.layers_apart([step for own in steps.values() for step in own]):
            return self._apply_by_blocks(steps, state)
        result, text = ModelState(), _named(steps.values())
        self.watch("apply", 0, len(state), text)
        for name, layer in state.items():
            result[name] = self._apply(steps[name], name, layer)
            self.watch("apply", len(result), len(state), text)
        return result

    @plainly
    def compress(self, sequence: Sequence) -> nn.Module:
        """Apply a sequence to the model for good, and return the model.

        Blocks are compressed one after another, or layers if no technique looks at inputs. Nothing of them is kept but
        the new weights. Raises InputError as :meth:`apply` and :meth:`write` do; the model is then as it was.
        """
        self.check(sequence)
        steps, passes = list(sequence), self.inputs.passes(sequence)
        if any(step.whole_model for step in steps) or (self._calibrated and len(passes) != 1):
            return self.write(self.apply(sequence, self.start()))
        self._held.place()
        compressed: ModelState = {}
        with Backup() as backup:

            def put(inputs: Mapping[str, tuple[Tensor | None, Magnitudes | None]]) -> None:
                for names in alike(inputs):
                    states = {name: self._dense_layer(self.layers[name], *inputs[name]) for name in names}
                    for name, state in self._apply_alike(dict.fromkeys(names, steps), states).items():
                        layer, weight = self.layers[name], effective_weight(state)
                        check_range(name, weight, layer.parameter.dtype)
                        backup.keep(layer)
                        layer.set(weight)
                        if layer.followers or name in self._held.changing:  # the model is restored from copies of them
                            compressed[name] = LayerState.dense(weight)
                    trim()

            own = {id(weight) for layer in self.layers.values() for weight in layer.held()}
            others = [p for p in self.model.parameters() if id(p) not in own and is_plain(p)]
            if self._calibrated:  # the model runs, and may write to them
                others = [parameter for parameter in others if parameter.numel() >= LARGE]
            text = _named([steps])
            with self._held.unchanged(others), backup.unchanged(others if self._calibrated else ()):
                if self._calibrated:
                    self._by_blocks(put, backup.restore, text)
                else:
                    self.watch("apply", 0, len(self.layers), text)
                    with torch.no_grad():
                        for number, name in enumerate(self.layers, start=1):
                            put({name: (None, None)})
                            self.watch("apply", number, len(self.layers), text)
            self._held.finish(compressed)
        return self.model

    def _by_blocks(self, compress: Callable[[Inputs], None], undo: Callable[[], None], text: str) -> None:
        """Run the calibration batches, block by block."""
        assert self._kept is not None
        with uncompiled(self.model) as model:
            stages = find_blocks(model, self.layers.values(), self.inputs.blocks, each=self.inputs.each)
            compress_blocks(
                model,
                self.layers,
                self._kept,
                stages,
                compress,
                undo=undo,
                dense=self.inputs.dense,
                notes=self.notes,
                on_block=lambda done, total, block: self.watch("apply", done, total, f"{block}: {text}"),
            )

    def _apply_by_blocks(self, steps: Mapping[str, Items[Technique]], state: ModelState) -> ModelState:
        """Return the state after the steps of each layer, calibrated block by block on the state's own model."""
        result = dict(state)

        def put(inputs: Inputs) -> None:
            for names in alike(inputs):
                seen = {name: inputs[name] for name in names}
                before = {n: replace(state[n], gram=gram, magnitudes=sizes) for n, (gram, sizes) in seen.items()}
                for name, after in self._apply_alike(steps, before).items():
                    self.layers[name].set(effective_weight(after))
                    result[name] = self._given(after, state[name])

        def undo() -> None:
            for name, layer in state.items():
                self.layers[name].set(effective_weight(layer))

        with self._held.holding(state):
            self._by_blocks(put, undo, _named(steps.values()))
        return result

    def layers_apart(self, techniques: Items[Technique]) -> bool:
        """Return True if an order of these techniques acts on each layer independently of the others.

        It does if no technique looks at inputs, or if these are the inputs of the dense model.
        """
        return self.inputs.dense or not any(technique.needs_inputs for technique in techniques)

    def apply_all(self, order: Sequence) -> ModelState:
        """Return the state after all steps of an order, applied to the dense model."""
        return self.apply(order, self.start())

    @plainly
    def apply_each(self, orders: Mapping[str, Sequence]) -> ModelState:
        """Return the state after each layer, by name, has been compressed in an order of its own.

        Raises InputError if the names are not those of the layers.
        """
        if set(orders) != set(self.layers):
            other = sorted(set(orders) ^ set(self.layers))
            raise InputError(f"orders for other layers ({other[0]})", f"the {len(self.layers)} layers", "apply_each")
        for order in orders.values():
            self._check_apart(order)
        layers = self.layers
        for name, order in orders.items():
            self.layers = {name: layers[name]}
            try:
                self.check(order)
            finally:
                self.layers = layers
        with torch.no_grad():
            return self._apply_alone({name: list(order) for name, order in orders.items()}, self.start())

    total = staticmethod(total)

    def losses(self, state: ModelState) -> dict[str, float]:
        """Return sums over layers of the chosen losses, in float64, and "relative_output_l2" (see measure.total).

        These are losses of the state itself, before its weights are rounded to the model's dtype.
        """
        return total(list(self.layer_losses(state).values()))

    @plainly
    def layer_losses(self, state: ModelState) -> dict[str, dict[str, float]]:
        """Return the losses of each layer by name.

        With "output_l2" comes "output_norm2", |W X|_F^2 of the dense layer.
        """
        with torch.no_grad():
            return {
                name: layer_losses(self._bring(name, layer), self.loss_names, self._norms.setdefault(name, {}))
                for name, layer in state.items()
            }

    @plainly
    def evaluate(self, state: ModelState) -> dict[str, float]:
        """Return the user's metrics of the model with this state's weights; {} without an ``evaluate``.

        Afterwards the model is bitwise as it was, whatever ``evaluate`` does to it. Raises InputError if the metrics
        have other names than in earlier calls.
        """
        if self._evaluation.evaluate is None:
            return {}
        with self._held.holding(state) as model:
            return self._evaluation.metrics(model)

    @property
    def parts(self) -> int:
        """The number of independent parts that the user's metrics are means over."""
        return self._evaluation.parts

    @plainly
    def evaluate_parts(self, state: ModelState, parts: Items[int]) -> dict[str, list[tuple[float, float]]]:
        """Return for each metric the sum and count of each of these parts, for an ``evaluate`` that has parts."""
        with self._held.holding(state) as model:
            return self._evaluation.sums(model, parts)

    def is_log(self, metric: str) -> bool:
        """Return True if a metric is exp of a mean over parts."""
        return self._evaluation.is_log(metric)

    def lower_is_better(self, metric: str) -> bool:
        """Return True if smaller values of a metric of ``evaluate`` are better."""
        return self._evaluation.lower_is_better(metric)

    def changed(self) -> str | None:
        """Return the name of a parameter, buffer or module that others have changed since, or None."""
        return self._held.changed()

    @plainly
    def write(self, state: ModelState) -> nn.Module:
        """Put this state's weights into the model for good, in its dtype, and return it.

        Raises InputError if a weight is beyond the range of that dtype; the model is then as it was.
        """
        return self._held.write(state)

    def bits(self, state: ModelState) -> int:
        """Return the bits of the compressed layers (see :func:`compcomp.language.size.layer_bits`)."""
        return sum(layer_bits(layer.format, self.layers[name].shape) for name, layer in state.items())

    def compression_rate(self, state: ModelState) -> float:
        """Return 1 - bits / dense bits over the compressed layers, against 16 bits a weight."""
        return compression_rate((layer.format, self.layers[name].shape) for name, layer in state.items())

    def shapes(self) -> list[tuple[int, int]]:
        """Return (out, in) of every layer."""
        return [layer.shape for layer in self.layers.values()]

    def digest(self, state: ModelState) -> str:
        """Return the same text for two states only if every weight and format is bitwise equal (0 equals -0)."""
        return digest_of([(name, digest(layer)) for name, layer in state.items()])

    @plainly
    def fingerprint(self) -> str | None:
        """Return a digest of all that measurements depend on besides states: model, inputs, and ``evaluate.key``.

        None if ``evaluate`` has no attribute ``key``: a text that has to change whenever its numbers may change.
        """
        key = self._evaluation.key
        if key is None:
            return None
        layers = [(name, layer.weight, layer.gram, layer.magnitudes) for name, layer in self.start().items()]
        devices = sorted({str(layer.parameter.device) for layer in self.layers.values()})
        batches = [] if self._kept is None else [[list(tensors_in(batch))] for batch in self._kept]
        with uncompiled(self.model) as model:
            whole = model_fingerprint(model, [str(self._evaluation.modes)])
        return digest_of([key, sorted(self.loss_names), devices, whole, layers, self.inputs, *batches])

    def passes(self, order: Items[Technique]) -> int:
        """Return how often the calibration batches run through the model, block by block, while an order is applied."""
        groups = self.inputs.passes(order)
        return sum(not self.layers_apart(steps) and not steps[0].whole_model for steps in groups)

    @plainly
    def trial(self, techniques: Items[Technique], path: Items[int]) -> Trial:
        """Return how long each part of a search takes, from a trial of each (:mod:`compcomp.models.trial`).

        Takes a batch of a calibration that is a generator. The bench is of no further use for a search then.
        """
        self._held.place()
        with self._held.unchanged():
            calibrated = Calibrated(self.model, self.layers.values(), self._batches)
            self._held.present = self._dense_state(calibrated.grams, calibrated.magnitudes)
        return trial_of(techniques, path, self.loss_names, calibrated, self._evaluation, self._held)

    explore = staticmethod(explore)

    @property
    def parallel(self) -> bool:
        """Return True if jobs gain from several processes: on a CPU."""
        return all(layer.parameter.device.type == "cpu" for layer in self.layers.values())

    def layer_names(self) -> list[str]:
        """Return every layer's name, in the order of the model."""
        return list(self.layers)

    def layer_jobs(
        self,
        techniques: Items[Technique],
        parents: Items[int],
        steps: Items[int],
        ends: Items[int],
        memory: int,
        layers: Items[str],
        caps: Caps | None = None,
    ) -> Iterator[LayerJob]:
        """Yield for each of these layers a job for :func:`compcomp.models.explore.explore`, made when it is needed.

        The arguments are those of :meth:`compcomp.bench.Bench.layer_jobs`.
        """
        self.check(Sequence(tuple(techniques)))
        self._check_apart(techniques)
        register, dense = registrations(techniques), self.start()
        magnitudes = any(t.needs_magnitudes for t in techniques)
        for name in layers:
            yield LayerJob(
                layer=name,
                techniques=tuple(techniques),
                tensors=packed(dense[name], magnitudes=magnitudes),
                device=str(self.layers[name].parameter.device),
                parents=tuple(parents),
                steps=tuple(steps),
                ends=tuple(ends),
                losses=self.loss_names,
                memory=memory,
                caps=caps,
                register=register,
            )

    @property
    def device(self) -> torch.device:
        """The device of the model, or of its first layer if it is spread over several."""
        return next(iter(self.layers.values())).parameter.device

    @plainly
    def sent(self, directory: Path) -> Sent:
        """Return what opens this bench in other processes. Its tensors are written to the directory.

        Raises InputError if a part of it cannot be sent.
        """
        dense = self.start()
        if self._held.device is None:
            raise InputError("a model that is spread over several devices", "a model on one device", "executor")
        arguments = {
            "model": self.model,
            "calibration": self._kept if self._kept is not None else [] if self._calibrated else None,
            "evaluate": self._evaluation.evaluate,
            **self._selected,
            "loss_names": self.loss_names,
            "offload": self._offload,
            "keep_batches": self._kept is not None,
            "inputs": self.inputs,
        }
        evaluation = self._evaluation.modes, self._evaluation.names
        return Sent(self, Contents(ModelBench, arguments, dense, evaluation, Process.now(self.device)), directory)

    @plainly
    def resume(self, dense: ModelState, modes: Modes, names: tuple[str, ...]) -> None:
        """Go on as a bench in another process did, with its dense state and what it knows of ``evaluate``."""
        self._held.place()
        self._dense = self._held.present = dense
        self._batches = None
        self._evaluation.modes, self._evaluation.names = modes, names

    def pack(self, state: ModelState, path: Path) -> bytes:
        """Return a message with a state of this bench. Its tensors are written to files from this path on."""
        return pack_state(state, path)

    @plainly
    def unpack(self, message: bytes) -> ModelState:
        """Return the state in a message of :meth:`pack`, on any bench opened by :meth:`sent`."""
        return unpack_state(message, self.start(), self.device)

    def coverage(self, claims: Items[Claim]) -> Iterator[tuple[str, list[Coverage]]]:
        """Yield for each layer its name and, for every claim, where its conditions hold and the losses there.

        Yields nothing if a claim speaks of inputs and there is no calibration.
        """
        if not self._calibrated and any(claim.needs_inputs for claim in claims):
            return
        for name, layer in self.start().items():
            with torch.no_grad():
                found = coverage(claims, name, self._bring(name, layer))
            yield name, found

    def rate(self, bits: int) -> float:
        """Return the compression rate of layers that take this many bits in all, against 16 bits a weight."""
        return float(1 - bits / sum(dense_bits(layer.shape) for layer in self.layers.values()))

    def _dense_state(self, grams: Mapping[str, Tensor], magnitudes: Mapping[str, Magnitudes]) -> ModelState:
        """Return the state of the uncompressed model, with what its layers have seen."""
        return {
            name: self._dense_layer(layer, grams.get(name), magnitudes.get(name)) for name, layer in self.layers.items()
        }

    def _dense_layer(self, layer: Layer, gram: Tensor | None, magnitudes: Magnitudes | None) -> LayerState:
        return dense_state(layer.weight.cpu() if self._offload else layer.weight, gram, magnitudes)

    def _bring(self, name: str, layer: LayerState) -> LayerState:
        """Return the state on the device of the layer's weight."""
        moved: LayerState = move(layer, self.layers[name].parameter.device) if self._offload else layer
        return moved

    def _apply(self, steps: Items[Technique], name: str, layer: LayerState) -> LayerState:
        """Return the state of a layer after some techniques."""
        return self._given(applied_in_turn(steps, name, self._bring(name, layer)), layer)

    def _apply_alike(
        self, steps: Mapping[str, Items[Technique]], layers: Mapping[str, LayerState]
    ) -> dict[str, LayerState]:
        """Return the states of layers that have one Gram matrix, after the techniques of each."""
        found = applied_abreast(steps, {name: self._bring(name, layer) for name, layer in layers.items()})
        return {name: self._given(after, layers[name]) for name, after in found.items()}

    def _given(self, after: LayerState, layer: LayerState) -> LayerState:
        """Return a state with what a layer is given (reference, inputs) taken from another."""
        return with_given(move(after, torch.device("cpu")) if self._offload else after, layer)

    def _apply_whole(self, technique: Technique, state: ModelState) -> ModelState:
        """Return the state after a technique that acts on all layers together."""
        if technique.needs_inputs and self._kept is None:
            raise InputError("calibration batches that were not kept", "keep_batches=True", str(technique))
        self.watch("apply", 0, 1, str(technique))
        given = {name: self._bring(name, layer) for name, layer in state.items()}
        versions = {name: versions_of(layer) for name, layer in given.items()}
        with self._held.holding(self.start()), uncompiled(self.model) as model:
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
        self.watch("apply", 1, 1, str(technique))
        return result

    def _check_apart(self, techniques: Iterable[Technique]) -> None:
        """Raise InputError for a technique that cannot act on one layer independently of the others."""
        if found := [technique for technique in techniques if technique.whole_model]:
            allowed = "techniques that act on one layer at a time"
            raise InputError("a technique that acts on the whole model", allowed, str(found[0]))


def _named(orders: Iterable[Items[Technique]]) -> str:
    """Return the text of the only order, or a description of several."""
    texts = dict.fromkeys(" >> ".join(map(str, order)) for order in orders)
    return next(iter(texts)) if len(texts) == 1 else "an order for each layer"


def _remarks(layers: Iterable[Layer]) -> list[str]:
    """Return notes on layers that have parameters besides a weight, or share their weight in another layout."""
    layers = tuple(layers)
    found = readers_of(layers)
    found += [
        f"layer {name}: its weight is that of layer {layer.name} in another layout, and is compressed as that one's"
        for layer in layers
        for name, _ in layer.followers
    ]
    for layer in (one for one in layers if one.called):
        if more := [n for module in layer.modules for n in module._parameters if n not in ("weight", "bias")]:
            held = ", ".join(dict.fromkeys(more))
            found.append(f"layer {layer.name}: it also holds {held}; the weight alone is compressed")
    return found if len(found) <= REMARKS else [*found[:REMARKS], f"... and {len(found) - REMARKS} more such layers"]


def _losses(names: Iterable[str] | None, calibrated: bool, layers: Iterable[Layer]) -> tuple[str, ...]:
    if any(layer.is_embedding for layer in layers):
        names = [name for name in (MEASURED if names is None else names) if not LOSSES[name].needs_inputs]
    if names is None:
        return tuple(name for name in MEASURED if calibrated or not LOSSES[name].needs_inputs)
    chosen = tuple(loss_named(name).name for name in ((names,) if isinstance(names, str) else names))
    for name in chosen:
        if LOSSES[name].needs_inputs and not calibrated:
            raise InputError("no calibration", "calibration data", f"loss {name}")
    return chosen
