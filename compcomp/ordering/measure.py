"""Measure the orders that no proof excludes, through a protocol: this package knows no model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from compcomp.bench import Bench
from compcomp.errors import InputError
from compcomp.language.technique import Sequence as Order
from compcomp.ordering.dag import Orderings
from compcomp.ordering.measurement import Measurement
from compcomp.ordering.parts import Kept, Race
from compcomp.ordering.progress import OnProgress, silent
from compcomp.ordering.space import Prefix

LOG = logging.getLogger("compcomp")


@dataclass(frozen=True)
class Tree:
    """Hold paths as a tree. Node 0 is the dense layer; node k applies ``steps[k]`` to the earlier node ``parents[k]``.

    Attributes:
        orders: The orders.
        parents: The parent of each node.
        steps: The technique of each node.
        ends: The node of each order's path, aligned with ``orders``.
    """

    orders: tuple[Prefix, ...]
    parents: tuple[int, ...]
    steps: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, orderings: Orderings, orders: Sequence[Prefix]) -> Tree:
        """Return the tree of these orders' paths."""
        known: dict[Prefix, int] = {(): 0}
        parents, steps, ends = [-1], [-1], []
        for order in orders:
            path = orderings.path(order)
            for k in range(1, len(path) + 1):
                if path[:k] not in known:
                    known[path[:k]] = len(parents)
                    parents.append(known[path[: k - 1]])
                    steps.append(path[k - 1])
            ends.append(known[path])
        return cls(tuple(orders), tuple(parents), tuple(steps), tuple(ends))

    def children(self) -> list[list[int]]:
        """Return for each node the nodes one technique later."""
        found: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                found[parent].append(node)
        return found


class Measured:
    """Measure orders on a bench, depth first, with the states of one path in memory at a time.

    Args:
        orderings: The orderings that the orders are of.
        bench: Applies techniques to the model and measures it.
        on_progress: Called at the start, and after each order with the number of those measured.
        kept: Keeps results. A result that is there is not computed again.
        race: Evaluates metrics that are means over parts, None for other metrics.

    Attributes:
        rows: The measurement of each order.
        digests: The digest of each order's state. Equal digests stand for bitwise equal states.
        applications: How many techniques were applied to the whole model.
    """

    def __init__(
        self,
        orderings: Orderings,
        bench: Bench,
        on_progress: OnProgress = silent,
        kept: Kept | None = None,
        race: Race | None = None,
    ) -> None:
        self.orderings, self.bench, self.on_progress = orderings, bench, on_progress
        self.kept, self.race = kept or Kept(), race
        self.rows: dict[Prefix, Measurement] = {}
        self.digests: dict[Prefix, str] = {}
        self.applications = 0
        self._steps: dict[tuple[str, int], str] = {}
        self._rows: dict[str, Measurement] = {}

    def measure(self, orders: Sequence[Prefix]) -> None:
        """Measure these orders. No technique is applied twice to one state whose continuations are known.

        Where layers are not apart, a state after some steps depends on the steps that follow: nothing is shared.

        Raises:
            KeyboardInterrupt: The user has interrupted it. ``rows`` then has the orders that are measured.
        """
        self._count = len(orders)
        self.on_progress(0, self._count, "")
        try:
            self._measure(orders)
        except KeyboardInterrupt:
            self._complete()
            raise
        self._complete()

    def _measure(self, orders: Sequence[Prefix]) -> None:
        if not self.bench.layers_apart(self.orderings.techniques):
            for order in orders:
                self._measure_alone(order)
            return
        self.tree = Tree.of(self.orderings, orders)
        self._children = self.tree.children()
        self._ending: dict[int, list[Prefix]] = {}
        for order, end in zip(orders, self.tree.ends, strict=True):
            self._ending.setdefault(end, []).append(order)
        start = self.bench.start()
        self._visit(0, start, self.bench.digest(start))

    def _complete(self) -> None:
        """Fill ``rows`` from the measurements of states."""
        first = {digest: self.orderings.order(order) for order, digest in sorted(self.digests.items(), reverse=True)}
        for order, digest in self.digests.items():
            row = replace(self._rows[digest], order=self.orderings.order(order))
            self.rows[order] = row if self.race is None else self.race.completed(row, digest, first)

    def _measure_alone(self, order: Prefix) -> None:
        """Apply one whole order to the uncompressed model and measure it, unless its measurement is kept."""
        given = self.orderings.order(order)
        state = cache(lambda: self._applied_whole(given))
        kept = self.kept.get(f"order {given}")
        digest = self.bench.digest(state()) if kept is None else kept["digest"]
        if kept is None:
            self.kept.put(f"order {given}", {"digest": digest})
        self._ended(order, digest, state)

    def _applied_whole(self, order: Order) -> Any:
        self.applications += len(order)
        return self.bench.apply_all(order)

    def _visit(self, node: int, state: Any, digest: str) -> None:
        self._end(node, digest, lambda: state)
        for child in self._children[node]:
            technique = self.tree.steps[child]
            known = self._step(digest, technique)
            if known is None or not self._all_known(child, known):
                after = self._apply(technique, state)
                known = self.bench.digest(after)
                self._note_step(digest, technique, known)
                self._visit(child, after, known)
                del after
            else:
                self._recall(child, known)

    def _apply(self, technique: int, state: Any) -> Any:
        after = self.bench.apply(self.orderings.techniques[technique], state)
        self.applications += 1
        return after

    def _end(self, node: int, digest: str, state: Callable[[], Any]) -> None:
        for order in self._ending.get(node, ()):
            self._ended(order, digest, state)

    def _ended(self, order: Prefix, digest: str, state: Callable[[], Any]) -> None:
        """Measure the state that an order leads to, unless its measurement is known."""
        start = time.monotonic()
        row = self._row(digest, order)
        if row is None:
            given = self.orderings.order(order)
            row = self._rows[digest] = measure(given, self.bench, state(), evaluated=self.race is None)
            self.kept.put(self._name(digest), row.to_json())
        if self.race is not None:
            self.race.enter(digest, row.rate, state)
        self.digests[order] = digest
        LOG.debug("measured %s in %.3g s", self.orderings.text(order), time.monotonic() - start)
        self.on_progress(len(self.digests), self._count, self.orderings.text(order))

    def _step(self, digest: str, technique: int) -> str | None:
        """Return the digest of the state after a technique, None if it is not known."""
        if (digest, technique) not in self._steps:
            kept = self.kept.get(f"step {digest} {self.orderings.techniques[technique]}")
            if kept is None:
                return None
            self._steps[digest, technique] = kept["digest"]
        return self._steps[digest, technique]

    def _note_step(self, digest: str, technique: int, after: str) -> None:
        self._steps[digest, technique] = after
        self.kept.put(f"step {digest} {self.orderings.techniques[technique]}", {"digest": after})

    def _row(self, digest: str, order: Prefix) -> Measurement | None:
        """Return the measurement of a state that this order leads to, None if there is none."""
        if digest not in self._rows and (kept := self.kept.get(self._name(digest))) is not None:
            self._rows[digest] = Measurement.from_json(kept, self.orderings.order(order))
        return self._rows.get(digest)

    def _name(self, digest: str) -> str:
        return f"row {digest}" if self.race is None else f"layers {digest}"

    def _all_known(self, node: int, digest: str) -> bool:
        """Return True if the results of all nodes below this one, or their first parts, are known for a state."""
        if node in self._ending and self._row(digest, self._ending[node][0]) is None:
            return False
        if node in self._ending and self.race is not None and not self.race.parts.begun(digest):
            return False
        for child in self._children[node]:
            following = self._step(digest, self.tree.steps[child])
            if following is None or not self._all_known(child, following):
                return False
        return True

    def _recall(self, node: int, digest: str) -> None:
        self._end(node, digest, cache(lambda: self._again(node)))
        for child in self._children[node]:
            self._recall(child, self._steps[digest, self.tree.steps[child]])

    def _again(self, node: int) -> Any:
        """Compute a state that was not expected to be needed: on stored parts a race may have ended earlier."""
        if node == 0:
            return self.bench.start()
        return self._apply(self.tree.steps[node], self._again(self.tree.parents[node]))


def measure(order: Order | None, bench: Bench, state: Any, *, evaluated: bool = True) -> Measurement:
    """Measure one state: losses and compression rate, and the user's metrics if ``evaluated``.

    Args:
        order: The order that led to the state, None if each layer has an order of its own.
        bench: Measures the state.
        state: The state of the model.
        evaluated: False leaves the metrics empty.

    Raises:
        InputError: The user's metrics cannot be computed. The error names the order.
    """
    try:
        metrics = dict(bench.evaluate(state)) if evaluated else {}
    except InputError as error:
        where = Measurement(order, {}, {}, None).text
        raise InputError(error.given, error.allowed, f"{error.where} of {where}") from error
    return Measurement(order, metrics, dict(bench.losses(state)), bench.compression_rate(state))
