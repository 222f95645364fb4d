"""Measuring the orders that no proof excludes, through a protocol: this room knows no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.ordering.dag import Orderings, Prefix, Shape

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

    def same(self, first: Any, second: Any) -> bool:
        """Whether two states are bitwise the same."""

    def lower_is_better(self, metric: str) -> bool:
        """Which way one of the user's metrics goes."""

    def write(self, state: Any) -> Any:
        """The compressed model."""

    def shapes(self) -> list[Shape]:
        """(out, in) of every layer."""


def measured(
    orderings: Orderings, bench: Bench, wanted: Collection[Prefix], applied: Callable[[Prefix], None]
) -> Iterator[tuple[Prefix, Measurement]]:
    """Measure complete orders on a bench, depth first: each prefix is applied once.

    States are kept along one path only, so there are never more than techniques plus one. ``applied`` is
    told every prefix whose last technique has just been applied.
    """
    needed = {order[:k] for order in wanted for k in range(len(order) + 1)}

    def below(prefix: Prefix, state: Any) -> Iterator[tuple[Prefix, Measurement]]:
        if len(prefix) == orderings.length:
            yield prefix, measurement(orderings.text(prefix), bench, state)
            return
        for child in orderings.children(prefix):
            if child in needed:
                after = bench.apply(orderings.techniques[child[-1]], state)
                applied(child)
                yield from below(child, after)
                del after

    if wanted:
        yield from below((), bench.start())


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
