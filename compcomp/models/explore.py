"""One layer's part of a search: every word of techniques on it, each state once. Runs in any process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load

from compcomp.language.layer import LayerState
from compcomp.language.technique import Technique, find_registered
from compcomp.language.text import parse_sequence
from compcomp.models.measure import layer_losses
from compcomp.models.size import layer_bits
from compcomp.models.states import applied, digest, tensors


def explore(job: dict[str, Any]) -> dict[str, Any]:
    """Losses of one layer after every word of a tree.

    job: ``layer`` (its name), ``techniques`` (texts; the objects themselves where other processes could not find them)
    and ``register`` (where they do), ``tensors``
    (safetensors: weight, out x in, and gram, in x in, if any), ``device``, ``parents`` and ``steps`` (node k > 0 is
    technique ``steps[k]`` applied to node ``parents[k]`` < k; node 0 is the dense layer), ``ends`` (nodes), ``losses``
    (names), ``memory`` (bytes that states may take).

    Returns ``losses`` (by name, a number for each end), ``bits`` and ``digests`` (for each end; equal digests: bitwise
    equal states), ``applications`` (kernel runs; no technique is applied to one state twice), ``repeated`` (kernel runs
    that were needed again as their result had not been kept) and ``seconds``. Plain data on both sides.
    Raises InputError, naming the layer, where a technique does not fit or its result is not finite.
    """
    start = time.monotonic()
    find_registered(job["register"])
    techniques = [t if isinstance(t, Technique) else parse_sequence(t).techniques[0] for t in job["techniques"]]
    given = {name: tensor.to(job["device"]) for name, tensor in load(job["tensors"]).items()}
    states = _States(LayerState.dense(given["weight"], gram=given.get("gram")), techniques, job)
    with torch.no_grad():
        states.run(job["parents"], job["steps"])
        ends = [states.digests[end] for end in job["ends"]]
        measured = states.measured(dict.fromkeys(ends), job["losses"])
    names = next(iter(measured.values()))[0] if measured else {}
    return {
        "losses": {name: [measured[end][0][name] for end in ends] for name in names},
        "bits": [measured[end][1] for end in ends],
        "digests": ends,
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
        self._origin: dict[str, tuple[str, int]] = {}
        self._kept: OrderedDict[str, tuple[LayerState, int]] = OrderedDict()
        self._bytes = 0
        self._results: dict[str, tuple[dict[str, float], int]] = {}

    def run(self, parents: Sequence[int], steps: Sequence[int]) -> None:
        """Find the state of every node, depth first, so that what is needed next was used last."""
        children: list[list[int]] = [[] for _ in parents]
        for node in range(1, len(parents)):
            children[parents[node]].append(node)
        self.digests += [""] * (len(parents) - 1)
        stack = list(reversed(children[0]))
        while stack:
            node = stack.pop()
            self.digests[node] = self._step(self.digests[parents[node]], steps[node])
            stack += reversed(children[node])

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


def _size(state: LayerState) -> int:
    """Bytes of the storages that the state does not share with the dense layer, each once."""
    shared = state.reference.untyped_storage().data_ptr()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors((state.weight, state.format))}
    return sum(storage.nbytes() for place, storage in storages.items() if place != shared)
