"""Measuring the orders that no proof excludes, through a protocol: this room knows no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from compcomp.errors import InputError
from compcomp.language.claim import Claim
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.ordering.dag import Orderings, Shape
from compcomp.ordering.space import Prefix
from compcomp.ordering.store import Store

Measurement = dict[str, Any]
"""``order``: its text. ``metrics``: the user's. ``losses``: of the layers. ``compression_rate``."""


class Bench(Protocol):
    """Something to apply techniques to and to measure, such as a model with calibration data.

    A state is whatever ``start`` and ``apply`` return; it must not change when another is made from it.
    """

    def start(self) -> Any:
        """The uncompressed state."""

    def apply(self, technique: Technique, state: Any) -> Any:
        """The state after one more technique."""

    def losses(self, state: Any) -> dict[str, float]:
        """The layer losses by name, summed over layers; smaller is better."""

    def evaluate(self, state: Any) -> dict[str, float]:
        """The user's metrics by name; empty when there are none."""

    def compression_rate(self, state: Any) -> float:
        """1 - size / uncompressed size."""

    def digest(self, state: Any) -> str:
        """The same text for two states only if they are bitwise the same."""

    def lower_is_better(self, metric: str) -> bool:
        """Which way one of the user's metrics goes."""

    def write(self, state: Any) -> Any:
        """The compressed model."""

    def shapes(self) -> list[Shape]:
        """(out, in) of every layer."""

    def apply_each(self, orders: Mapping[str, Order]) -> Any:
        """The state after an order of its own for each layer, by name."""

    def total(self, losses: list[dict[str, float]]) -> dict[str, float]:
        """What ``losses`` gives, from the losses that jobs give of every layer."""

    def layer_names(self) -> list[str]:
        """Every layer's name."""

    def layer_jobs(
        self,
        techniques: Sequence[Technique],
        parents: Sequence[int],
        steps: Sequence[int],
        ends: Sequence[int],
        memory: int,
        layers: Sequence[str],
        more: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """For each of these layers a job, as plain data, that ``explore`` does in any process (see :class:`Tree`).

        ``more``: entries of the jobs: ``caps``, for each end the largest ``loss`` that is of interest, and ``keeps``,
        the techniques that keep the mask, the grid and the low-rank term.
        """

    def coverage(self, claims: Sequence[Claim]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """For each layer what every one of these claims of dominance, proved under conditions, says of it.

        Plain data: ``weights`` of the layer, ``covered`` of them (about these the proof speaks), ``conditions`` (by
        name, on how many weights each holds), ``groups`` (by name, in how many it was checked, and holds), ``left``
        and ``right`` (the loss of each side over the covered weights and over the others), ``contradicted`` (parts
        whose floats contradict the proof). Nothing where it cannot tell.
        """

    def fingerprint(self) -> str | None:
        """A text for everything that measurements depend on beside states; None when that cannot be told."""

    @property
    def explore(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Does one job in any process. Its result, as plain data: ``losses`` (by name, a number for each end), ``bits``
        and ``digests`` (for each end), ``applications`` and ``repeated`` (kernel runs); with caps
        ``bounds``, by place among the ends that were not run, as text: what they lose at least."""

    @property
    def parallel(self) -> bool:
        """Whether jobs gain from running in several processes at once."""

    def rate(self, bits: int) -> float:
        """The compression rate of a state that takes so many bits."""


@dataclass(frozen=True)
class Tree:
    """Words as a tree. Node 0 is the dense layer; node k applies ``steps[k]`` to the earlier node ``parents[k]``.

    ``ends``: the node of each order's word, aligned with ``orders``.
    """

    orders: tuple[Prefix, ...]
    parents: tuple[int, ...]
    steps: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, orderings: Orderings, orders: Sequence[Prefix]) -> Tree:
        """The tree of these orders' words."""
        known: dict[Prefix, int] = {(): 0}
        parents, steps, ends = [-1], [-1], []
        for order in orders:
            word = orderings.word(order)[0]
            for k in range(1, len(word) + 1):
                if word[:k] not in known:
                    known[word[:k]] = len(parents)
                    parents.append(known[word[: k - 1]])
                    steps.append(word[k - 1])
            ends.append(known[word])
        return cls(tuple(orders), tuple(parents), tuple(steps), tuple(ends))

    def children(self) -> list[list[int]]:
        """The nodes one step on from each node."""
        found: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                found[parent].append(node)
        return found


class Measured:
    """Measures orders on a bench, depth first, with states along one path only.

    ``rows``: by order. ``digests``: of each order's state, the same only for bitwise equal ones. ``applications``: on
    the whole model. With a store, what is found is kept there under ``key``, and nothing that is there is done again.
    """

    def __init__(
        self,
        orderings: Orderings,
        bench: Bench,
        applied: Callable[[int, int, str], None] = lambda done, total, text: None,
        store: Store | None = None,
        key: str = "",
    ) -> None:
        self.orderings, self.bench, self.applied = orderings, bench, applied
        self.store, self.key = store, key
        self.rows: dict[Prefix, Measurement] = {}
        self.digests: dict[Prefix, str] = {}
        self.applications = 0
        self._steps: dict[tuple[str, int], str] = {}
        self._rows: dict[str, Measurement] = {}

    def measure(self, orders: Sequence[Prefix]) -> None:
        """Measure these orders: no technique is applied twice to one state whose continuations are known."""
        self.tree = Tree.of(self.orderings, orders)
        self._children = self.tree.children()
        self._ending: dict[int, list[Prefix]] = {}
        for order, end in zip(orders, self.tree.ends, strict=True):
            self._ending.setdefault(end, []).append(order)
        start = self.bench.start()
        self._visit(0, start, self.bench.digest(start))

    def _visit(self, node: int, state: Any, digest: str) -> None:
        self._end(node, digest, lambda: state)
        for child in self._children[node]:
            technique = self.tree.steps[child]
            known = self._step(digest, technique)
            if known is None or not self._all_known(child, known):
                after = self.bench.apply(self.orderings.techniques[technique], state)
                self.applications += 1
                known = self.bench.digest(after)
                self._note_step(digest, technique, known)
                self.applied(self.applications, len(self.tree.parents) - 1, str(self.orderings.techniques[technique]))
                self._visit(child, after, known)
                del after
            else:
                self._recall(child, known)

    def _end(self, node: int, digest: str, state: Callable[[], Any]) -> None:
        for order in self._ending.get(node, ()):
            row = self._row(digest)
            if row is None:
                row = self._rows[digest] = measurement(self.orderings.text(order), self.bench, state())
                self._keep(f"row {digest}", row)
            self.digests[order] = digest
            self.rows[order] = {**row, "order": self.orderings.text(order)}

    def _step(self, digest: str, technique: int) -> str | None:
        """The state after a technique, where that is known."""
        if (digest, technique) not in self._steps:
            kept = self._kept(f"step {digest} {self.orderings.techniques[technique]}")
            if kept is None:
                return None
            self._steps[digest, technique] = kept["digest"]
        return self._steps[digest, technique]

    def _note_step(self, digest: str, technique: int, after: str) -> None:
        self._steps[digest, technique] = after
        self._keep(f"step {digest} {self.orderings.techniques[technique]}", {"digest": after})

    def _row(self, digest: str) -> Measurement | None:
        """What was measured of a state."""
        if digest not in self._rows and (kept := self._kept(f"row {digest}")) is not None:
            self._rows[digest] = kept
        return self._rows.get(digest)

    def _kept(self, name: str) -> dict[str, Any] | None:
        return None if self.store is None else self.store.get_result(f"{self.key} {name}")

    def _keep(self, name: str, data: dict[str, Any]) -> None:
        if self.store is not None:
            self.store.put_result(f"{self.key} {name}", data)

    def _all_known(self, node: int, digest: str) -> bool:
        """Whether everything from this node on is known of a state with this digest."""
        if node in self._ending and self._row(digest) is None:
            return False
        for child in self._children[node]:
            following = self._step(digest, self.tree.steps[child])
            if following is None or not self._all_known(child, following):
                return False
        return True

    def _recall(self, node: int, digest: str) -> None:
        self._end(node, digest, lambda: None)
        for child in self._children[node]:
            self._recall(child, self._steps[digest, self.tree.steps[child]])


def measurement(order: str, bench: Bench, state: Any) -> Measurement:
    """Everything the bench can tell of one state."""
    return {
        "order": order,
        "metrics": dict(bench.evaluate(state)),
        "losses": dict(bench.losses(state)),
        "compression_rate": bench.compression_rate(state),
    }


def ranked(measurements: list[Measurement], loss: str, metric: str | None, lower: bool) -> list[Measurement]:
    """Best first: by the user's metric where there is one, then by the loss, then by text. NaN comes last."""
    for one in measurements:
        if loss not in one["losses"]:
            raise InputError(f"loss {loss!r}", ", ".join(one["losses"]) or "none", "what the layers were measured by")

    def worth(value: float, lower_is_better: bool) -> tuple[bool, float]:
        return (math.isnan(value), 0.0) if math.isnan(value) else (False, value if lower_is_better else -value)

    def key(one: Measurement) -> tuple[Any, ...]:
        primary = worth(one["metrics"].get(metric, math.nan), lower) if metric is not None else (False, 0.0)
        return (*primary, *worth(one["losses"][loss], True), one["order"])

    return sorted(measurements, key=key)
