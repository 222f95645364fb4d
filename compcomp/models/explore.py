"""One layer's part of a search: every word of techniques on it, each state once. Runs in any process."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load

from compcomp.language.named import find_registered
from compcomp.language.size import layer_bits
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.models.bounds import least_loss
from compcomp.models.measure import layer_losses
from compcomp.models.states import applied, digest, tensors

BOUND_FROM = 4
"""Nodes that must lie behind one for it to be worth a bound: one costs about as much as a technique."""


def explore(job: dict[str, Any]) -> dict[str, Any]:
    """Losses of one layer after every word of a tree.

    job: ``layer`` (its name), ``techniques`` (texts; the objects themselves where other processes could not find them)
    and ``register`` (where they do), ``tensors`` (safetensors: weight, out x in, gram, in x in, and magnitudes, largest
    and mean, if any), ``device``, ``parents`` and ``steps`` (node k > 0 is
    technique ``steps[k]`` applied to node ``parents[k]`` < k; node 0 is the dense layer), ``ends`` (nodes), ``losses``
    (names), ``memory`` (bytes that states may take). May have ``caps`` (for each end the largest loss named ``loss``
    that is still of interest) with ``keeps`` (for "mask", "grid" and "factors", the techniques that keep it): then
    what lies behind a state whose loss must come to more is not run.

    Returns ``losses`` (by name, a number for each end), ``bits`` and ``digests`` (for each end; equal digests: bitwise
    equal states), ``bounds`` (by place of an end that was not run, what it loses at least; its other entries are
    None), ``applications`` (kernel runs; no technique is applied to one state twice), ``repeated`` (kernel runs
    that were needed again as their result had not been kept) and ``seconds``. Plain data on both sides.
    Raises InputError, naming the layer, where a technique does not fit or its result is not finite.
    """
    start = time.monotonic()
    find_registered(job["register"])
    techniques = [t if isinstance(t, Technique) else parse_sequence(t).techniques[0] for t in job["techniques"]]
    given = {name: tensor.to(job["device"]) for name, tensor in load(job["tensors"]).items()}
    dense = LayerState.dense(given["weight"], gram=given.get("gram"))
    if "largest" in given:
        dense = replace(dense, magnitudes=Magnitudes(given["largest"], given["mean"]))
    states = _States(dense, techniques, job)
    with torch.no_grad():
        states.run(job)
        ends = [states.digests[end] or None for end in job["ends"]]
        measured = states.measured(dict.fromkeys(filter(None, ends)), job["losses"])
    names = next(iter(measured.values()))[0] if measured else {}
    return {
        "losses": {name: [end and measured[end][0][name] for end in ends] for name in names},
        "bits": [end and measured[end][1] for end in ends],
        "digests": ends,
        "bounds": {str(place): states.bounds[node] for place, node in enumerate(job["ends"]) if node in states.bounds},
        "applications": len(states.after),
        "repeated": states.repeated,
        "seconds": round(time.monotonic() - start, 3),
    }


class _States:
    """The states of one layer by digest, those used last in memory, and how each was first reached.

    ``digests``: of each node. ``after``: the digest after a technique on a state.
    """

    def __init__(self, dense: LayerState, techniques: Sequence[Technique], job: Mapping[str, Any]) -> None:
        self.dense, self.techniques, self.name, self.memory = dense, techniques, job["layer"], job["memory"]
        self.digests = [digest(dense)]
        self.after: dict[tuple[str, int], str] = {}
        self.repeated = 0
        self.bounds: dict[int, float] = {}  # of nodes that were not run, or whose state is not needed
        self._bounds: dict[tuple[str, frozenset[str]], float] = {}
        self._own: dict[str, float] = {}
        self._origin: dict[str, tuple[str, int]] = {}
        self._kept: OrderedDict[str, tuple[LayerState, int]] = OrderedDict()
        self._bytes = 0
        self._results: dict[str, tuple[dict[str, float], int]] = {}

    def run(self, job: Mapping[str, Any]) -> None:
        """Find the state of every node, depth first, so that what is needed next was used last."""
        parents, steps = job["parents"], job["steps"]
        children: list[list[int]] = [[] for _ in parents]
        for node in range(1, len(parents)):
            children[parents[node]].append(node)
        self.digests += [""] * (len(parents) - 1)
        ahead = _Ahead(job) if job.get("caps") is not None else None
        stack = list(reversed(children[0]))
        while stack:
            node = stack.pop()
            self.digests[node] = self._step(self.digests[parents[node]], steps[node])
            if ahead is not None and ahead.sizes[node] >= BOUND_FROM:
                least = self._least(self.digests[node], job["loss"], ahead.kept(node), ahead.caps[node])
                if least > ahead.caps[node]:
                    self.bounds |= dict.fromkeys(ahead.behind(node, children), least)
                    self.digests[node] = ""
                    continue
            stack += reversed(children[node])

    def _least(self, key: str, loss: str, kept: frozenset[str], cap: float) -> float:
        """What the state of this digest loses at least under techniques that keep this.

        Its own loss is never less than the bound: where that is within the cap the bound is not worth its work.
        """
        if (key, kept) not in self._bounds:
            if key not in self._own:
                self._own[key] = layer_losses(self._state(key), (loss,))[loss]
            if self._own[key] <= cap:
                return 0.0
            self._bounds[key, kept] = least_loss(self._state(key), loss, kept)
        return self._bounds[key, kept]

    def measured(self, ends: Mapping[str, None], losses: Sequence[str]) -> dict[str, tuple[dict[str, float], int]]:
        """Losses and bits of the states with these digests, those still in memory first."""
        order = sorted(ends, key=lambda key: key not in self._kept)
        for key in order:
            state = self._state(key)
            shape = (state.weight.shape[0], state.weight.shape[1])
            self._results[key] = layer_losses(state, tuple(losses)), layer_bits(state.format, shape)
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
        """The state of this digest, made again where it was not kept."""
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
        size = _size(state)
        self._kept[key] = state, size
        self._bytes += size
        while self._bytes > self.memory and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed


class _Ahead:
    """What lies behind each node: how many nodes, which techniques, and the largest cap among its ends."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        parents, steps = job["parents"], job["steps"]
        self.keeps = {name: frozenset(which) for name, which in job["keeps"].items()}
        self.sizes, self.caps = [0] * len(parents), [-math.inf] * len(parents)
        self.steps: list[frozenset[int]] = [frozenset()] * len(parents)
        for end, cap in zip(job["ends"], job["caps"], strict=True):
            self.caps[end] = max(self.caps[end], cap)
        for node in range(len(parents) - 1, 0, -1):
            parent = parents[node]
            self.sizes[parent] += self.sizes[node] + 1
            self.steps[parent] |= self.steps[node] | {steps[node]}
            self.caps[parent] = max(self.caps[parent], self.caps[node])

    def kept(self, node: int) -> frozenset[str]:
        """What every technique behind this node keeps."""
        return frozenset(name for name, which in self.keeps.items() if self.steps[node] <= which)

    def behind(self, node: int, children: Sequence[Sequence[int]]) -> Iterator[int]:
        """The node and all behind it."""
        stack = [node]
        while stack:
            yield (one := stack.pop())
            stack += children[one]


def _size(state: LayerState) -> int:
    """Bytes of the storages that the state does not share with the dense layer, each once."""
    shared = state.reference.untyped_storage().data_ptr()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors((state.weight, state.format))}
    return sum(storage.nbytes() for place, storage in storages.items() if place != shared)
