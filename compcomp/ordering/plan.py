"""The plan: which order to take, how it was found, and what became of every other order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx

from compcomp import hooks
from compcomp.errors import InputError
from compcomp.language.technique import Sequence
from compcomp.language.verdict import Verdict
from compcomp.ordering.conditional import conclusion
from compcomp.ordering.dag import UNDER_CONDITIONS, Orderings
from compcomp.ordering.measure import Measurement
from compcomp.ordering.space import Prefix

LISTED = 5040
"""Orders up to which ``plan.json`` accounts for each of them."""
ACCOUNTS = "accounts.tsv"
NOT_ACCURACY = "A proof about layer error is not a proof about accuracy."


@dataclass
class Plan:
    """The outcome of a search over the orders of some techniques.

    order: the order to take. optimality: "proved" when proofs leave no other, else "measured".
    orders: how many there are ("total"), and how many were "merged", "dropped" and "measured", each once.
    left: how many proofs left over; fewer are measured where some are the same on the model, or cannot win there.
    verdicts: of the claims about pairs, both ways, then of every other claim that was decided.
    claims: how many were "asked", "reused" from the store, "proved", "refuted" and left "undecided".
    measurements: best first, each with order, metrics, losses and compression_rate (see
    :data:`compcomp.ordering.measure.Measurement`). dense: the user's metrics of the uncompressed model. best, worst: of
    the measurements that may be taken. loss, metric: what orders were compared by, the metric None without an
    ``evaluate``. compression_rate: of the chosen order, None where none was measured on a model. measured_on: "model"
    or "generated layers". applications: technique applications to the whole model that were "done", and in the
    "full_tree" of all prefixes; "kernel_runs" counts single layers. seconds: by phase, and "total". layer_orders: by
    layer, the texts of the orders that layers take in place of ``order`` (``granularity="layer"``, and only where that
    pays). by_layer: what that measures. conditional: of pairs that are proved neither way, what is proved under
    conditions, on what share of the model's weights these hold, and what was measured on the rest
    (:func:`compcomp.ordering.conditional.conditional`). lower: whether smaller numbers are better in what orders are
    ranked by. among: where sizes differ, which orders may be taken, in words; these come first in ``measurements``.
    pareto: the measurements that no other is as good as in metric (or loss) and in size, the smallest models first.
    outside: of the model's parameters the "share" that no technique acts on, how many ("parameters" of "of"), and the
    "largest" by name (:func:`compcomp.models.outside.outside`); None without a model.
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
    layer_orders: dict[str, str] = field(default_factory=dict)
    by_layer: Measurement | None = None
    conditional: list[dict[str, Any]] = field(default_factory=list)
    compress: Callable[..., Any] | None = field(default=None, repr=False)
    write_model: Callable[[Path], None] | None = field(default=None, repr=False)
    lower: bool | None = None
    among: str = ""
    pareto: list[Measurement] = field(default_factory=list, repr=False)
    outside: dict[str, Any] | None = field(default=None, repr=False)

    @cached_property
    def graph(self) -> nx.DiGraph[str]:
        """The DAG of orderings: see :meth:`compcomp.ordering.dag.Orderings.graph`. Plain data throughout."""
        graph = self.orderings.graph()
        for one in self.measurements:
            graph.nodes[one["order"]].update({k: finite(v) for k, v in one.items() if k != "order"})
        return graph

    @cached_property
    def accounts(self) -> list[dict[str, str]]:
        """For every order: ``order``, its ``fate`` (merged, dropped, measured), ``because``, and ``by`` which."""
        return [fate.to_json() for fate in self.orderings.fates()]

    @property
    def scope(self) -> str:
        """Which layers the proofs behind the plan speak of, in words."""
        small = any(proof.scope.kind != "any" for proof in self.orderings.proofs())
        return "the shapes of this model" if small else "any shape"

    def apply(self, model: Any, calibration: Any = None) -> Any:
        """Compress a model by the plan's order and return it, its effective weights written.

        ``calibration``: needed where the order looks at inputs and the plan was not made with a model.
        """
        if self.compress is None:
            raise InputError("a plan without a way to run", "a plan from optimize_order", "Plan.apply")
        return self.compress(model, calibration)

    def save(self, directory: str | Path) -> None:
        """Write ``plan.json``, and the compressed model where the plan was measured on one.

        What became of each order stands in ``plan.json`` too; of more than :data:`LISTED` orders in ``accounts.tsv``,
        with numbers for techniques and proofs.
        """
        folder = Path(directory)
        if self.write_model is not None:  # it refuses what cannot be written before anything is
            self.write_model(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            many = self.orders["total"] > LISTED
            data = {**self.to_json(), "accounts": ACCOUNTS if many else self.accounts}
            if many:
                (folder / ACCOUNTS).write_text("\n".join(self._numbered_accounts()) + "\n", encoding="utf-8")
            (folder / "plan.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{str(directory)!r} ({error.strerror})", "a folder to write to", "Plan.save") from None

    def _numbered_accounts(self) -> Iterator[str]:
        """A line for each order, then what its numbers stand for."""
        proofs: dict[int, tuple[int, str]] = {}
        place = {str(technique): str(k) for k, technique in enumerate(self.orderings.techniques)}

        def numbers(order: str) -> str:
            return " ".join(place[part] for part in order.split(" >> ")) if order != "identity" else "-"

        yield "order\tfate\tby\tproofs\tmeasured on this model"
        for fate in self.orderings.fates():
            used = [proofs.setdefault(id(v), (len(proofs) + 1, str(v)))[0] for v in fate.proofs]
            yield "\t".join((numbers(fate.order), fate.fate, numbers(fate.by), " ".join(map(str, used)), fate.note))
        yield from (f"# technique {number}: {text}" for text, number in place.items())
        yield from (f"# proof {number}: {text}" for number, text in proofs.values())

    def report(self, path: str | Path) -> None:
        """Write a report for people to this path."""
        try:
            write = hooks.offered("Plan.report")
        except ModuleNotFoundError as error:
            raise InputError(f"no module {error.name}", "an installation with reporting", "Plan.report") from None
        write(self, path)

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite is null."""
        return {
            "order": str(self.order),
            "optimality": self.optimality,
            "orders": self.orders,
            "left": self.left,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "claims": self.claims,
            "measurements": finite(self.measurements),
            "measured_on": self.measured_on,
            "dense": finite(self.dense),
            "best": finite(self.best),
            "worst": finite(self.worst),
            "compression_rate": finite(self.compression_rate),
            "model_compression_rate": finite(self.model_compression_rate),
            "outside": self.outside,
            "loss": self.loss,
            "metric": self.metric,
            "applications": self.applications,
            "seconds": self.seconds,
            "notes": self.notes,
            "layer_orders": self.layer_orders,
            "by_layer": finite(self.by_layer),
            "conditional": finite(self.conditional),
            "pareto": [one["order"] for one in self.pareto],
        }

    # ------------------------------------------------------------------------------------ in words

    @property
    def standing(self) -> str:
        """Which of the two a plan is: proved optimal, or the best measured of what proofs leave."""
        if self.orders["total"] == 1:
            return "the only order there is"
        if self.optimality == "proved":
            return f"proved optimal under ({self.loss}, {self.scope})"
        among = f" {self.among}," if self.among else ""
        return f"best measured{among} of the {self.left} orders that no proof excludes"

    @property
    def model_compression_rate(self) -> float | None:
        """The compression rate of the whole model: what no technique acts on counts 16 bits a parameter as before."""
        if self.compression_rate is None or self.outside is None:
            return self.compression_rate
        return float(self.compression_rate * (1 - self.outside["share"]))

    @property
    def of_model(self) -> str:
        """What the compression rate is of, in words, where parameters are outside."""
        rate = self.model_compression_rate
        if rate is None or self.outside is None or not self.outside["parameters"]:
            return ""
        return f" of {1 - self.outside['share']:.1%} of the parameters; of the whole model {rate:.1%}"

    def value(self, measurement: Measurement) -> str:
        """What a measurement was ranked by, as text."""
        if self.metric is not None and self.metric in measurement["metrics"]:
            return f"{self.metric} {measurement['metrics'][self.metric]:.4g}"
        return f"{self.loss} {measurement['losses'][self.loss]:.4g}"

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
        if self.layer_orders:
            assert self.by_layer is not None
            lines.append(
                f"  {len(self.layer_orders)} layers take an order of their own (layer_orders): "
                f"{self.value(self.by_layer)} in all"
            )
        if self.compression_rate is not None:
            lines.append(
                f"  compression rate {self.compression_rate:.1%} (1 - size / size at 16 bits a weight)" + self.of_model
            )
        lines += [f"  {note}" for note in self.notes]
        return "\n".join([*lines, f"  {NOT_ACCURACY}"])

    def _values(self) -> str:
        dense = f"{self.metric} {self.dense[self.metric]:.4g} dense, " if self.metric in self.dense else ""
        return f"{dense}{self.value(self.best)} at best, {self.value(self.worst)} at worst"

    def explain(self, order: str | Sequence) -> str:
        """What became of one order, in words.

        order: its text or a Sequence. A technique that needs no telling apart may be named without its
        parameters, as in ``"Magnitude >> AbsMax"``.
        """
        prefix = self._found(order)
        fate = next(self.orderings.fates([prefix]))
        rank = {one["order"]: k for k, one in enumerate(self.measurements)}
        lines = [f"{fate.order}: {fate.fate}."]
        if fate.fate == "measured":
            one = self.measurements[rank[fate.order]]
            values = {**one["metrics"], **one["losses"]}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            lines.append(f"No proof excludes it, so it was measured on {self._bench()}: {shown}.")
            if "note" in one:
                lines.append(f"{one['note'][:1].upper()}{one['note'][1:]}; its value is an estimate for all of them.")
            if rank[fate.order] == 0:
                lines.append(f"It is the order to take: {self.standing}.")
            else:
                lines.append(f"That is place {rank[fate.order] + 1} of {len(rank)}; {self.order} is best.")
        else:
            what = {
                "merged": "it leaves every layer in the same state as",
                "dropped": f"its {self.loss} is {_how_much(fate.note)} than that of",
            }[fate.fate]
            lines.append(f"It was not measured, since {what} {fate.by}, which was ({self._of(fate.by, rank)}).")
            for proof in fate.proofs:
                assuming = f", assuming {'; '.join(map(str, proof.assumptions))}" if proof.assumptions else ""
                reason = f" ({proof.reason})" if proof.reason else ""
                lines.append(f"Proved for {proof.reach or proof.scope.describe()}{reason}: {proof.claim}{assuming}.")
            if fate.note:
                lines.append(f"{'Known' if UNDER_CONDITIONS in fate.note else 'Measured on this model'}: {fate.note}.")
            if fate.fate == "dropped":
                lines.append(NOT_ACCURACY)
        for entry in self.conditional:
            if fate.order in (entry["left"], entry["right"]):
                lines.append(f"Under conditions, {entry['claim']} is proved. {entry['left']} {conclusion(entry)}.")
        return "\n".join(lines)

    def _of(self, order: str, rank: dict[str, int]) -> str:
        return self.value(self.measurements[rank[order]])

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
    """The same data with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
