"""The search: test, ask, merge and drop what is proved, measure the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from itertools import combinations
from math import lcm
from typing import Any

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope, dominates, equal
from compcomp.language.layer import LayerState
from compcomp.language.loss import loss_named
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.ask import Asker, Prover, decide
from compcomp.ordering.dag import Orderings, Prefix
from compcomp.ordering.measure import Bench, Measurement, measured, ranked
from compcomp.ordering.plan import Plan
from compcomp.ordering.screen import COLUMNS, ENTRIES, Screen, Sketch, Values, alike, no_worse, small_shape
from compcomp.ordering.store import Store

LARGEST = 8
"""Techniques an order may have."""
SCREENED = 700
"""Applications on generated layers that are spent on finding candidates; whole levels of prefixes at a time."""
CANDIDATES = 400
"""Claims about complete orders, and about prefixes of each length, that are asked at most."""
ANY, ONE_BY_FOUR = Scope.of("any"), Scope.of("1x4")
RULES = ("rule",)
"""What candidates are asked of: a search for counterexamples is behind them already."""
BOUNDED_SECONDS = 10.0

Notify = Callable[[dict[str, Any]], None]
"""Told how far a search is: ``phase`` ("screen", "prove" or "measure"), ``done``, ``total``, ``text``."""


def search(
    techniques: Sequence[Technique],
    loss: str = "output_l2",
    bench: Bench | None = None,
    *,
    prover: Prover = decide,
    executor: Executor | None = None,
    store: Store | None = None,
    notify: Notify = lambda event: None,
    seed: int = 0,
) -> Plan:
    """Find the best order of 1 to 8 techniques (the same one may occur twice).

    Without a bench, orders that no proof excludes are ranked by their mean loss on generated layers. Raises
    InputError when there are too few or too many techniques, or when they fit no common layer.
    """
    if not 1 <= len(techniques) <= LARGEST:
        raise InputError(f"{len(techniques)} techniques", f"1 to {LARGEST}", "techniques")
    return _Search(techniques, loss, bench, Asker(prover, executor=executor, store=store), notify, seed).run()


class _Search:
    """One search on its way."""

    def __init__(
        self,
        techniques: Sequence[Technique],
        loss: str,
        bench: Bench | None,
        asker: Asker,
        notify: Notify,
        seed: int,
    ) -> None:
        self.bench, self.asker, self.notify = bench, asker, notify
        self.loss = loss_named(loss)
        self.orderings = Orderings(techniques, loss, None if bench is None else bench.shapes())
        self.seconds = {"screen": 0.0, "prove": 0.0, "measure": 0.0}
        self.pairs: list[Verdict] = []
        self.others: list[Verdict] = []
        self.notes: list[str] = []
        self.losses: dict[Prefix, Values] = {}
        # Fewer and smaller layers tell false claims; to rank orders, ranks should leave something to lose.
        shape = small_shape(self.orderings.techniques, 8 * ENTRIES if bench is None else ENTRIES)
        if shape is None and bench is None:
            raise InputError(
                f"techniques that fit no common layer of at most {COLUMNS} inputs",
                "techniques with a common layer, or a model to measure on",
                "techniques",
            )
        slow = bench is not None and (shape is None or shape[1] > COLUMNS // 4)
        self.screen = None if slow or shape is None else Screen(self.orderings, self.loss, shape, seed)

    def run(self) -> Plan:
        start = time.monotonic()
        self.ask_pairs()
        self.screen_orders()
        self.ask_dominance()
        measurements, dense, done = self.measure()
        self.seconds["total"] = time.monotonic() - start
        return self.plan(measurements, dense, done)

    # ------------------------------------------------------------------------------------ asking

    def ask(self, claims: Sequence[Claim], scope: Scope, text: str, **options: Any) -> list[Verdict]:
        """Verdicts of claims at a scope, with progress."""
        done = 0

        def answered(_: Verdict) -> None:
            nonlocal done
            done += 1
            self.notify({"phase": "prove", "done": done, "total": len(claims), "text": text})

        if claims:
            self.notify({"phase": "prove", "done": 0, "total": len(claims), "text": text})
        with self.timed("prove"):
            return self.asker.ask(claims, scope, options, answered)

    def ask_pairs(self) -> None:
        """Whether it matters which of two techniques comes first: each pair, both ways."""
        pairs = [
            (first, second)
            for one, other in combinations(self.orderings.techniques, 2)
            for first, second in ((one, other), (other, one))
        ]
        claims = [dominates(a >> b, b >> a, loss=self.loss.name) for a, b in pairs]
        self.pairs = self.ask(claims, ANY, "pairs")
        for verdict in self.pairs:
            self.orderings.drop(verdict)
        smaller: dict[Scope, list[Claim]] = {}
        for verdict, pair in zip(self.pairs, pairs, strict=True):
            if verdict.status is Status.UNKNOWN and (scope := self.small_scope(pair)) is not None:
                smaller.setdefault(scope, []).append(verdict.claim)
        for scope, undecided in smaller.items():
            found = self.ask(undecided, scope, f"pairs at {scope.describe()}", timeout=BOUNDED_SECONDS)
            self.pairs += [verdict for verdict in found if verdict.status is not Status.UNKNOWN]
            for verdict in found:
                self.orderings.drop(verdict)

    def small_scope(self, pair: tuple[Technique, Technique]) -> Scope | None:
        """A shape for a bounded proof where one is likely: selections and maps, a loss that adds over weights."""
        steps = [step for technique in pair for step in technique.steps()]
        if self.loss.element is None or not all(technique.steps() for technique in pair):
            return None
        return ONE_BY_FOUR if 4 % lcm(*(step.partition.size or 1 for step in steps)) == 0 else None

    # ------------------------------------------------------------------------------------ prefixes

    def screen_orders(self) -> None:
        """Run prefixes level by level on generated layers, asking after each level which are equal.

        What is merged is not continued. Where a level would take too many applications it is left out, and
        so are those below it: fewer claims are asked then, and more is measured. Without a bench the orders
        still need their losses; they are found depth first, so that few states are kept.
        """
        if self.orderings.total == 1 and self.bench is not None:
            return
        if self.screen is None:
            self.notes.append("too wide for generated layers: only claims about pairs were asked")
            return
        frontier: dict[Prefix, LayerState] = {(): self.screen.start()}
        for level in range(1, self.orderings.length + 1):
            children = sum(len(self.orderings.children(prefix)) for prefix in frontier)
            if self.screen.applications + children > SCREENED:
                self.notes.append(
                    f"claims about orders longer than {level - 1} techniques were not looked for: there are too many"
                )
                if self.bench is None:
                    self.losses_below(frontier)
                return
            frontier = self.next_level(frontier, last=level == self.orderings.length)
        self.losses = {p: values for p, values in self.losses.items() if self.orderings.representative(p) == p}

    def next_level(self, frontier: dict[Prefix, LayerState], *, last: bool) -> dict[Prefix, LayerState]:
        """Prefixes one longer that stand for themselves, and their states."""
        assert self.screen is not None
        sketches: dict[Prefix, Sketch] = {}
        longer: dict[Prefix, LayerState] = {}
        with self.timed("screen"):
            while frontier:
                prefix, state = frontier.popitem()
                for child in self.orderings.children(prefix):
                    after = self.screen.apply(child[-1], state)
                    sketches[child] = self.screen.sketch(after)
                    if last:
                        self.losses[child] = self.screen.losses(after)
                    else:
                        longer[child] = after
                    self.screened()
        self.ask_equal(alike(sketches))
        return {p: s for p, s in longer.items() if self.orderings.representative(p) == p}

    def ask_equal(self, candidates: list[tuple[Prefix, Prefix]]) -> None:
        """Ask which prefixes are equal, in rounds: a pair that earlier rounds have merged is not asked."""
        asked = 0
        while candidates and asked < CANDIDATES:
            turn, later, busy = list[tuple[Prefix, Prefix]](), list[tuple[Prefix, Prefix]](), set[Prefix]()
            for first, second in candidates:
                if self.orderings.representative(first) == self.orderings.representative(second):
                    continue
                if second in busy:
                    later.append((first, second))
                else:
                    busy.add(second)
                    turn.append((first, second))
            turn = turn[: CANDIDATES - asked]
            claims = [equal(self.orderings.order(a), self.orderings.order(b)) for a, b in turn]
            for verdict in self.ask(claims, ANY, "equal prefixes", stages=RULES):
                self.orderings.merge(verdict)
                self.others.append(verdict)
            asked, candidates = asked + len(turn), later

    def losses_below(self, frontier: dict[Prefix, LayerState]) -> None:
        """Losses of all complete orders from these prefixes on."""
        assert self.screen is not None
        stack = sorted(frontier.items(), key=lambda item: item[0], reverse=True)
        frontier.clear()
        with self.timed("screen"):
            while stack:
                prefix, state = stack.pop()
                if len(prefix) == self.orderings.length:
                    self.losses[prefix] = self.screen.losses(state)
                for child in reversed(self.orderings.children(prefix)):
                    stack.append((child, self.screen.apply(child[-1], state)))
                    self.screened()

    def screened(self) -> None:
        assert self.screen is not None
        total = self.orderings.full_tree if self.bench is None else min(self.orderings.full_tree, SCREENED)
        done = min(self.screen.applications, total)
        self.notify({"phase": "screen", "done": done, "total": total, "text": "generated layers"})

    # ------------------------------------------------------------------------------------ complete orders

    def ask_dominance(self) -> None:
        """Ask which complete orders never lose more than another, in rounds, until each is dropped or all is asked.

        Every round asks, for each order that still stays, about the next of those that lost no more on any
        generated layer. What already follows is not asked.
        """
        if len(self.losses) > CANDIDATES:
            return
        candidates = {order: iter(better) for order, better in no_worse(self.losses).items()}
        asked = 0
        while candidates and asked < CANDIDATES:
            turn = []
            dropped = self.orderings.dropped()
            for order in list(candidates):
                following = None if order in dropped else self.next_open(order, candidates[order])
                if following is None:
                    del candidates[order]
                else:
                    turn.append((following, order))
            turn = turn[: CANDIDATES - asked]
            claims = [dominates(self.orderings.order(a), self.orderings.order(b), loss=self.loss.name) for a, b in turn]
            for verdict in self.ask(claims, ANY, "complete orders", stages=RULES):
                self.orderings.drop(verdict)
                self.others.append(verdict)
            asked += len(turn)

    def next_open(self, order: Prefix, better: Iterator[Prefix]) -> Prefix | None:
        return next((one for one in better if not self.orderings.dominated(one, order)), None)

    # ------------------------------------------------------------------------------------ measuring

    def measure(self) -> tuple[list[Measurement], dict[str, float], int]:
        """Measurements of the orders that stay, best first; the dense metrics; applications done."""
        staying = list(self.orderings.staying())
        if self.bench is None:
            assert self.screen is not None
            if not self.losses:
                self.losses_below({(): self.screen.start()})
            rows = [self.on_generated(order) for order in staying]
            return ranked(rows, self.loss.name, None, True), {}, self.screen.applications
        done, total = 0, len({order[:k] for order in staying for k in range(1, len(order) + 1)})

        def applied(prefix: Prefix) -> None:
            nonlocal done
            done += 1
            self.notify({"phase": "measure", "done": done, "total": total, "text": self.orderings.text(prefix)})

        self.notify({"phase": "measure", "done": 0, "total": total, "text": "dense"})
        with self.timed("measure"):
            dense = dict(self.bench.evaluate(self.bench.start()))
            rows = [row for _, row in measured(self.orderings, self.bench, staying, applied)]
        metric = next(iter(dense), None)
        lower = metric is None or self.bench.lower_is_better(metric)
        return ranked(rows, self.loss.name, metric, lower), dense, done

    def on_generated(self, order: Prefix) -> Measurement:
        return {
            "order": self.orderings.text(order),
            "metrics": {},
            "losses": {self.loss.name: float(self.losses[order].mean())},
            "compression_rate": None,
        }

    def plan(self, measurements: list[Measurement], dense: dict[str, float], done: int) -> Plan:
        best = measurements[0]
        chosen = next(p for p in self.orderings.staying() if self.orderings.text(p) == best["order"])
        listed = {id(verdict) for verdict in self.pairs}
        decided = [v for v in self.others if v.status is not Status.UNKNOWN and id(v) not in listed]
        everything = self.asker.verdicts
        proved, refuted = sum(v.proved for v in everything), sum(v.refuted for v in everything)
        orders = self.orderings.counted()
        if self.bench is None:
            self.notes.append(
                f"{self.loss.name} is a mean over {self.screen.layers if self.screen else 0} generated layers, "
                "relative to dropping every weight"
            )
        return Plan(
            order=self.orderings.order(chosen),
            optimality="proved" if orders["measured"] == 1 else "measured",
            orders=orders,
            verdicts=self.pairs + decided,
            claims={
                "asked": self.asker.asked,
                "reused": self.asker.reused,
                "proved": proved,
                "refuted": refuted,
                "undecided": len(everything) - proved - refuted,
            },
            measurements=measurements,
            dense=dense,
            best=best,
            worst=measurements[-1],
            compression_rate=best["compression_rate"],
            loss=self.loss.name,
            metric=next(iter(dense), None),
            measured_on="generated layers" if self.bench is None else "model",
            applications={"done": done, "full_tree": self.orderings.full_tree},
            seconds={phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            orderings=self.orderings,
            notes=self.notes,
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - start
