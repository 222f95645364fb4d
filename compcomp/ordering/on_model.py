"""Measure on a model the orders that no proof excludes, and rank them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from compcomp.bench import Bench
from compcomp.errors import InputError
from compcomp.language.named import sources_of
from compcomp.ordering.branches import measuring
from compcomp.ordering.dag import Orderings
from compcomp.ordering.explore import Explored, Explorer
from compcomp.ordering.measure import Measured, measure
from compcomp.ordering.measurement import LayerOrders, Measurement, Ranking, fronts, rank, ranked
from compcomp.ordering.parts import CONFIDENCE, SAME_SIZE, Kept, Parts, Race
from compcomp.ordering.progress import Progress
from compcomp.ordering.space import Prefix
from compcomp.ordering.store import Store

EVALUATED = 128
"""The most orders that are measured to the end and passed to the user's ``evaluate``: those of least loss."""
RANKED = 8
"""The most orders that are measured to the end without an ``evaluate``: those of least loss."""


@dataclass(frozen=True)
class Wanted:
    """Hold the user's wishes for a search.

    Attributes:
        evaluations: The most orders to pass to ``evaluate``.
        by_layer: True for an order for each layer where that is better.
        size: The compression rate to reach, or None.
        confidence: The confidence of the race that stops orders early, or None.
    """

    evaluations: int = EVALUATED
    by_layer: bool = False
    size: float | None = None
    confidence: float | None = CONFIDENCE

    def explores(self, orders: int, *, evaluated: bool, whole: bool) -> bool:
        """Return True if layers are explored by themselves first.

        Args:
            orders: The number of orders that stay.
            evaluated: True if the user evaluates models.
            whole: True if a technique acts on the whole model.
        """
        return not whole and (not evaluated or orders > self.evaluations or self.by_layer)


class OnModel:
    """Measure the staying orders of a search on a bench.

    Args:
        orderings: The orderings with the staying orders.
        bench: Applies techniques to the model and measures it.
        wanted: The user's wishes.
        progress: Reports progress.
        notes: A list that receives notes for the report.
        store: Keeps measurements between runs.
        executor: Runs the jobs of layers and whole models, None for this process or, for layers, a pool of processes.
        keeps: Returns the positions of the techniques that keep each invariant (law 4).
        drop: Drops orders by law 5. Its argument is True if the user evaluates models.
    """

    def __init__(
        self,
        orderings: Orderings,
        bench: Bench,
        wanted: Wanted,
        progress: Progress,
        notes: list[str],
        *,
        store: Store | None,
        executor: Executor | None,
        keeps: Callable[[], dict[str, list[int]]],
        drop: Callable[[bool], None],
    ) -> None:
        self.orderings, self.bench, self.wanted = orderings, bench, wanted
        self.progress, self.notes = progress, notes
        self.store, self.executor, self.keeps, self.drop = store, executor, keeps, drop
        self.loss = orderings.loss
        self.whole = any(technique.whole_model for technique in orderings.techniques)
        self.among, self.kernel_runs, self.interrupted = "", 0, False

    def ranking(self) -> Ranking:
        """Measure the staying orders and rank them.

        A few orders are measured on the whole model at once. If there are many, layers are explored first.

        If layers are not apart in the models that ``evaluate`` is given, as they are calibrated on the outputs of
        compressed layers, the layers are still explored on the inputs of the dense model. This chooses
        the orders to evaluate, but merges and drops none: laws 4 and 5 speak of other states.
        """
        bench, orderings, wanted = self.bench, self.orderings, self.wanted
        rows, layers = dict[Prefix, Measurement](), len(bench.layer_names())
        key = None if self.store is None else bench.fingerprint()
        sources = None if key is None else sources_of(orderings.techniques)
        kept = Kept() if sources is None else Kept(self.store, f"{key} {sources} {self.loss}")
        parts = Parts(bench, kept) if bench.parts else None
        dense = self._dense(kept, parts)
        apart = not dense or bench.layers_apart(orderings.techniques)
        if apart:
            self.drop(bool(dense))
        own: dict[str, Prefix] = {}
        chosen = staying = list(orderings.staying())
        if wanted.explores(len(staying), evaluated=bool(dense), whole=self.whole):
            explorer = Explorer(orderings, bench, self.executor, self.store, self.progress.of("explore"), self.keeps())
            found = explorer.explore(wanted.evaluations if dense else RANKED, every=wanted.by_layer or not apart)
            if apart:
                orderings.same_on_model({order: found.state(order) for order in orderings.staying()})
            staying = list(orderings.staying())
            rows = {order: self._explored(order, found) for order in staying}
            if wanted.by_layer:
                own = found.best_by_layer(self.loss, self._eligible(rows))
            self.kernel_runs += found.applications
            chosen = self._survivors(rows) if dense else []
        race, digests = None, dict[Prefix, str]()
        if chosen:
            race = Race(parts, wanted.confidence, len(chosen)) if parts is not None else None
            executor = self.executor if len(chosen) > 1 else None
            arguments = orderings, bench, self.progress.of("measure"), kept, race
            with measuring(*arguments, executor=executor, notes=self.notes) as measured:
                try:
                    measured.measure(chosen)
                except KeyboardInterrupt:
                    if not rows and not measured.rows:
                        raise
                    self._stop(chosen, measured)
            rows |= measured.rows
            self.kernel_runs += measured.applications * layers
            orderings.same_on_model(measured.digests)
            digests = measured.digests
        self._check_metrics(rows, dense)
        staying = [order for order in orderings.staying() if order in rows]
        metric = next(iter(dense), None)
        lower = metric is None or bench.lower_is_better(metric)
        eligible = set(self._eligible({order: rows[order] for order in staying}))
        staying.sort(key=lambda order: (order not in eligible, rank(rows[order], self.loss, metric, lower)))
        if race is not None and staying[0] in digests:
            self._compare(staying, rows, race, digests)
        by_layer = None
        if wanted.by_layer and not self.interrupted:
            by_layer = self._by_layer(own, staying[0], rows[staying[0]], parts, lower)
        return Ranking(
            tuple(staying),
            tuple(rows[order] for order in staying),
            len(eligible),
            self.kernel_runs,
            self.among,
            dense,
            lower,
            layers,
            by_layer,
            self.interrupted,
        )

    def _stop(self, chosen: list[Prefix], measured: Measured) -> None:
        """Note that the user has interrupted the search, and which orders are not measured."""
        self.interrupted = True
        self.orderings.leave_open(order for order in chosen if order not in measured.rows)
        done = f"{len(measured.rows)} of {len(chosen)} orders"
        self.notes.append(
            f"the search was interrupted when {done} were measured; with the same store it continues from there"
        )

    def _dense(self, kept: Kept, parts: Parts | None) -> dict[str, float]:
        """Return the user's metrics of the uncompressed model."""
        start = self.bench.start()
        if parts is not None:
            return parts.whole(self.bench.digest(start), lambda: start)
        found = kept.get("dense")
        if found is None:
            found = dict(self.bench.evaluate(start))
            kept.put("dense", found)
        return found

    def _explored(self, order: Prefix, found: Explored) -> Measurement:
        """Return the measurement of an order from its losses on each layer."""
        losses = self.bench.total([found.on(layer, order) for layer in found.places])
        return Measurement(self.orderings.order(order), {}, losses, self.bench.rate(found.bits(order)))

    def _check_metrics(self, rows: dict[Prefix, Measurement], dense: dict[str, float]) -> None:
        """Raise InputError if a model has other metrics than the uncompressed one."""
        for row in rows.values():
            if row.metrics and (lacking := sorted(dense.keys() ^ row.metrics.keys())):
                given = f"{lacking[0]!r} for some and not for others"
                raise InputError(given, "the same metrics of every model", f"evaluate of {row.text}")

    # ------------------------------------------------------------------------------------ which orders

    def _survivors(self, rows: dict[Prefix, Measurement]) -> list[Prefix]:
        """Return the orders to pass to the user's ``evaluate``: those nearest to the front of loss and size."""
        open_ = sorted(order for order, row in rows.items() if self._reaches(row))
        places = dict(
            zip(open_, fronts([(rows[order].rate, rows[order].losses[self.loss]) for order in open_]), strict=True)
        )
        rate = {order: rows[order].rate for order in open_}
        found = sorted(open_, key=lambda order: (places[order], -rate[order], rows[order].losses[self.loss], order))
        found = found[: self.wanted.evaluations]
        if len(found) < len(rows):
            sizes = max(rate.values(), default=0.0) - min(rate.values(), default=0.0) > SAME_SIZE
            which = f"nearest to the front of {self.loss} and size" if sizes else f"of least {self.loss}"
            self.notes.append(f"evaluated were the {len(found)} orders {which}, out of {len(rows)}")
        return found

    def _reaches(self, row: Measurement) -> bool:
        return self.wanted.size is None or row.rate >= self.wanted.size

    def _eligible(self, rows: dict[Prefix, Measurement]) -> list[Prefix]:
        """Return the orders that may be chosen: those of the wanted size or, if sizes differ, of the smallest."""
        rates = [row.rate for row in rows.values()]
        if self.wanted.size is not None:
            self.among = f"with a compression rate of at least {self.wanted.size:g}"
            found = [order for order, row in rows.items() if self._reaches(row)]
            if not found:
                raise InputError(f"{self.wanted.size:g}", f"at most {max(rates):.4f}, the largest there is", "size")
            return found
        if self.orderings.alike or max(rates) - min(rates) <= SAME_SIZE:
            return list(rows)
        self.among = f"of the largest compression rate ({max(rates):.1%})"
        note = (
            f"compression rates differ, from {min(rates):.1%} to {max(rates):.1%}: chosen is the best of the largest "
            "rate; plan.pareto has the best of each, and size= takes another"
        )
        self.notes += [note] if note not in self.notes else []
        return [order for order, row in rows.items() if row.rate >= max(rates) - SAME_SIZE]

    # ------------------------------------------------------------------------------------ how far apart

    def _compare(
        self, ranking: list[Prefix], rows: dict[Prefix, Measurement], race: Race, digests: dict[Prefix, str]
    ) -> None:
        """Set in the rows how far the other orders are behind the best, and note how certain that is."""
        best, others = ranking[0], [order for order in ranking[1:] if order in digests]
        for order in others:
            rows[order] = replace(rows[order], behind=race.behind(digests[order], digests[best]))
        if stopped := [rows[order] for order in others if rows[order].note]:
            counts = sorted({one.parts for one in stopped if one.parts is not None})
            self.notes.append(
                f"{len(stopped)} of the {len(others) + 1} evaluated orders were stopped after "
                f"{' or '.join(map(str, counts))} of {race.parts.total} parts; the values shown of them are estimates"
            )
        rivals = [rows[order] for order in others if rows[order].rate >= rows[best].rate - SAME_SIZE]
        if not rivals or rivals[0].behind is None:
            return
        (low, high), nearest = rivals[0].behind, rivals[0]
        within = sum(one.behind is not None and one.behind[0] <= 0 for one in rivals)
        difference = "are apart by more than the interval" if low > 0 else "differ by less than the interval"
        more = f"; {within} orders are within theirs of the best" if within > 1 else ""
        self.notes.append(
            f"the best two {difference}: {nearest.text} is behind by {low:.3g} to {high:.3g} in "
            f"{race.name(next(iter(nearest.metrics)))} at {100 * race.confidence:.6g} %{more}"
        )

    # ------------------------------------------------------------------------------------ an order for each layer

    def _by_layer(
        self, own: dict[str, Prefix], chosen: Prefix, best: Measurement, parts: Parts | None, lower: bool
    ) -> LayerOrders:
        """Measure each layer under the order that is best for it alone, and use these orders only if that is better."""
        bench, orderings = self.bench, self.orderings
        places = {name: own.get(name, chosen) for name in bench.layer_names()}
        orders = {name: orderings.order(place) for name, place in places.items()}
        state = bench.apply_each(orders)
        row = measure(None, bench, state, evaluated=parts is None)
        if parts is not None:
            row = replace(row, metrics=parts.whole(bench.digest(state), lambda: state))
        self.kernel_runs += sum(map(len, orders.values()))
        least = best.rate - SAME_SIZE if self.wanted.size is None and not orderings.alike else self.wanted.size
        small = least is None or row.rate >= least
        if small and ranked([best, row], self.loss, next(iter(row.metrics), None), lower)[0] is row:
            return LayerOrders({name: orders[name] for name, place in places.items() if place != chosen}, row)
        self.notes.append("an order for each layer is no better than one for all, so there is one for all")
        return LayerOrders({}, row)
