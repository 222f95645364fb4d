"""One layer's part of a search: every word of techniques on it, each state once. Runs in any process."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from compcomp.language.layer import LayerState
from compcomp.language.technique import Technique, find_registered
from compcomp.language.text import parse_sequence
from compcomp.models.apply import apply_kernel
from compcomp.models.measure import layer_losses
from compcomp.models.size import layer_bits


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
    tensors = {name: tensor.to(job["device"]) for name, tensor in load(job["tensors"]).items()}
    states = _States(LayerState.dense(tensors["weight"], gram=tensors.get("gram")), techniques, job)
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
        self.digests = [state_digest(dense)]
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
        order = sorted(ends, key=lambda digest: digest not in self._kept)
        for digest in order:
            state = self._state(digest)
            shape = (state.weight.shape[0], state.weight.shape[1])
            self._results[digest] = layer_losses(state, tuple(losses)), layer_bits(state.format, shape)
        return self._results

    def _step(self, digest: str, technique: int) -> str:
        key = digest, technique
        if key not in self.after:
            state = apply_kernel(self.techniques[technique], self.name, self._state(digest))
            self.after[key] = found = state_digest(state)
            if found != self.digests[0] and found not in self._origin:
                self._origin[found] = key
            self._keep(found, state)
        return self.after[key]

    def _state(self, digest: str) -> LayerState:
        """The state of this digest, made again where it was not kept."""
        if digest == self.digests[0]:
            return self.dense
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return self._kept[digest][0]
        before, technique = self._origin[digest]
        state = apply_kernel(self.techniques[technique], self.name, self._state(before))
        self.repeated += 1
        self._keep(digest, state)
        return state

    def _keep(self, digest: str, state: LayerState) -> None:
        if digest in self._kept or digest == self.digests[0]:
            return
        size = sum(t.untyped_storage().nbytes() for t in _own_tensors(state))
        self._kept[digest] = state, size
        self._bytes += size
        while self._bytes > self.memory and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed


def state_digest(state: LayerState) -> str:
    """The same text for two states of one layer only if weight and format are bitwise equal; 0 equals -0.

    An expanded tensor, such as one step for each group, is read whole.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (state.weight, state.format):
        _feed(digest, part)
    return digest.hexdigest()


def tensor_digest(tensor: Tensor | None) -> str:
    """The same text for two tensors only if they are bitwise equal; 0 equals -0."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, tensor)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        plain = plain + 0 if plain.is_floating_point() else plain  # -0 + 0 is 0
        digest.update(f"{plain.dtype} {tuple(plain.shape)} ".encode())
        digest.update(plain.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            digest.update(f.name.encode())
            _feed(digest, getattr(value, f.name))
    else:
        digest.update(f"{value!r} ".encode())


def _own_tensors(state: LayerState) -> Iterator[Tensor]:
    """Each storage that the state does not share with the dense layer, once."""
    seen = {state.reference.untyped_storage().data_ptr()}
    for tensor in _tensors((state.weight, state.format)):
        place = tensor.untyped_storage().data_ptr()
        if place not in seen:
            seen.add(place)
            yield tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _tensors(getattr(value, f.name))
