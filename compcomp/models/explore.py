"""Explore one layer's part of a search: run every node of a tree of techniques, each state once, in any process."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from safetensors.torch import load, save

from compcomp.bench import Caps, LayerJob, LayerResult
from compcomp.language.size import layer_bits
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.models.bounds import least_loss
from compcomp.models.measure import layer_losses
from compcomp.models.states import applied, digest, tensors

BOUND_FROM = 4
"""The number of later nodes from which on a bound pays: it costs about as much as a technique."""


def packed(layer: LayerState, *, magnitudes: bool) -> bytes:
    """Return the dense layer as safetensors, for :class:`LayerJob`; with its magnitudes if a technique needs them."""
    found = {"weight": layer.weight, **({} if layer.gram is None else {"gram": layer.gram})}
    if layer.magnitudes is not None and magnitudes:
        found |= {"largest": layer.magnitudes.largest, "mean": layer.magnitudes.mean}
    return save({key: tensor.cpu().contiguous() for key, tensor in found.items()})


def explore(job: LayerJob) -> LayerResult:
    """Measure one layer after every end of the job's tree.

    With caps, the nodes below a state are not run if the loss at all ends below it must exceed their caps.
    Raises InputError, naming the layer, if a technique does not fit or its result is not finite.
    """
    start = time.monotonic()
    given = {name: tensor.to(job.device) for name, tensor in load(job.tensors).items()}
    dense = LayerState.dense(given["weight"], gram=given.get("gram"))
    if "largest" in given:
        dense = replace(dense, magnitudes=Magnitudes(given["largest"], given["mean"]))
    states = _States(dense, job)
    with torch.no_grad():
        states.run(job)
        ends = [states.digests[end] or None for end in job.ends]
        measured = states.measured(dict.fromkeys(filter(None, ends)), job.losses)
    names = next(iter(measured.values()))[0] if measured else {}
    return LayerResult(
        losses={name: tuple(None if end is None else measured[end][0][name] for end in ends) for name in names},
        bits=tuple(None if end is None else measured[end][1] for end in ends),
        digests=tuple(ends),
        applications=len(states.after),
        repeated=states.repeated,
        bounds={place: states.bounds[node] for place, node in enumerate(job.ends) if node in states.bounds},
        seconds=round(time.monotonic() - start, 3),
    )


class _States:
    """The states of one layer by digest, the most recently used in memory, and how each was first reached.

    ``digests``: the digest of each node. ``after``: the digest after a technique on a state.
    """

    def __init__(self, dense: LayerState, job: LayerJob) -> None:
        self.dense, self.techniques, self.name, self.memory = dense, job.techniques, job.layer, job.memory
        self.digests = [digest(dense)]
        self.after: dict[tuple[str, int], str] = {}
        self.repeated = 0
        self.bounds: dict[int, float] = {}  # of nodes that were not run, or whose state is not needed
        self._bounds: dict[tuple[str, frozenset[str]], float] = {}
        self._own: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        self._origin: dict[str, tuple[str, int]] = {}
        self._kept: OrderedDict[str, tuple[LayerState, int]] = OrderedDict()
        self._bytes = 0
        self._results: dict[str, tuple[dict[str, float], int]] = {}

    def run(self, job: LayerJob) -> None:
        """Compute the state of every node, depth first, so that the state needed next is the last one used."""
        parents, steps = job.parents, job.steps
        children: list[list[int]] = [[] for _ in parents]
        for node in range(1, len(parents)):
            children[parents[node]].append(node)
        self.digests += [""] * (len(parents) - 1)
        ahead = None if job.caps is None else _Ahead(job, job.caps)
        stack = list(reversed(children[0]))
        while stack:
            node = stack.pop()
            self.digests[node] = self._step(self.digests[parents[node]], steps[node])
            if ahead is not None and ahead.sizes[node] >= BOUND_FROM:
                least = self._least(self.digests[node], ahead.loss, ahead.kept(node), ahead.caps[node])
                if least > ahead.caps[node]:
                    self.bounds |= dict.fromkeys(ahead.behind(node, children), least)
                    self.digests[node] = ""
                    continue
            stack += reversed(children[node])

    def _least(self, key: str, loss: str, kept: frozenset[str], cap: float) -> float:
        """Return a lower bound of the loss after techniques that keep these invariants of a state.

        The bound is never more than the state's own loss. A state whose own loss is within the cap is therefore not
        bounded: the result is 0.
        """
        if (key, kept) not in self._bounds:
            if key not in self._own:
                self._own[key] = layer_losses(self._state(key), (loss,))[loss]
            if self._own[key] <= cap:
                return 0.0
            self._bounds[key, kept] = least_loss(self._state(key), loss, kept)
        return self._bounds[key, kept]

    def measured(self, ends: Mapping[str, None], losses: Sequence[str]) -> dict[str, tuple[dict[str, float], int]]:
        """Return losses and bits of the states with these digests. States still in memory are measured first."""
        order = sorted(ends, key=lambda key: key not in self._kept)
        for key in order:
            state = self._state(key)
            shape = (state.weight.shape[0], state.weight.shape[1])
            self._results[key] = layer_losses(state, tuple(losses), self._norms), layer_bits(state.format, shape)
        return self._results

    def _step(self, before: str, technique: int) -> str:
        key = before, technique
        if key not in self.after:
            state = applied(self.techniques[technique], self.name, self._state(before))
            self.after[key] = found = digest(state)
            if found != self.digests[0] and found not in self._origin:
                self._origin[found] = key
            self._keep(found, state)
        return self.after[key]

    def _state(self, key: str) -> LayerState:
        """Return the state of this digest, computed again if it was not kept."""
        if key == self.digests[0]:
            return self.dense
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        before, technique = self._origin[key]
        state = applied(self.techniques[technique], self.name, self._state(before))
        self.repeated += 1
        self._keep(key, state)
        return state

    def _keep(self, key: str, state: LayerState) -> None:
        if key in self._kept or key == self.digests[0]:
            return
        size = size_of(state)
        self._kept[key] = state, size
        self._bytes += size
        while self._bytes > self.memory and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed


class _Ahead:
    """The part of the tree below each node: the number of nodes, their techniques, and the largest cap of its ends."""

    def __init__(self, job: LayerJob, caps: Caps) -> None:
        parents, steps = job.parents, job.steps
        self.loss = caps.loss
        self.keeps = {name: frozenset(which) for name, which in caps.keeps.items()}
        self.sizes, self.caps = [0] * len(parents), [-math.inf] * len(parents)
        self.steps: list[frozenset[int]] = [frozenset()] * len(parents)
        for end, cap in zip(job.ends, caps.largest, strict=True):
            self.caps[end] = max(self.caps[end], cap)
        for node in range(len(parents) - 1, 0, -1):
            parent = parents[node]
            self.sizes[parent] += self.sizes[node] + 1
            self.steps[parent] |= self.steps[node] | {steps[node]}
            self.caps[parent] = max(self.caps[parent], self.caps[node])

    def kept(self, node: int) -> frozenset[str]:
        """Return the invariants that every technique below this node keeps."""
        return frozenset(name for name, which in self.keeps.items() if self.steps[node] <= which)

    def behind(self, node: int, children: Sequence[Sequence[int]]) -> Iterator[int]:
        """Yield the node and all nodes below it."""
        stack = [node]
        while stack:
            yield (one := stack.pop())
            stack += children[one]


def size_of(state: LayerState) -> int:
    """Return the bytes of the storages that the state does not share with the dense layer, each counted once."""
    shared = state.reference.untyped_storage().data_ptr()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors((state.weight, state.format))}
    return sum(storage.nbytes() for place, storage in storages.items() if place != shared)
