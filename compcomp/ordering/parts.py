"""Evaluate part by part, and stop early what cannot win: a race against the best state so far.

An order is compared with the best of those measured on all parts before it, on the same parts, after 8, 16, 32 ... of
them. If the interval of the paired difference shows that it is worse, it is not measured on the rest. Only sums are
kept of an order, so a race takes no memory, and stored sums make it run the same way again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from compcomp.bench import InParts, Sums
from compcomp.errors import InputError
from compcomp.language.technique import Sequence as Order
from compcomp.ordering.intervals import difference, half_width, mean
from compcomp.ordering.measurement import Measurement, fronts
from compcomp.ordering.store import Store

FIRST = 8
"""Parts before the first look. Means over fewer parts are far from normal."""
CONFIDENCE = 0.99
SAME_SIZE = 1e-3
"""Difference of compression rates up to which two orders count as equally large, as masks may differ at ties."""


@dataclass(frozen=True)
class Kept:
    """View a store that keeps measurements under one key. Without a store nothing is kept."""

    store: Store | None = None
    key: str = ""

    @property
    def directory(self) -> Path | None:
        """The directory of the store, None without one."""
        return None if self.store is None else self.store.path.resolve().parent

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the data kept under a name, None if there is none."""
        return None if self.store is None else self.store.get_result(f"{self.key} {name}")

    def put(self, name: str, data: Mapping[str, Any]) -> None:
        """Keep data under a name."""
        if self.store is not None:
            self.store.put_result(f"{self.key} {name}", data)


def looks(total: int) -> list[int]:
    """Return the numbers of parts after which a race compares states: 8, 16, 32 ... and all.

    The last stretch is no shorter than the one before.
    """
    found, count = list[int](), FIRST
    while 2 * count <= total:
        found.append(count)
        count *= 2
    return [*found, total]


class Parts:
    """Evaluate the parts of a bench's metrics in an order drawn once, so that the first of them are a random sample."""

    def __init__(self, bench: InParts, kept: Kept) -> None:
        self.bench, self.kept, self.total = bench, kept, bench.parts
        self.order = list(range(self.total))
        random.Random(0).shuffle(self.order)
        self.looks = looks(self.total)
        self._stretches: dict[tuple[str, int], Sums] = {}

    def begun(self, digest: str) -> bool:
        """Return True if the first parts of a state with this digest are known."""
        return self._known(digest, 0) is not None

    def sums(self, digest: str, look: int, state: Callable[[], Any]) -> Sums:
        """Return the sums of a state on all parts up to a look.

        Parts are always evaluated in the same stretches, so that a sum has the same bits in every run.

        Args:
            digest: The digest of the state.
            look: The number of the look.
            state: Returns the state. It is called only if needed.
        """
        found: Sums = {}
        for number in range(look + 1):
            stretch = self._known(digest, number)
            if stretch is None:
                stretch = self.bench.evaluate_parts(state(), self.order[slice(*self._ends(number))])
                self._stretches[digest, number] = stretch
                self.kept.put(self._name(digest, number), stretch)
            if found and stretch.keys() != found.keys():
                given, first = ", ".join(stretch), ", ".join(found)
                raise InputError(f"other metrics on other parts: {given}", first, "evaluate")
            for metric, pairs in stretch.items():
                found.setdefault(metric, []).extend(pairs)
        return found

    def stretches(self, digest: str) -> list[Sums]:
        """Return the sums of a state on each stretch of parts that it was evaluated on."""
        known = (self._known(digest, number) for number in range(len(self.looks)))
        return list(takewhile(lambda sums: sums is not None, known))  # type: ignore[arg-type]

    def know(self, digest: str, stretches: Sequence[Sums]) -> None:
        """Keep the sums of a state, from :meth:`stretches` of another process."""
        for number, stretch in enumerate(stretches):
            if self._known(digest, number) is None:
                self._stretches[digest, number] = stretch
                self.kept.put(self._name(digest, number), stretch)

    def whole(self, digest: str, state: Callable[[], Any]) -> dict[str, float]:
        """Return the metrics of a state over all parts."""
        sums = self.sums(digest, len(self.looks) - 1, state)
        return {metric: self.value(metric, mean(pairs)) for metric, pairs in sums.items()}

    def value(self, metric: str, middle: float) -> float:
        """Return the metric that belongs to this mean over parts."""
        if not self.bench.is_log(metric):
            return middle
        return math.exp(middle) if middle < 700 else math.nan if math.isnan(middle) else math.inf

    def _ends(self, number: int) -> tuple[int, int]:
        return (self.looks[number - 1] if number else 0), self.looks[number]

    def _name(self, digest: str, number: int) -> str:
        first, last = self._ends(number)
        return f"parts {digest} {first}-{last} of {self.total}"

    def _known(self, digest: str, number: int) -> Sums | None:
        if (digest, number) not in self._stretches:
            kept = self.kept.get(self._name(digest, number))
            if kept is None:
                return None
            self._stretches[digest, number] = {name: [(s, c) for s, c in pairs] for name, pairs in kept.items()}
        return self._stretches[digest, number]


@dataclass(frozen=True)
class Run:
    """Hold the sums of one state in a race.

    A stopped one also has the better state as ``rival``, and by how much it is worse, low and high, as ``apart``.
    """

    sums: Sums
    rival: str | None = None
    apart: tuple[float, float] = (0.0, 0.0)

    @property
    def parts(self) -> int:
        """The number of parts that the state was measured on."""
        return len(next(iter(self.sums.values())))


class Race:
    """Measure states one after the other, each against the best of the earlier ones that are no larger.

    Args:
        parts: The parts of the metrics.
        confidence: The probability that the best state is not stopped. The error is shared evenly among its possible
            rivals and the looks. None measures every state on all parts.
        candidates: The most states of the race.
    """

    def __init__(self, parts: Parts, confidence: float | None, candidates: int) -> None:
        self.parts, self.bench, self.racing = parts, parts.bench, confidence is not None
        self.candidates = candidates
        self.confidence = CONFIDENCE if confidence is None else confidence
        rivals = max(1, candidates - 1)
        self.apart = (1 - self.confidence) / rivals
        self.level = self.apart / max(1, len(parts.looks) - 1)
        self.runs: dict[str, Run] = {}
        self._whole: list[tuple[float, str]] = []  # compression rate and digest of what is measured on all parts

    def enter(self, digest: str, rate: float, state: Callable[[], Any]) -> None:
        """Measure a state of this compression rate, until it is stopped or measured on all parts."""
        if digest in self.runs:
            return
        for look, count in enumerate(self.parts.looks):
            sums = self.parts.sums(digest, look, state)
            stopped = self._stopped(sums, rate) if self.racing and count < self.parts.total else None
            if stopped is not None:
                self.runs[digest] = stopped
                return
        self.runs[digest] = Run(sums)
        self._whole.append((rate, digest))

    def rivals(self) -> list[tuple[str, float, Sums]]:
        """Return digest, compression rate and sums of the states that later ones may be compared with so far.

        They are the front of size and metric of what is measured on all parts.
        """
        points = [(rate, self._worth(digest)) for rate, digest in self._whole]
        front = (one for one, place in zip(self._whole, fronts(points), strict=True) if place == 0)
        return [(digest, rate, self.runs[digest].sums) for rate, digest in front]

    def meet(self, rivals: Iterable[tuple[str, float, Sums]]) -> None:
        """Enter the :meth:`rivals` of a race in another process."""
        for digest, rate, sums in rivals:
            self.runs[digest] = Run(sums)
            self._whole.append((rate, digest))

    def _worth(self, digest: str) -> float:
        """Return the mean of the first metric of a state, smaller is better, and infinite if it is no number."""
        sums = self.runs[digest].sums
        metric = next(iter(sums))
        value = self._sign(metric) * mean(sums[metric])
        return math.inf if math.isnan(value) else value

    def _stopped(self, sums: Sums, rate: float) -> Run | None:
        """Return the stopped run if the best state that is no larger has better sums, else None."""
        metric = next(iter(sums))
        sign = self._sign(metric)

        rivals = [digest for known, digest in self._whole if known >= rate - SAME_SIZE]
        if not rivals:
            return None
        rival = min(rivals, key=self._worth)
        own = sign * mean(sums[metric])
        if math.isnan(own) or own == math.inf:  # later parts cannot change that
            return Run(sums, rival, (math.nan, math.nan)) if self._worth(rival) < math.inf else None
        middle, half = self._difference(sums, rival, metric, self.level)
        return Run(sums, rival, (middle - half, middle + half)) if middle - half > 0 else None

    def _sign(self, metric: str) -> int:
        return 1 if self.bench.lower_is_better(metric) else -1

    def _difference(self, sums: Sums, rival: str, metric: str, level: float) -> tuple[float, float]:
        """Return how much worse these sums are than those of another state on the same parts, and half the interval."""
        others = self.runs[rival].sums[metric]
        shared = min(len(sums[metric]), len(others))
        middle, half = difference(sums[metric][:shared], others[:shared], level)
        return self._sign(metric) * middle, half

    # ------------------------------------------------------------------------------------ results

    def completed(self, row: Measurement, digest: str, orders: Mapping[str, Order]) -> Measurement:
        """Add metrics, parts and intervals to the measurement of a state, and a note if it was stopped early.

        The metrics of a stopped state are estimates for all parts: those of its rival, plus the difference on the parts
        that both were measured on.

        Args:
            row: The measurement.
            digest: The digest of the state.
            orders: For every digest an order that leads to it.
        """
        run = self.runs[digest]
        metrics, intervals = dict[str, float](), dict[str, tuple[float, float]]()
        for metric, pairs in run.sums.items():
            middle, half = mean(pairs), half_width(pairs, 1 - self.confidence)
            if run.rival is not None and math.isfinite(middle):
                whole = self.runs[run.rival].sums[metric]
                apart, half = difference(pairs, whole[: len(pairs)], 1 - self.confidence)
                middle = mean(whole) + apart
                half = math.hypot(half, half_width(whole, 1 - self.confidence))
            metrics[metric] = self.parts.value(metric, middle)
            if math.isfinite(half):
                low, high = (self.parts.value(metric, middle + side * half) for side in (-1, 1))
                intervals[metric] = low, high
        note = ""
        if run.rival is not None:
            note = f"stopped after {run.parts} of {self.parts.total} parts: {self._worse(run, orders[run.rival])}"
        return replace(row, metrics=metrics, parts=run.parts, intervals=intervals, note=note)

    def _worse(self, run: Run, rival: Order) -> str:
        (low, high), metric = run.apart, next(iter(run.sums))
        if math.isnan(low):
            return f"its {metric} is no finite number"
        return f"worse than {rival} by {low:.3g} to {high:.3g} in {self.name(metric)} at {100 * self.confidence:.6g} %"

    def behind(self, digest: str, best: str) -> tuple[float, float] | None:
        """Return how much worse a state is than the best one, low and high, in the mean of the first metric.

        All such intervals hold together with the confidence of the race. Returns None if an end is not finite.
        """
        run = self.runs[digest]
        middle, half = self._difference(run.sums, best, next(iter(run.sums)), self.apart)
        return (middle - half, middle + half) if math.isfinite(middle) and math.isfinite(half) else None

    def name(self, metric: str) -> str:
        """Return the name of the mean of a metric."""
        return f"log {metric}" if self.bench.is_log(metric) else metric
