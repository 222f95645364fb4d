"""The measured values of orders, and how orders are ranked by them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from compcomp.errors import InputError
from compcomp.language.technique import Sequence as Order
from compcomp.language.text import parse_sequence
from compcomp.ordering.space import Prefix
from compcomp.record import Record

EACH_ITS_OWN = "an order for each layer"
"""The text in place of an order if layers have orders of their own."""


@dataclass(frozen=True, eq=False)
class Measurement(Record):
    """Hold the measured values of one order. Its JSON form can be read by key, as in ``measurement["losses"]``.

    The fields from ``parts`` on are known if metrics are means over independent parts of the data.

    Attributes:
        order: The order, None if each layer has an order of its own.
        metrics: The user's metrics by name.
        losses: The losses of the layers by name.
        compression_rate: 1 - size / uncompressed size, None without a model.
        parts: On how many parts the order was measured.
        intervals: By metric, the low and high end of its confidence interval.
        behind: The low and high end of how much worse than the best the order is, in the mean of the first metric.
        note: The reason for which measuring stopped early, empty if it did not.
    """

    order: Order | None
    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    compression_rate: float | None
    parts: int | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    behind: tuple[float, float] | None = None
    note: str = ""

    @property
    def rate(self) -> float:
        """The compression rate, 0 without a model."""
        return self.compression_rate or 0.0

    @property
    def text(self) -> str:
        """The text of the order."""
        return EACH_ITS_OWN if self.order is None else str(self.order)

    def to_json(self) -> dict[str, Any]:
        """Return plain data. ``parts``, ``intervals``, ``note`` and ``behind`` are present only if known."""
        found: dict[str, Any] = {
            "order": self.text,
            "metrics": dict(self.metrics),
            "losses": dict(self.losses),
            "compression_rate": self.compression_rate,
        }
        if self.parts is not None:
            found["parts"] = self.parts
            found["intervals"] = {metric: list(ends) for metric, ends in self.intervals.items()}
        if self.note:
            found["note"] = self.note
        if self.behind is not None:
            found["behind"] = list(self.behind)
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any], order: Order | None = None) -> Self:
        """Read the result of :meth:`to_json`. The order is read from its text unless it is given."""
        if order is None and data["order"] != EACH_ITS_OWN:
            order = parse_sequence(data["order"])
        behind = data.get("behind")
        return cls(
            order,
            dict(data["metrics"]),
            dict(data["losses"]),
            data["compression_rate"],
            data.get("parts"),
            {metric: (low, high) for metric, (low, high) in data.get("intervals", {}).items()},
            None if behind is None else (behind[0], behind[1]),
            data.get("note", ""),
        )

    def worth(self, loss: str, metric: str | None, lower: bool) -> float:
        """Return the value that orders are compared by: the metric if there is one, else the loss. Smaller is better.

        Args:
            loss: The name of the loss.
            metric: The name of the metric, None without one.
            lower: True if smaller values of the metric are better.

        Returns:
            The value with its sign such that smaller is better. NaN if the metric was not measured.
        """
        value = self.losses[loss] if metric is None else self.metrics.get(metric, math.nan)
        return float(value if lower or metric is None else -value)


def ranked(measurements: Sequence[Measurement], loss: str, metric: str | None, lower: bool) -> list[Measurement]:
    """Sort measurements, best first: by the metric if there is one, then by the loss, then by text.

    Args:
        measurements: The measurements.
        loss: The name of the loss.
        metric: The name of the metric, None without one.
        lower: True if smaller values of the metric are better.

    Returns:
        The sorted measurements. Those without a number come last.

    Raises:
        InputError: The loss was not measured.
    """
    return sorted(measurements, key=lambda one: rank(one, loss, metric, lower))


def rank(one: Measurement, loss: str, metric: str | None, lower: bool) -> tuple[Any, ...]:
    """Return the key that measurements are sorted by: see :func:`ranked`.

    Raises:
        InputError: The loss was not measured.
    """
    if loss not in one.losses:
        raise InputError(f"loss {loss!r}", ", ".join(one.losses) or "none", "what the layers were measured by")
    values = (one.worth(loss, metric, lower), one.losses[loss])
    return (*((math.isnan(value), 0.0 if math.isnan(value) else value) for value in values), one.text)


def fronts(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return for each point (rate, worth) the number of its Pareto front.

    Front 0 has the points that no other point matches in both values. Front 1 has those of the remaining points, and so
    on. A larger rate is better, and a smaller worth. Of equal points the first is in the earliest front.
    """
    found, least = [0] * len(points), list[float]()
    for k in sorted(range(len(points)), key=lambda k: (-points[k][0], points[k][1], k)):
        found[k] = bisect_right(least, points[k][1])
        least[found[k] : found[k] + 1] = [points[k][1]]
    return found


def pareto(measurements: Sequence[Measurement], loss: str, metric: str | None, lower: bool) -> list[Measurement]:
    """Return the Pareto front: the measurements that no other matches in both metric (or loss) and size.

    Args:
        measurements: The measurements.
        loss: The name of the loss.
        metric: The name of the metric, None without one.
        lower: True if smaller values of the metric are better.

    Returns:
        The front, the smallest models first. If sizes are not known, it is the best measurement alone. Measurements
            without a number are left out.
    """
    rows = [(one, one.worth(loss, metric, lower)) for one in measurements]
    rows = [(one, value) for one, value in rows if not math.isnan(value)]
    points = [(one.rate, value) for one, value in rows]
    front = [one for (one, _), place in zip(rows, fronts(points), strict=True) if place == 0]
    return sorted(front, key=lambda one: -one.rate)


@dataclass(frozen=True)
class LayerOrders:
    """Hold the orders of single layers, by name, that replace the common one. ``measured``: the model with them."""

    orders: Mapping[str, Order]
    measured: Measurement


@dataclass(frozen=True)
class Ranking:
    """Hold the measured orders, best first.

    Attributes:
        orders: The orders.
        rows: Their measurements, aligned with ``orders``.
        eligible: How many of them may be chosen. These come first.
        kernel_runs: The number of techniques applied to single layers.
        among: A description of the orders that may be chosen, empty if all may.
        layers: The number of layers of the model.
        dense: The user's metrics of the uncompressed model.
        lower: True if a smaller metric is better.
        by_layer: The orders of single layers, None unless they were measured.
        interrupted: True if the user interrupted the search before all orders were measured.
    """

    orders: tuple[Prefix, ...]
    rows: tuple[Measurement, ...]
    eligible: int
    kernel_runs: int
    among: str = ""
    dense: Mapping[str, float] = field(default_factory=dict)
    lower: bool = True
    layers: int = 1
    by_layer: LayerOrders | None = None
    interrupted: bool = False

    @property
    def metric(self) -> str | None:
        """The metric that orders are ranked by, None without one."""
        return next(iter(self.dense), None)
