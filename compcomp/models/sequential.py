"""Calibrate and compress a model block by block, with the memory of one block at a time.

The batches run through the model in lockstep (:mod:`compcomp.models.lockstep`). When all have run a block, its layers
are compressed, and its Gram matrices dropped. The batches bring the outputs of the compressed block to the next
one, or those of the dense block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.layers.state import Magnitudes
from compcomp.models.batches import run, running
from compcomp.models.blocks import merged_around
from compcomp.models.calibrate import Collected, experts_of, is_encoder_decoder, notes_of
from compcomp.models.devices import move
from compcomp.models.layers import Layer, evaluating
from compcomp.models.lockstep import Lockstep, Repeated, Stage
from compcomp.models.memory import trim
from compcomp.models.padding import Followed, Stream, disturbed, other_content, streams
from compcomp.models.products import forward_of, watching
from compcomp.models.wrappers import unwrap

Inputs = Mapping[str, tuple[Tensor, Magnitudes]]
"""For each layer, the Gram matrix (in x in, float64) and the magnitudes of the inputs that it has seen."""
Compress = Callable[[Inputs], None]
"""Compresses layers of one block: puts their new weights into the model."""
OnBlock = Callable[[int, int, str], None]
"""Called at the start and after each block: the number of layers compressed, of all layers, and the block's name."""


def compress_blocks(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Any],
    stages: Sequence[Stage],
    compress: Compress,
    *,
    undo: Callable[[], None],
    dense: bool = False,
    notes: list[str] | None = None,
    on_block: OnBlock = lambda done, total, name: None,
    enter: Callable[[Stage], bool] = lambda stage: False,
    leave: Callable[[Stage], None] = lambda stage: None,
) -> None:
    """Run the batches through the model, and compress the layers of each block once all batches have run it.

    A block that runs more than once for a batch becomes one block with all that the module around it holds. A layer
    that is used in several blocks is compressed at the end, on all inputs that it has seen; until then it is dense.

    Args:
        model: The model, on the device to run on.
        layers: The layers to compress, by name.
        batches: The calibration batches, as :func:`compcomp.models.batches.prepared` gives them.
        stages: The blocks, from :func:`compcomp.models.blocks.find_blocks`.
        compress: Called with the inputs of a block's layers.
        undo: Takes back what ``compress`` did, in case the batches have to start anew.
        dense: True to calibrate each block on what the dense blocks before it put out.
        notes: A list to extend with lines on layers for which padding could not be determined.
        on_block: Shows progress.
        enter: Called before the batches run a block. Returns True if its layers are compressed already.
        leave: Called when the batches have left a block.

    Raises:
        InputError: A batch cannot be used, a layer never runs, or activations are not finite.
    """
    model = unwrap(model)
    while True:
        late = set(layers) - {name for stage in stages for name in stage.layers}
        remarks: dict[str, set[str]] = {}
        try:
            _Pass(model, layers, batches, stages, compress, late, remarks, dense, on_block, enter, leave).run()
        except Repeated as repeated:
            undo()
            stages = merged_around(model, stages, repeated.args[0])
            continue
        if notes is not None:
            notes += notes_of(remarks)
        return


@dataclass(frozen=True, eq=False)
class _Role:
    """The purpose of a run: to be observed, or, for a batch with padding, to be compared with.

    ``everything``: all tokens of the batch have another content, not the padding alone.
    """

    looking: Followed | None = None
    other: bool = False
    everything: bool = False


_ROLE: ContextVar[_Role | None] = ContextVar("role", default=None)


class _Pass:
    """One run of all batches through all blocks."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        batches: Sequence[Any],
        stages: Sequence[Stage],
        compress: Compress,
        late: set[str],
        remarks: dict[str, set[str]],
        dense: bool,
        on_block: OnBlock,
        enter: Callable[[Stage], bool],
        leave: Callable[[Stage], None],
    ) -> None:
        self.model, self.layers, self.batches, self.stages = model, layers, batches, stages
        self.compress, self.late, self.remarks, self.dense = compress, late, remarks, dense
        self.on_block, self.enter, self.leave = on_block, enter, leave
        self.compressed = 0
        self.observing: set[str] = set()
        self.collected = Collected(())
        self.at_the_end = Collected(layers[name] for name in late)
        self.followed: list[Followed] = []
        self.before: tuple[list[tuple[weakref.ref[Tensor], int]], tuple[Tensor, Magnitudes]] | None = None

    def run(self) -> None:
        left = set(self.layers) - self.late
        self.on_block(0, len(self.layers), "")
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(_without_caches(self.model))
            stack.enter_context(torch.no_grad())
            calls = [call for number, batch in enumerate(self.batches, 1) for call in self._calls(batch, number)]
            for layer in self.layers.values():
                for module in layer.called:
                    stack.enter_context(forward_of(module, partial(self._observed, layer.name)))
            stack.enter_context(watching(self.layers.values(), self._see, self._wanted))
            lockstep = stack.enter_context(Lockstep(self.stages, calls))
            for stage in lockstep.stages():
                done = self.enter(stage)
                self.compressed += len(left.intersection(stage.layers)) if done else 0
                self._through(lockstep, stage, [] if done else [name for name in stage.layers if name in left])
                left.difference_update(stage.layers)
                if left or self.late:
                    self._on(lockstep, stage)
                self.leave(stage)
                if not (left or self.late):
                    break
        if left:
            Collected(self.layers.values()).grams([self.layers[min(left, key=list(self.layers).index)]])  # raises
        for looking in self.followed:
            looking.finish()
        if self.late:
            late = [layer for name, layer in self.layers.items() if name in self.late]
            self._compress(self.at_the_end, late, "")

    def _through(self, lockstep: Lockstep, stage: Stage, names: list[str]) -> None:
        """Run a block, and compress its layers."""
        final = self.dense or not names  # a block that is compressed already runs once
        alone = len(names) == 1 and not (final or self.late) and stage.module in self.layers[names[0]].called
        reads = _marks(lockstep.inputs(stage)) if alone else None
        if reads is not None and self.before is not None and _same(reads, self.before[0]):
            lockstep.skip()
            self._put({names[0]: self.before[1]}, stage.name)
            return
        self.before = None
        self.collected = Collected(self.layers[name] for name in names)
        self.observing = {*names, *(self.late if final else ())}
        for _ in lockstep.run(stage, final=final):
            self.collected.end_batch()
            self.at_the_end.end_batch()
            trim()
        self.observing = set() if final else self.late
        for looking in self.followed:
            looking.drop(names)
        if names:
            found, self.collected = self.collected, Collected(())
            inputs = self._compress(found, [self.layers[name] for name in names], stage.name)
            if reads is not None and not self.followed:
                self.before = reads, inputs[names[0]]

    def _on(self, lockstep: Lockstep, stage: Stage) -> None:
        """Let the batches go on from a block to the next one."""
        for _ in lockstep.leave(stage):
            self.at_the_end.end_batch()
        trim()
        self.observing = set()

    def _compress(self, collected: Collected, layers: Sequence[Layer], where: str) -> Inputs:
        grams, magnitudes = collected.grams(layers), collected.magnitudes()
        return self._put({layer.name: (grams[layer.name], magnitudes[layer.name]) for layer in layers}, where)

    def _put(self, inputs: Inputs, where: str) -> Inputs:
        self.compress(inputs)
        self.compressed += len(inputs)
        self.on_block(self.compressed, len(self.layers), where)
        return inputs

    def _observed(self, layer: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a layer, and add up its inputs if they are wanted."""
        if self._wanted(layer):
            self._see(layer, args[0] if args else next(iter(kwargs.values())))
        return forward(*args, **kwargs)

    def _wanted(self, layer: str) -> bool:
        """Return True while a layer is observed."""
        return _ROLE.get() is not None and layer in self.observing

    def _see(self, layer: str, inputs: Tensor) -> None:
        """Add up the inputs of a layer, or record them for a comparison."""
        role = _ROLE.get()
        assert role is not None
        if role.other and role.looking is not None:
            role.looking.everything = role.everything
            role.looking.see(layer, inputs)
        else:
            kept = None if role.looking is None else role.looking.kept(layer, inputs)
            (self.at_the_end if layer in self.late else self.collected).add(layer, inputs, kept)

    # ------------------------------------------------------------------------------------------ the runs of a batch

    def _calls(self, batch: Any, number: int) -> Iterator[Callable[[], object]]:
        """Yield the runs of a batch: one, or for one with padding first two in which its contents are others."""
        batch = move(batch, next(p.device for p in self.model.parameters() if p.device.type != "meta"))
        padded = streams(batch, is_encoder_decoder(self.model))
        if not padded:
            yield partial(self._plain, batch, number, _Role())
            return
        looking = Followed(padded, self.remarks, routed=experts_of(self.layers.values()))
        self.followed.append(looking)
        with running(self.model, batch, number):
            lost = self._unreached(batch, padded)
        for everything in (False, True):
            yield partial(self._other, batch, number, padded, lost, _Role(looking, other=True, everything=everything))
        yield partial(self._plain, batch, number, _Role(looking))

    def _plain(self, batch: Any, number: int, role: _Role) -> object:
        _ROLE.set(role)
        with running(self.model, batch, number):
            return run(self.model, batch)

    def _other(self, batch: Any, number: int, padded: list[Stream], lost: list[Stream], role: _Role) -> object:
        _ROLE.set(role)
        assert role.looking is not None
        with (
            running(self.model, batch, number),
            other_content(self.model, batch, padded, lost, role.looking, everything=role.everything) as changed,
        ):
            return run(self.model, changed)

    def _unreached(self, batch: Any, padded: list[Stream]) -> list[Stream]:
        """Return the streams of a batch whose padding cannot be given another content through embeddings."""
        with disturbed(self.model, batch, padded, {}) as (other, missed), ExitStack() as stack:

            def look(*_: Any) -> None:
                if not missed():
                    raise _Enough

            for stage in self.stages:
                stack.callback(stage.module.register_forward_pre_hook(look).remove)
            try:
                run(self.model, other)
            except _Enough:
                return []
            return missed()


@contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    """Let models keep no keys and values of earlier blocks: a cache would hold those of all blocks for every batch."""
    found: list[Any] = []
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True and not any(config is other for other in found):
            found.append(config)
    for config in found:
        config.use_cache = False
    try:
        yield
    finally:
        for config in found:
            config.use_cache = True


def _marks(inputs: Sequence[Any]) -> list[tuple[weakref.ref[Tensor], int]] | None:
    """Return each batch's tensor of inputs with its count of writes. None if torch does not count, or for other inputs.

    A layer that reads the very tensors that the layer before has read has the same Gram matrix.
    """
    if any(not isinstance(one, Tensor) or one.is_inference() for one in inputs):
        return None
    return [(weakref.ref(one), one._version) for one in inputs]


def _same(one: list[tuple[weakref.ref[Tensor], int]], other: list[tuple[weakref.ref[Tensor], int]]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a() is b() is not None and n == m for (a, n), (b, m) in pairs)


class _Enough(Exception):
    """Ends a run that has shown what it was for."""
