"""Measuring the orders that no proof excludes, through a protocol: this room knows no model."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from compcomp.errors import InputError
from compcomp.language.claim import Claim
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.ordering.dag import Orderings, Shape
from compcomp.ordering.parts import InParts, Kept, Race
from compcomp.ordering.space import Prefix

Measurement = dict[str, Any]
"""``order``: its text. ``metrics``: the user's. ``losses``: of the layers. ``compression_rate``.

Where the metrics are means over parts also ``parts``: on how many it was measured; ``intervals``: by metric its low and
high; ``behind``: how much worse than the best, low and high, in the mean of the first metric; ``note``: why it was
stopped early, if it was.
"""


class Bench(InParts, Protocol):
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
    """Paths as a tree. Node 0 is the dense layer; node k applies ``steps[k]`` to the earlier node ``parents[k]``.

    ``ends``: the node of each order's path, aligned with ``orders``.
    """

    orders: tuple[Prefix, ...]
    parents: tuple[int, ...]
    steps: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, orderings: Orderings, orders: Sequence[Prefix]) -> Tree:
        """The tree of these orders' paths."""
        known: dict[Prefix, int] = {(): 0}
        parents, steps, ends = [-1], [-1], []
        for order in orders:
            word = orderings.path(order)
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
    the whole model. What is found is kept, and nothing that is there is done again. ``race``: where metrics are means
    over parts, what evaluates them.
    """

    def __init__(
        self,
        orderings: Orderings,
        bench: Bench,
        applied: Callable[[int, int, str], None] = lambda done, total, text: None,
        kept: Kept | None = None,
        race: Race | None = None,
    ) -> None:
        self.orderings, self.bench, self.applied = orderings, bench, applied
        self.kept, self.race = kept or Kept(), race
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
        texts = {digest: self.orderings.text(order) for order, digest in sorted(self.digests.items(), reverse=True)}
        for order, digest in self.digests.items():
            raced = {} if self.race is None else self.race.row(digest, texts)
            self.rows[order] = {**self._rows[digest], **raced, "order": self.orderings.text(order)}

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
        self.applied(self.applications, len(self.tree.parents) - 1, str(self.orderings.techniques[technique]))
        return after

    def _end(self, node: int, digest: str, state: Callable[[], Any]) -> None:
        for order in self._ending.get(node, ()):
            row = self._row(digest)
            if row is None:
                text = self.orderings.text(order)
                row = self._rows[digest] = measurement(text, self.bench, state(), evaluated=self.race is None)
                self.kept.put(self._name(digest), row)
            if self.race is not None:
                self.race.enter(digest, row["compression_rate"], state)
            self.digests[order] = digest

    def _step(self, digest: str, technique: int) -> str | None:
        """The state after a technique, where that is known."""
        if (digest, technique) not in self._steps:
            kept = self.kept.get(f"step {digest} {self.orderings.techniques[technique]}")
            if kept is None:
                return None
            self._steps[digest, technique] = kept["digest"]
        return self._steps[digest, technique]

    def _note_step(self, digest: str, technique: int, after: str) -> None:
        self._steps[digest, technique] = after
        self.kept.put(f"step {digest} {self.orderings.techniques[technique]}", {"digest": after})

    def _row(self, digest: str) -> Measurement | None:
        """What was measured of a state."""
        if digest not in self._rows and (kept := self.kept.get(self._name(digest))) is not None:
            self._rows[digest] = kept
        return self._rows.get(digest)

    def _name(self, digest: str) -> str:
        return f"row {digest}" if self.race is None else f"layers {digest}"

    def _all_known(self, node: int, digest: str) -> bool:
        """Whether everything from this node on is known of a state with this digest, or the beginning of it."""
        if node in self._ending and self._row(digest) is None:
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
        """A state that was not thought to be needed: on stored parts a race may have ended earlier."""
        if node == 0:
            return self.bench.start()
        return self._apply(self.tree.steps[node], self._again(self.tree.parents[node]))


def measurement(order: str, bench: Bench, state: Any, *, evaluated: bool = True) -> Measurement:
    """Everything the bench can tell of one state; ``evaluated``: the user's metrics too."""
    try:
        metrics = dict(bench.evaluate(state)) if evaluated else {}
    except InputError as error:
        raise InputError(error.given, error.allowed, f"{error.where} of {order}") from error
    return {
        "order": order,
        "metrics": metrics,
        "losses": dict(bench.losses(state)),
        "compression_rate": bench.compression_rate(state),
    }


def worth(one: Measurement, loss: str, metric: str | None, lower: bool) -> float:
    """What a measurement is compared by, smaller is better: the user's metric where there is one, else the loss."""
    value = one["losses"][loss] if metric is None else one["metrics"].get(metric, math.nan)
    return float(value if lower or metric is None else -value)


def ranked(
    measurements: list[Measurement], loss: str, metric: str | None, lower: bool, chosen: Collection[str] = ()
) -> list[Measurement]:
    """Best first: by the user's metric where there is one, then by the loss, then by text. NaN comes last.

    chosen: orders that come before all others.
    """
    for one in measurements:
        if loss not in one["losses"]:
            raise InputError(f"loss {loss!r}", ", ".join(one["losses"]) or "none", "what the layers were measured by")

    def last(value: float) -> tuple[bool, float]:
        return (math.isnan(value), 0.0 if math.isnan(value) else value)

    def key(one: Measurement) -> tuple[Any, ...]:
        primary = last(worth(one, loss, metric, lower))
        return (one["order"] not in chosen, *primary, *last(one["losses"][loss]), one["order"])

    return sorted(measurements, key=key)


def fronts(points: Sequence[tuple[float, float]]) -> list[int]:
    """For each point (rate, worth) its front: 0 where no other is as good in both, then what is left, and so on.

    More of a rate is better, and less of a worth. Of equal points the first is in the earliest front.
    """
    found, least = [0] * len(points), list[float]()
    for k in sorted(range(len(points)), key=lambda k: (-points[k][0], points[k][1], k)):
        found[k] = bisect_right(least, points[k][1])
        least[found[k] : found[k] + 1] = [points[k][1]]
    return found


def pareto(measurements: Sequence[Measurement], loss: str, metric: str | None, lower: bool) -> list[Measurement]:
    """The measurements that no other is as good as in metric (or loss) and size, the smallest models first.

    Where sizes are not known the best alone. What has no number is not among them.
    """
    rows = [(one, worth(one, loss, metric, lower)) for one in measurements]
    rows = [(one, value) for one, value in rows if not math.isnan(value)]
    points = [(one["compression_rate"] or 0.0, value) for one, value in rows]
    front = [one for (one, _), place in zip(rows, fronts(points), strict=True) if place == 0]
    return sorted(front, key=lambda one: -(one["compression_rate"] or 0.0))
