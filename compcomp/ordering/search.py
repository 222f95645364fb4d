"""The search: test, ask, merge and drop what is proved, measure the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from itertools import combinations
from math import ceil, lcm
from typing import TYPE_CHECKING, Any

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope, dominates, keeps, same_state
from compcomp.language.loss import loss_named
from compcomp.language.named import sources_of
from compcomp.language.size import no_larger
from compcomp.language.steps import Selection
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.layers.batches import stack
from compcomp.layers.state import Format, LayerState
from compcomp.ordering.ask import Asker, Decide
from compcomp.ordering.conditional import CLAIM_SECONDS, TECHNIQUES, conclusion, conditional
from compcomp.ordering.dag import Orderings
from compcomp.ordering.explore import Explored, Explorer
from compcomp.ordering.measure import Bench, Measured, Measurement, Tree, fronts, measurement, pareto, ranked
from compcomp.ordering.parts import CONFIDENCE, SAME_SIZE, Kept, Parts, Race
from compcomp.ordering.plan import Plan
from compcomp.ordering.screen import (
    COLUMNS,
    ENTRIES,
    SLOW,
    Screen,
    Sketch,
    Values,
    alike,
    no_worse,
    seconds_on,
    small_shape,
)
from compcomp.ordering.space import GRANULARITIES, Prefix, Slot, Space
from compcomp.ordering.store import Store

if TYPE_CHECKING:
    from compcomp.proving.prove import Prover

LARGEST = 8
"""Techniques an order may have."""
SCREENED = 700
"""Applications on generated layers that are spent on finding candidates; whole levels of prefixes at a time."""
SCREEN_SECONDS = 60.0
"""Seconds for the same."""
CANDIDATES = 400
"""Claims about complete orders, and about prefixes of each length, that are asked at most."""
EVALUATED = 128
"""Orders that are measured to the end, and put to the user's ``evaluate``, where more stay: those of least loss."""
RANKED = 8
"""Orders that are measured to the end without an ``evaluate``, where more stay."""
ANY, ONE_BY_FOUR = Scope.of("any"), Scope.of("1x4")
RULES = ("rule",)
"""What candidates are asked of: a search for counterexamples is behind them already."""
BOUNDED_SECONDS = 10.0

Notify = Callable[[dict[str, Any]], None]
"""Told how far a search is: ``phase`` ("screen", "prove" or "measure"), ``done``, ``total``, ``text``."""


def search(
    techniques: Sequence[Technique | Slot],
    loss: str = "output_l2",
    bench: Bench | None = None,
    *,
    before: Iterable[tuple[Technique, Technique]] = (),
    evaluations: int = EVALUATED,
    granularity: str = "model",
    size: float | None = None,
    confidence: float | None = CONFIDENCE,
    prover: Prover | Decide | None = None,
    executor: Executor | None = None,
    store: Store | None = None,
    notify: Notify = lambda event: None,
    seed: int = 0,
) -> Plan:
    """Find the best order of 1 to 8 techniques (the same one may occur twice).

    Without a bench, orders that no proof excludes are ranked by their mean loss on generated layers. ``size``: the
    compression rate that the order has to reach. ``confidence``: of the race that stops measuring what cannot win,
    None for none. ``prover``: decides claims, a :class:`compcomp.proving.prove.Prover` or a function of claim, scope
    and options; None is the prover that this process shares. Raises InputError when there are too few or too many
    techniques, when they fit no common layer, or when no order reaches the size.
    """
    if size is not None and bench is None:
        raise InputError("a size without a model", "a model to measure sizes on", "size")
    if not 1 <= len(techniques) <= LARGEST:
        raise InputError(f"{len(techniques)} techniques", f"1 to {LARGEST}", "techniques")
    if granularity not in GRANULARITIES:
        raise InputError(repr(granularity)[:60], ", ".join(map(repr, GRANULARITIES)), "granularity")
    by_layer = granularity == "layer"
    if by_layer and bench is None:
        raise InputError("granularity='layer' without a model", "a model", "granularity")
    if whole := [technique for technique in Space(techniques).techniques if technique.whole_model]:
        where, given = str(whole[0]), "a technique that acts on the whole model"
        if bench is None:
            raise InputError(f"{given}, without a model", "a model to measure on", where)
        if by_layer:
            raise InputError(f"{given} with granularity='layer'", "granularity='model'", where)
    asker = Asker(prover, executor=executor, store=store)
    return _Search(techniques, loss, bench, asker, notify, seed, before, evaluations, by_layer, size, confidence).run()


class _Search:
    """One search on its way."""

    def __init__(
        self,
        techniques: Sequence[Technique | Slot],
        loss: str,
        bench: Bench | None,
        asker: Asker,
        notify: Notify,
        seed: int,
        before: Iterable[tuple[Technique, Technique]],
        evaluations: int,
        by_layer: bool,
        size: float | None,
        confidence: float | None,
    ) -> None:
        self.bench, self.asker, self.notify, self.evaluations = bench, asker, notify, evaluations
        self.size, self.confidence, self.lower = size, confidence, True
        self.chosen, self.among = list[str](), ""  # the orders that may be taken, and what tells them, in words
        self.loss = loss_named(loss)
        self.orderings = Orderings(techniques, loss, None if bench is None else bench.shapes(), before=before)
        self.seconds = {"screen": 0.0, "prove": 0.0, "measure": 0.0}
        self.pairs: list[Verdict] = []
        self.others: list[Verdict] = []
        self.notes: list[str] = []
        self.left, self.by_layer = 0, by_layer
        self.own: dict[str, Prefix] = {}
        self.own_measured: Measurement | None = None
        self.layer_orders: dict[str, str] = {}
        self.conditional: list[dict[str, Any]] = []
        self.applied = {"done": 0, "full_tree": self.orderings.full_tree, "kernel_runs": 0}
        self.losses: dict[Prefix, Values] = {}  # by word
        self.states: dict[Prefix, LayerState] = {}
        self.sketches: dict[Prefix, Sketch] = {}
        self.formats: dict[Prefix, Format] = {}
        self.compared: dict[tuple[Prefix, Prefix], bool] = {}
        shape = small_shape(self.orderings.techniques, ENTRIES)
        if shape is None and bench is None:
            raise InputError(
                f"techniques that fit no common layer of at most {COLUMNS} inputs",
                "techniques with a common layer, or a model to measure on",
                "techniques",
            )
        slow = shape is None or shape[1] > COLUMNS // 4
        seconds = 0.0 if slow or shape is None else seconds_on(self.orderings.techniques, shape[1])
        if bench is None and shape is not None and seconds > 10 * SLOW:
            raise InputError(
                f"techniques that take long on layers of {shape[1]} inputs, the least that all fit",
                "smaller groups, or a model to measure on",
                "techniques",
            )
        slow = slow or seconds > SLOW
        self.screen = None if slow or shape is None else Screen(self.orderings, self.loss, shape, seed)
        self.seed = seed
        self.whole = any(technique.whole_model for technique in self.orderings.techniques)

    def run(self) -> Plan:
        start = time.monotonic()
        if not self.whole:
            self.orderings.stored_alike = self.stored_alike
            if self.bench is not None:
                self.orderings.no_larger = self.no_larger
            self.ask_pairs()
            self.ask_resting()
            self.ask_words()
            self.screen_orders()
            self.ask_dominance()
        self.left = sum(1 for _ in self.orderings.staying())
        if not self.whole:
            self.ask_conditional()
        elif self.left > self.evaluations:
            raise InputError(
                f"{self.left} orders with a technique that acts on the whole model",
                f"at most {self.evaluations} (evaluations), as each is measured; or compcomp.apply of one order",
                "techniques",
            )
        else:
            self.notes.append("a technique acts on the whole model: no claim was asked, every order was measured")
        measurements, dense = self.measure()
        self.seconds["total"] = time.monotonic() - start
        return self.plan(measurements, dense)

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
        known, home = self.orderings.techniques, self.orderings.home
        pairs = [
            (known[first], known[second])
            for one, other in combinations(range(len(known)), 2)
            if home[one] != home[other]
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

    # ------------------------------------------------------------------------------------ words

    def ask_resting(self) -> None:
        """Which techniques change nothing on the dense layer (law 1), and never lose anything at the end (law 3)."""
        known = self.orderings.techniques
        self.ask_equal([same_state(t, Order()) for t in known if t.promises().rests], "what changes nothing at first")
        candidates = [
            technique
            for step, technique in enumerate(known)
            if self.orderings.after_word((), step)[0] == () and self.loss.name in technique.promises().never_increases
        ]
        claims = [
            dominates(last >> technique, last, loss=self.loss.name)
            for technique in candidates
            for last in known
            if self.orderings.length > 1
        ]
        for verdict in self.ask(claims, ANY, "what may come last", stages=RULES):
            self.orderings.improves_last(verdict)
            self.others.append(verdict)

    def ask_words(self) -> None:
        """Which techniques absorb each other or may change places: law 1.

        From every state if that is proved, so that one answer serves inside every order.
        """
        orderings, known = self.orderings, self.orderings.techniques
        places = range(len(known))
        pairs = [(a, b) for a in places for b in places if a == b or orderings.home[a] != orderings.home[b]]
        pairs = [p for p in pairs if p[0] != p[1] or orderings.counts[orderings.home[p[0]]] > 1]
        claims: list[Claim] = []
        for a, b in pairs:
            sides = [(a,), (b,), *([(b, a)] if b < a else [])]
            claims += [
                same_state(known[a] >> known[b], orderings.order(side)) for side in sides if self.may_be(side, (a, b))
            ]
        self.ask_equal(claims, "what absorbs what")
        beside = [x for x in places if known[x].promises().leaves_weight]
        triples = [
            same_state(known[a] >> known[x] >> known[b], known[a] >> known[x])
            for a, b in pairs
            if orderings.after_word((a,), b)[0] == (a,)
            for x in beside
            if x not in (a, b)
        ]
        self.ask_equal(triples, "what absorbs what")

    def may_be(self, one: Prefix, other: Prefix) -> bool:
        """Whether two words may leave the same state: they do on every generated layer."""
        return self.screen is None or self.sketch(one).agrees(self.sketch(other))

    def no_larger(self, better: Prefix, worse: Prefix) -> bool:
        """Whether one order of some techniques takes no more to store than another; False where that is not known."""
        if (better, worse) not in self.compared:
            if self.screen is not None:
                found = no_larger(self.format(better), self.format(worse), self.screen.layers)
            else:  # one selection of a fixed number and one grid: mask and grid stay, whatever comes first
                steps = [step for i in better for step in self.orderings.techniques[i].steps() or (None,)]
                fixed = [isinstance(step, Selection) and step.ties != "all" for step in steps]
                found = None not in steps and sum(fixed) < 2 and len(steps) - sum(fixed) < 2
            self.compared[better, worse] = found
        return self.compared[better, worse]

    def stored_alike(self, one: Prefix, other: Prefix) -> bool:
        """Return True if equal states after two orders are recorded alike, which the generated layers decide.

        Fields and numbers of a format depend on the techniques alone, unless one declares otherwise (`format_varies`).
        A rank as large as the generated layers, or a cut that removes nothing from them, shows nothing of larger ones.
        """
        if self.screen is None or any(t.promises().format_varies for t in self.orderings.techniques):
            return False
        first, second = self.format(one), self.format(other)
        if any(self.saturated(form, self.screen) for form in (first, second)):
            return False
        return no_larger(first, second, self.screen.layers, 0) and no_larger(second, first, self.screen.layers, 0)

    @staticmethod
    def saturated(form: Format, screen: Screen) -> bool:
        """Return True if the generated layers are too small for a rank or a cut of this format to show on them."""
        rank = max(form.rank or 0, 0 if form.factors is None else form.factors.rank)
        kept = () if form.cut is None else (form.cut.rows, form.cut.columns)
        return rank >= min(screen.shape) or (form.cut is not None and all(stack(k, screen.layers).all() for k in kept))

    def format(self, order: Prefix) -> Format:
        """How the generated layers would be stored after this order."""
        path = self.orderings.path(order)
        if path not in self.formats:
            self.formats[path] = self.state(path).format
        return self.formats[path]

    def ask_equal(self, claims: Sequence[Claim], text: str) -> None:
        """Ask equalities of words, and use what is proved."""
        for verdict in self.ask(claims, ANY, text, stages=RULES):
            self.orderings.merge(verdict)
            self.others.append(verdict)

    # ------------------------------------------------------------------------------------ generated layers

    def state(self, word: Prefix) -> LayerState:
        """The generated layers after these techniques."""
        assert self.screen is not None
        if word not in self.states:
            if not word:
                self.states[word] = self.screen.start()
            else:
                before = self.state(word[:-1])
                with self.timed("screen"):
                    self.states[word] = self.screen.apply(word[-1], before)
                self.screened()
        return self.states[word]

    def sketch(self, word: Prefix) -> Sketch:
        """What the state after these techniques has in common with equal ones."""
        assert self.screen is not None
        if word not in self.sketches:
            self.sketches[word] = self.screen.sketch(self.state(word))
        return self.sketches[word]

    def screen_orders(self) -> None:
        """Run words level by level on generated layers, asking after each level which are equal.

        What is merged is not continued. Where a level would take too many applications it is left out, and
        so are those below it: fewer claims are asked then, and more is measured.
        """
        if self.orderings.total == 1 and self.bench is not None:
            return
        if self.screen is None:
            self.notes.append("too wide or too slow for generated layers: only claims about pairs were asked")
            return
        for level in range(1, self.orderings.length + 1):
            words = self.words_at(level)
            more = sum(word not in self.states for word in words)
            each = self.seconds["screen"] / max(1, self.screen.applications)
            if self.screen.applications + more > SCREENED or self.seconds["screen"] + more * each > SCREEN_SECONDS:
                self.notes.append(
                    f"claims about orders longer than {level - 1} techniques were not looked for: there are too many, "
                    "or they take too long"
                )
                self.states.clear()
                return
            self.ask_alike({word: self.sketch(word) for word in words})
        for leaf in self.orderings.leaves():
            word = self.orderings.word(leaf)[0]
            self.losses[word] = self.screen.losses(self.state(word))
            if self.bench is not None:
                self.format(leaf)
        self.states.clear()

    def words_at(self, level: int) -> list[Prefix]:
        """The words of all prefixes of this length."""
        found = (node.word for node in self.orderings.nodes.values() if len(node.prefix) == level)
        return list(dict.fromkeys(found))

    def ask_alike(self, sketches: dict[Prefix, Sketch]) -> None:
        """Ask which words are equal, in rounds: a pair that earlier rounds have merged is not asked."""
        asked, candidates = 0, alike(sketches)
        while candidates and asked < CANDIDATES:
            turn, later, busy = list[tuple[Prefix, Prefix]](), list[tuple[Prefix, Prefix]](), set[Prefix]()
            for first, second in candidates:
                if self.orderings.word(first)[0] == self.orderings.word(second)[0]:
                    continue
                if second in busy:
                    later.append((first, second))
                else:
                    busy.add(second)
                    turn.append((first, second))
            turn = turn[: CANDIDATES - asked]
            self.ask_equal(
                [same_state(self.orderings.order(a), self.orderings.order(b)) for a, b in turn], "equal prefixes"
            )
            asked, candidates = asked + len(turn), later

    def screened(self) -> None:
        assert self.screen is not None
        total = min(self.orderings.full_tree, SCREENED)
        done = min(self.screen.applications, total)
        self.notify({"phase": "screen", "done": done, "total": total, "text": "generated layers"})

    # ------------------------------------------------------------------------------------ complete orders

    def ask_dominance(self) -> None:
        """Ask which complete orders never lose more than another, in rounds, until each is dropped or all is asked.

        Every round asks, for each order that still stays, about the next of those that lost no more on any
        generated layer. What already follows is not asked.
        """
        leaves = {leaf: self.losses.get(self.orderings.word(leaf)[0]) for leaf in self.orderings.leaves()}
        losses = {leaf: values for leaf, values in leaves.items() if values is not None}
        if len(losses) > CANDIDATES or len(losses) < len(leaves):
            return
        candidates = {order: iter(better) for order, better in no_worse(losses).items()}
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

    # ------------------------------------------------------------------------------------ under conditions

    def ask_conditional(self) -> None:
        """Of pairs that are proved neither way: under which conditions they are, and where these hold on the model."""
        known, home = self.orderings.techniques, self.orderings.home
        if self.bench is None or len(known) > TECHNIQUES:
            return
        proved = {(v.claim.left, v.claim.right) for v in self.pairs if v.proved}
        pairs = [
            (known[one], known[other]) for one, other in combinations(range(len(known)), 2) if home[one] != home[other]
        ]
        pairs = [(a, b) for a, b in pairs if not {(a >> b, b >> a), (b >> a, a >> b)} & proved]

        def ask(claim: Claim, scope: Scope) -> Verdict:
            return self.asker.ask([claim], scope, {"stages": RULES, "timeout": CLAIM_SECONDS})[0]

        def told(done: int, total: int, text: str) -> None:
            self.notify({"phase": "prove", "done": done, "total": total, "text": text})

        with self.timed("prove"):
            self.conditional, proofs = conditional(pairs, self.loss, self.bench, ask, self.orderings.held, told)
        self.others += proofs
        self.notes += [conclusion(entry) for entry in self.conditional if entry["contradicted"]]

    def drop_conditional(self, evaluated: bool) -> None:
        """Law 5, where two techniques are all there is. What the user evaluates is dropped for proofs alone."""
        staying = {self.orderings.text(order): order for order in self.orderings.staying()}
        for entry in self.conditional:
            better, worse = staying.get(entry["left"]), staying.get(entry["right"])
            enough = entry["coverage"] == 1 if evaluated else entry["coverage"] > 0
            if (
                enough
                and entry["in_every_layer"]
                and self.orderings.total == 2
                and better is not None
                and worse is not None
                and self.orderings.no_larger(better, worse)
            ):
                because = f"{entry['left']} {conclusion(entry)}; this says nothing of other models"
                self.orderings.under_conditions(worse, better, f"{because} [{entry['claim']}]")
                return

    # ------------------------------------------------------------------------------------ measuring

    def measure(self) -> tuple[list[Measurement], dict[str, float]]:
        """Measurements of the orders that stay, best first, and the dense metrics."""
        with self.timed("measure"):
            return self.on_generated() if self.bench is None else self.on_model(self.bench)

    def on_generated(self) -> tuple[list[Measurement], dict[str, float]]:
        """Mean losses on generated layers, large enough for ranks to leave something to lose; depth first."""
        shape = small_shape(self.orderings.techniques, 8 * ENTRIES)
        assert shape is not None
        screen = Screen(self.orderings, self.loss, shape, self.seed)
        self.notes.append(
            f"{self.loss.name} is a mean over {screen.layers} generated layers, relative to dropping every weight"
        )
        orders = list(self.orderings.staying())
        tree = Tree.of(self.orderings, orders)
        children, ends, means = tree.children(), set(tree.ends), dict[int, float]()
        stack = [(0, screen.start())]
        while stack:
            node, state = stack.pop()
            if node in ends:
                means[node] = float(screen.losses(state).mean())
            for child in reversed(children[node]):
                stack.append((child, screen.apply(tree.steps[child], state)))
                self.told(screen.applications, len(tree.parents) - 1, "generated layers")
        rows: list[Measurement] = [
            {
                "order": self.orderings.text(order),
                "metrics": {},
                "losses": {self.loss.name: means[end]},
                "compression_rate": None,
            }
            for order, end in zip(orders, tree.ends, strict=True)
        ]
        self.applied["done"] = self.applied["kernel_runs"] = screen.applications
        most = max(map(len, orders))
        self.chosen = [row["order"] for row, order in zip(rows, orders, strict=True) if len(order) == most]
        if len(self.chosen) < len(rows):  # an order that leaves out techniques loses less
            self.among = "that leave out no more techniques than they must"
            self.notes.append("sizes are not known without a model: the order is one of those of most techniques")
        return ranked(rows, self.loss.name, None, True, self.chosen), {}

    def on_model(self, bench: Bench) -> tuple[list[Measurement], dict[str, float]]:
        """Few orders are measured on the whole model at once; of many the layer losses come first."""
        staying, rows, layers = list(self.orderings.staying()), dict[Prefix, Measurement](), len(bench.layer_names())
        self.told(0, len(Tree.of(self.orderings, staying).parents) - 1, "dense")
        key = None if self.asker.store is None else bench.fingerprint()
        sources = None if key is None else sources_of(self.orderings.techniques)
        kept = Kept() if sources is None else Kept(self.asker.store, f"{key} {sources} {self.loss.name}")
        parts = Parts(bench, kept) if bench.parts else None
        dense = self.dense(bench, kept, parts)
        self.drop_conditional(bool(dense))
        chosen = staying = list(self.orderings.staying())
        if not self.whole and (not dense or len(staying) > self.evaluations or self.by_layer):  # layers apart
            explorer = Explorer(self.orderings, bench, self.asker.executor, self.asker.store, self.told, self.kept())
            found = explorer.explore(self.evaluations if dense else RANKED, every=self.by_layer)
            staying = list(self.orderings.staying())
            self.orderings.same_on_model({order: found.state(order) for order in staying})
            staying = list(self.orderings.staying())
            rows = {order: self.by_layers(order, found, bench) for order in staying}
            if self.by_layer:
                named = set(self.of_size(list(rows.values())))
                self.own = found.best_by_layer(self.loss.name, [o for o in staying if rows[o]["order"] in named])
            self.applied["kernel_runs"] += found.applications
            chosen = self.survivors(rows) if dense else []
        race = None
        if chosen:
            race = Race(parts, self.confidence, len(chosen)) if parts is not None else None
            measured = Measured(self.orderings, bench, self.told, kept, race)
            measured.measure(chosen)
            rows |= measured.rows
            self.applied["kernel_runs"] += measured.applications * layers
            self.orderings.same_on_model(measured.digests)
        staying = list(self.orderings.staying())
        metric = next(iter(dense), None)
        for row in rows.values():
            if row["metrics"] and (lacking := sorted(dense.keys() ^ row["metrics"].keys())):
                given = f"{lacking[0]!r} for some and not for others"
                raise InputError(given, "the same metrics of every model", f"evaluate of {row['order']}")
        self.lower = metric is None or bench.lower_is_better(metric)
        self.chosen = self.of_size([rows[order] for order in staying])
        ranking = ranked([rows[order] for order in staying], self.loss.name, metric, self.lower, self.chosen)
        if race is not None:
            self.compare(ranking, race, {self.orderings.text(o): digest for o, digest in measured.digests.items()})
        if self.by_layer:
            self.measure_own(bench, ranking[0], parts)
        self.applied["done"] = ceil(self.applied["kernel_runs"] / max(1, layers))
        return ranking, dense

    def kept(self) -> dict[str, list[int]]:
        """The techniques that are proved to keep the mask, or the grid, and those that keep the low-rank term.

        What a layer loses in the end is bounded by what they keep of it: law 4. A map that sets up a grid of its own
        keeps that one, so the grid counts only where it is promised to stay. What changes the basis of the inputs keeps
        nothing here: bounds speak of weights in the basis of the dense layer.
        """
        known = self.orderings.techniques
        plain = [(i, t) for i, t in enumerate(known) if not t.promises().changes_basis]
        found = {"factors": [i for i, t in plain if t.steps() or "factors" in t.promises().keeps]}
        for invariant in ("mask", "grid"):
            able = [i for i, technique in plain if invariant in technique.promises().keeps]
            pairs = [(first, i) for first in known for i in able if first != known[i]]
            claims = [keeps(first >> known[i], invariant) for first, i in pairs]
            verdicts = self.ask(claims, ANY, f"what keeps a {invariant}", stages=RULES)
            lost = {
                i for (_, i), v in zip(pairs, verdicts, strict=True) if v.status in (Status.UNKNOWN, Status.REFUTED)
            }
            held = {i for (_, i), v in zip(pairs, verdicts, strict=True) if self.orderings.covered(v)}
            found[invariant] = sorted(held - lost)
        return found

    def measure_own(self, bench: Bench, best: Measurement, parts: Parts | None) -> None:
        """Measure each layer under the order that is best for it alone, and keep that only where it pays."""
        chosen = next(p for p in self.orderings.staying() if self.orderings.text(p) == best["order"])
        orders = {name: self.orderings.order(self.own.get(name, chosen)) for name in bench.layer_names()}
        state = bench.apply_each(orders)
        row = measurement("an order for each layer", bench, state, evaluated=parts is None)
        if parts is not None:
            row["metrics"] = parts.whole(bench.digest(state), lambda: state)
        self.applied["kernel_runs"] += sum(map(len, orders.values()))
        wanted = best["compression_rate"] - SAME_SIZE if self.size is None and not self.orderings.alike else self.size
        small = wanted is None or row["compression_rate"] >= wanted
        pays = small and ranked([best, row], self.loss.name, next(iter(row["metrics"]), None), self.lower)[0] is row
        self.own_measured = row
        self.layer_orders = {name: str(o) for name, o in orders.items() if pays and str(o) != best["order"]}
        if not pays:
            self.notes.append("an order for each layer is no better than one for all, so there is one for all")

    def dense(self, bench: Bench, kept: Kept, parts: Parts | None) -> dict[str, float]:
        """The user's metrics of the uncompressed model."""
        start = bench.start()
        if parts is not None:
            return parts.whole(bench.digest(start), lambda: start)
        found = kept.get("dense")
        if found is None:
            found = dict(bench.evaluate(start))
            kept.put("dense", found)
        return found

    def survivors(self, rows: dict[Prefix, Measurement]) -> list[Prefix]:
        """The orders that are put to the user's ``evaluate``: those nearest to the front of loss and size."""
        name = self.loss.name
        open_ = sorted(order for order, row in rows.items() if self.size is None or self.reaches(row))
        points = [(rows[order]["compression_rate"], rows[order]["losses"][name]) for order in open_]
        places = dict(zip(open_, fronts(points), strict=True))
        rate = {order: rows[order]["compression_rate"] for order in open_}
        found = sorted(open_, key=lambda order: (places[order], -rate[order], rows[order]["losses"][name], order))
        found = found[: self.evaluations]
        if len(found) < len(rows):
            sizes = max(rate.values(), default=0.0) - min(rate.values(), default=0.0) > SAME_SIZE
            which = f"nearest to the front of {name} and size" if sizes else f"of least {name}"
            self.notes.append(f"evaluated were the {len(found)} orders {which}, out of {len(rows)}")
        return found

    def reaches(self, row: Measurement) -> bool:
        return self.size is None or bool(row["compression_rate"] >= self.size)

    def of_size(self, rows: list[Measurement]) -> list[str]:
        """The orders that may be chosen: of the wanted size, or where techniques differ of the smallest."""
        rates = [row["compression_rate"] for row in rows]
        if self.size is not None:
            self.among = f"with a compression rate of at least {self.size:g}"
            found = [row["order"] for row in rows if self.reaches(row)]
            if not found:
                raise InputError(f"{self.size:g}", f"at most {max(rates):.4f}, the largest there is", "size")
            return found
        if self.orderings.alike or max(rates) - min(rates) <= SAME_SIZE:
            return [row["order"] for row in rows]
        self.among = f"of the largest compression rate ({max(rates):.1%})"
        note = (
            f"compression rates differ, from {min(rates):.1%} to {max(rates):.1%}: chosen is the best of the largest "
            "rate; plan.pareto has the best of each, and size= takes another"
        )
        self.notes += [note] if note not in self.notes else []
        return [row["order"] for row in rows if row["compression_rate"] >= max(rates) - SAME_SIZE]

    def compare(self, ranking: list[Measurement], race: Race, digests: dict[str, str]) -> None:
        """Note how far the other orders are behind the best, and how surely."""
        best, others = ranking[0], [one for one in ranking[1:] if one["order"] in digests]
        for one in others:
            behind = race.behind(digests[one["order"]], digests[best["order"]])
            if behind is not None:
                one["behind"] = behind
        stopped = [one for one in others if "note" in one]
        if stopped:
            counts = sorted({one["parts"] for one in stopped})
            self.notes.append(
                f"{len(stopped)} of the {len(others) + 1} evaluated orders were stopped after "
                f"{' or '.join(map(str, counts))} of {race.parts.total} parts; the values shown of them are estimates"
            )
        rivals = [one for one in others if one["compression_rate"] >= best["compression_rate"] - SAME_SIZE]
        near = [one for one in rivals if "behind" in one]
        if near and near[0] is rivals[0]:
            low, high = near[0]["behind"]
            within = sum(one["behind"][0] <= 0 for one in near)
            said = "are apart by more than the interval" if low > 0 else "differ by less than the interval"
            more = f"; {within} orders are within theirs of the best" if within > 1 else ""
            self.notes.append(
                f"the best two {said}: {near[0]['order']} is behind by {low:.3g} to {high:.3g} in "
                f"{race.name(next(iter(near[0]['metrics'])))} at {100 * race.confidence:.6g} %{more}"
            )

    def by_layers(self, order: Prefix, found: Explored, bench: Bench) -> Measurement:
        """What exploring the layers tells of one order."""
        return {
            "order": self.orderings.text(order),
            "metrics": {},
            "losses": bench.total([found.on(layer, order) for layer in found.places]),
            "compression_rate": bench.rate(found.bits(order)),
        }

    def told(self, done: int, total: int, text: str) -> None:
        self.notify({"phase": "measure", "done": min(done, total), "total": total, "text": text})

    def plan(self, measurements: list[Measurement], dense: dict[str, float]) -> Plan:
        best = measurements[0]
        chosen = next(p for p in self.orderings.staying() if self.orderings.text(p) == best["order"])
        listed = {id(verdict) for verdict in self.pairs}
        decided = [v for v in self.others if v.status is not Status.UNKNOWN and id(v) not in listed]
        everything = self.asker.verdicts
        proved, refuted = sum(v.proved for v in everything), sum(v.refuted for v in everything)
        orders = self.orderings.counted()
        taken = self.own_measured if self.layer_orders else None
        return Plan(
            order=self.orderings.order(chosen),
            optimality="proved" if self.left == 1 else "measured",
            orders=orders,
            left=self.left,
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
            worst=next(one for one in reversed(measurements) if one["order"] in set(self.chosen)),
            compression_rate=(taken or best)["compression_rate"],
            loss=self.loss.name,
            metric=next(iter(dense), None),
            measured_on="generated layers" if self.bench is None else "model",
            applications=self.applied,
            seconds={phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            orderings=self.orderings,
            notes=self.notes,
            layer_orders=self.layer_orders,
            by_layer=self.own_measured,
            conditional=self.conditional,
            lower=self.lower,
            among=self.among,
            pareto=pareto(measurements, self.loss.name, next(iter(dense), None), self.lower),
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - start
