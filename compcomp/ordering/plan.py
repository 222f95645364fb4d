"""The plan as data: the order to take, how it was found, and the outcome of every other order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx

from compcomp.bench import Outside
from compcomp.errors import InputError
from compcomp.language.technique import Sequence
from compcomp.language.verdict import Verdict
from compcomp.ordering.conditional import ConditionalEntry
from compcomp.ordering.dag import UNDER_CONDITIONS, Orderings
from compcomp.ordering.measurement import Measurement
from compcomp.ordering.space import Prefix

INTERRUPTED = "interrupted"
NOT_ACCURACY = "A proof about layer error is not a proof about accuracy."


@dataclass(frozen=True)
class PlanData:
    """Hold the result of a search over the orders of some techniques.

    :class:`compcomp.plan.Plan` extends it by methods that apply it.

    Attributes:
        order: The order to take.
        optimality: "proved" if proofs exclude all other orders, else "measured". "interrupted" if the user ended the
            search before all orders were measured.
        orders: How many orders there are ("total"), and how many were "merged", "dropped" and "measured". Each order
            counts once. Those that an interrupted search has not reached are "open".
        left: How many orders the proofs left over. Fewer are measured if some are the same on the model, or cannot win
            there.
        verdicts: Verdicts on claims about pairs, both ways, followed by those on every other claim that was decided.
        claims: How many claims were "asked", "reused" from the store, "proved", "refuted" and left "undecided".
        measurements: Measurements, best first. Those of orders that may be chosen come before all others.
        dense: The user's metrics of the uncompressed model.
        best: The best measurement of an order that may be chosen.
        worst: The worst measurement of an order that may be chosen.
        compression_rate: The compression rate of the chosen order, None without a model.
        loss: The loss that orders are compared by.
        metric: The metric that orders are compared by, None without an ``evaluate``.
        measured_on: "model" or "generated layers".
        applications: Technique applications to the whole model that were "done", and those in the "full_tree" of all
            prefixes. "kernel_runs" counts applications to single layers.
        seconds: Seconds by phase, and "total".
        own_orders: By layer, the orders that layers take in place of ``order``. Filled under ``granularity="layer"``,
            and only if the model is better with them.
        by_layer: The measurement of the model with ``own_orders``.
        conditional: Claims that are proved under conditions, about pairs that are proved neither way.
        lower: True if smaller values are better among those that orders are ranked by.
        among: A description of the orders that may be chosen, if sizes differ.
        pareto: The Pareto front: measurements that no other matches in both metric (or loss) and size, the smallest
            models first.
        outside: The model's parameters that no technique acts on, None without a model.
        inputs: A line on the inputs that the numbers are about. Empty if calibration does not matter.
    """

    order: Sequence
    optimality: str
    orders: dict[str, int]
    left: int
    verdicts: list[Verdict]
    claims: dict[str, int]
    measurements: list[Measurement]
    dense: dict[str, float]
    best: Measurement
    worst: Measurement
    compression_rate: float | None
    loss: str
    metric: str | None
    measured_on: str
    applications: dict[str, int]
    seconds: dict[str, float]
    orderings: Orderings = field(repr=False)
    notes: list[str] = field(default_factory=list)
    own_orders: dict[str, Sequence] = field(default_factory=dict)
    by_layer: Measurement | None = None
    conditional: list[ConditionalEntry] = field(default_factory=list)
    lower: bool | None = None
    among: str = ""
    pareto: list[Measurement] = field(default_factory=list, repr=False)
    outside: Outside | None = field(default=None, repr=False)
    inputs: str = ""

    @property
    def layer_orders(self) -> dict[str, str]:
        """The text of each order in ``own_orders``."""
        return {name: str(order) for name, order in self.own_orders.items()}

    @cached_property
    def graph(self) -> nx.DiGraph[str]:
        """The DAG of orderings as plain data: see :meth:`compcomp.ordering.dag.Orderings.graph`."""
        graph = self.orderings.graph()
        for one in self.measurements:
            values = one.to_json()
            graph.nodes[values.pop("order")].update(finite(values))
        return graph

    @cached_property
    def accounts(self) -> list[dict[str, str]]:
        """For every order, a row with ``order``, ``fate`` (merged, dropped or measured), ``because``, and ``by``."""
        return [outcome.to_json() for outcome in self.orderings.outcomes()]

    @property
    def scope(self) -> str:
        """A description of the layers that the proofs behind the plan cover."""
        small = any(proof.scope.kind != "any" for proof in self.orderings.proofs())
        return "the shapes of this model" if small else "any shape"

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with null for numbers that are not finite."""
        return {
            "order": str(self.order),
            "optimality": self.optimality,
            "orders": self.orders,
            "left": self.left,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "claims": self.claims,
            "measurements": [finite(one.to_json()) for one in self.measurements],
            "measured_on": self.measured_on,
            "dense": finite(self.dense),
            "best": finite(self.best.to_json()),
            "worst": finite(self.worst.to_json()),
            "compression_rate": finite(self.compression_rate),
            "model_compression_rate": finite(self.model_compression_rate),
            "outside": None if self.outside is None else self.outside.to_json(),
            "loss": self.loss,
            "metric": self.metric,
            "applications": self.applications,
            "seconds": self.seconds,
            "notes": self.notes,
            "inputs": self.inputs,
            "layer_orders": self.layer_orders,
            "by_layer": None if self.by_layer is None else finite(self.by_layer.to_json()),
            "conditional": [finite(entry.to_json()) for entry in self.conditional],
            "pareto": [one.text for one in self.pareto],
        }

    # ------------------------------------------------------------------------------------ as text

    @property
    def remarks(self) -> list[str]:
        """The lines that a report shows: the notes, and the inputs that the numbers are about."""
        return [*self.notes, *([self.inputs] if self.inputs else [])]

    @property
    def standing(self) -> str:
        """A phrase that says if the order is proved optimal, or the best measured of those that proofs leave."""
        if self.orders["total"] == 1:
            return "the only order there is"
        if self.optimality == "proved":
            return f"proved optimal under ({self.loss}, {self.scope})"
        if self.optimality == INTERRUPTED:
            measured, left = self.orders["measured"], self.left
            which = "the only order" if measured == 1 else f"best of the {measured} orders"
            return f"{which} measured before an interruption, of {left} that no proof excludes"
        among = f" {self.among}," if self.among else ""
        return f"best measured{among} of the {self.left} orders that no proof excludes"

    @property
    def model_compression_rate(self) -> float | None:
        """The compression rate of the whole model. Parameters that no technique acts on still count 16 bits."""
        if self.compression_rate is None or self.outside is None:
            return self.compression_rate
        return float(self.compression_rate * (1 - self.outside.share))

    @property
    def of_model(self) -> str:
        """The share of the parameters that the compression rate is about, as text. Empty if it is all of them."""
        rate = self.model_compression_rate
        if rate is None or self.outside is None or not self.outside.left.parameters:
            return ""
        return f" of {1 - self.outside.share:.1%} of the parameters; of the whole model {rate:.1%}"

    def value(self, measurement: Measurement) -> str:
        """Return the value that a measurement was ranked by, as text."""
        if self.metric is not None and self.metric in measurement.metrics:
            return f"{self.metric} {measurement.metrics[self.metric]:.4g}"
        return f"{self.loss} {measurement.losses[self.loss]:.4g}"

    def __str__(self) -> str:
        counts = self.orders
        lines = [
            str(self.order),
            f"  {self.standing}",
            f"  {counts['total']} orders: {counts['merged']} merged, {counts['dropped']} dropped by proof, "
            f"{counts['measured']} measured",
            f"  measured on {'the model' if self.measured_on == 'model' else 'generated layers, not on a model'}: "
            + self._values(),
        ]
        if self.own_orders:
            assert self.by_layer is not None
            lines.append(
                f"  {len(self.own_orders)} layers take an order of their own (layer_orders): "
                f"{self.value(self.by_layer)} in all"
            )
        if self.compression_rate is not None:
            lines.append(
                f"  compression rate {self.compression_rate:.1%} (1 - size / size at 16 bits a weight)" + self.of_model
            )
        lines += [f"  {note}" for note in self.remarks]
        return "\n".join([*lines, f"  {NOT_ACCURACY}"])

    def _values(self) -> str:
        dense = f"{self.metric} {self.dense[self.metric]:.4g} dense, " if self.metric in self.dense else ""
        return f"{dense}{self.value(self.best)} at best, {self.value(self.worst)} at worst"

    def explain(self, order: str | Sequence) -> str:
        """Return the outcome of one order as text.

        Args:
            order: A Sequence, or its text. A technique may be named without its parameters if its class is unique here,
                as in ``"Magnitude >> AbsMax"``.

        Raises:
            InputError: It is not an order of the techniques of this plan.
        """
        (outcome,) = self.orderings.outcomes([self._found(order)])
        lines = [f"{outcome.order}: {outcome.kind}."]
        place = self._place(outcome.by)
        one = None if place is None else self.measurements[place]
        if one is None and outcome.kind == "open":
            lines.append("No proof excludes it, but the search was interrupted before it was measured.")
        elif one is not None and outcome.kind in ("measured", "open"):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in {**one.metrics, **one.losses}.items())
            lines.append(f"No proof excludes it, so it was measured on {self._bench()}: {shown}.")
            if one.note:
                lines.append(f"{one.note[:1].upper()}{one.note[1:]}; its value is an estimate for all of them.")
            if place == 0:
                lines.append(f"It is the order to take: {self.standing}.")
            elif place is not None:
                lines.append(f"That is place {place + 1} of {len(self.measurements)}; {self.order} is best.")
        else:
            reason = {
                "merged": "it leaves every layer in the same state as",
                "dropped": f"its {self.loss} is {_how_much(outcome.note)} than that of",
            }[outcome.kind]
            value = f"which was ({self.value(one)})" if one is not None else "which an interrupted search did not reach"
            lines.append(f"It was not measured, since {reason} {outcome.by}, {value}.")
            for proof in outcome.proofs:
                assuming = f", assuming {'; '.join(map(str, proof.assumptions))}" if proof.assumptions else ""
                rule = f" ({proof.reason})" if proof.reason else ""
                lines.append(f"Proved for {proof.reach or proof.scope.describe()}{rule}: {proof.claim}{assuming}.")
            if outcome.note:
                known = "Known" if UNDER_CONDITIONS in outcome.note else "Measured on this model"
                lines.append(f"{known}: {outcome.note}.")
            if outcome.kind == "dropped":
                lines.append(NOT_ACCURACY)
        sides = self.orderings.prefix(outcome.order.techniques)
        for entry in self.conditional:
            if sides in (self.orderings.prefix(side.techniques) for side in (entry.left, entry.right)):
                lines.append(f"Under conditions, {entry.claim} is proved. {entry.left} {entry.conclusion}.")
        return "\n".join(lines)

    def _place(self, order: Sequence) -> int | None:
        """Return the position of an order in the measurements, None if it was not measured."""
        wanted = self.orderings.prefix(order.techniques)
        found = (one.order for one in self.measurements)
        alike = (k for k, known in enumerate(found) if known and self.orderings.prefix(known.techniques) == wanted)
        return next(alike, None)

    def _bench(self) -> str:
        return "the model" if self.measured_on == "model" else "generated layers"

    def _found(self, order: str | Sequence) -> Prefix:
        known = self.orderings.techniques
        allowed = f"an order of {', '.join(map(str, known))}"
        if isinstance(order, str):
            parts = []
            for part in order.split(">>"):
                named = [t for t in known if type(t).__name__ == part.strip()]
                parts.append(str(named[0]) if len(named) == 1 else part)
            order = self.orderings.read(" >> ".join(parts))
        if not isinstance(order, Sequence):
            raise InputError(repr(order)[:80], allowed, "explain")
        prefix = self.orderings.prefix(order.techniques)
        if prefix is None or not self.orderings.complete(self.orderings.used(prefix)):
            raise InputError(f"{str(order)[:200]!r}", allowed, "explain")
        return prefix


def _how_much(note: str) -> str:
    if UNDER_CONDITIONS in note:
        return "no less, on this model,"
    return "more" if note else "never less"


def finite(value: Any) -> Any:
    """Return the same data with None in place of infinities and NaN, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
