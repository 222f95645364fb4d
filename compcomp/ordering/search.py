"""Search the orders: ask claims, merge and drop orders by proof, and measure the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from compcomp.bench import Bench, Tried
from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.loss import loss_named
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.ask import FAILED, Asker, Decide, decided_by
from compcomp.ordering.dag import Orderings
from compcomp.ordering.estimate import Estimate, estimate
from compcomp.ordering.generated import Generated
from compcomp.ordering.measurement import Ranking, pareto
from compcomp.ordering.on_model import EVALUATED, OnModel, Wanted
from compcomp.ordering.parts import CONFIDENCE
from compcomp.ordering.plan import INTERRUPTED, PlanData
from compcomp.ordering.progress import Progress
from compcomp.ordering.questions import Questions
from compcomp.ordering.space import GRANULARITIES, Slot, Space
from compcomp.ordering.store import Store

if TYPE_CHECKING:
    from compcomp.proving.prove import Prover

LOG = logging.getLogger("compcomp")
LARGEST = 8
"""The most techniques an order may have."""
HURRIED = 60.0
"""The seconds after which an estimate decides no further claim. Its counts are then upper bounds."""


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
    progress: Progress | None = None,
    seed: int = 0,
) -> PlanData:
    """Find the best order of 1 to 8 techniques. The same technique may occur twice.

    Without a bench, the orders that no proof excludes are ranked by their mean loss on generated layers.

    Args:
        techniques: Techniques, or slots with alternatives or optional techniques.
        loss: The name of the loss that orders are compared by.
        bench: Measures orders on a model. None ranks them on generated layers.
        before: Pairs of techniques. In each, the first comes before the second if both occur.
        evaluations: The most orders to pass to the user's ``evaluate``.
        granularity: "model" for one order for all layers, "layer" for an order for each layer if that is better.
        size: The compression rate that the order has to reach, None for any.
        confidence: The confidence of the race that stops measuring orders that cannot win. None measures all orders on
            all parts of the data.
        prover: Decides claims: a :class:`compcomp.proving.prove.Prover`, or a function of claim, scope and options.
            None is the prover that this process shares.
        executor: Decides claims, explores layers and measures models elsewhere. None uses this process, or a pool of
            processes for many layers.
        store: Keeps verdicts and measurements between runs.
        progress: Reports the progress of the search.
        seed: The seed of the generated layers.

    Raises:
        InputError: There are too few or too many techniques, they fit no common layer, or no order reaches the size.
    """
    _check(techniques, bench, granularity, size)
    asker, progress = Asker(prover, executor=executor, store=store), progress or Progress()
    orderings = Orderings(techniques, loss, None if bench is None else bench.shapes(), before=before)
    wanted = Wanted(evaluations, granularity == "layer", size, confidence)
    return _Search(orderings, bench, asker, progress, wanted, seed).run()


def preview(
    techniques: Sequence[Technique | Slot],
    loss: str = "output_l2",
    bench: Tried | None = None,
    *,
    before: Iterable[tuple[Technique, Technique]] = (),
    evaluations: int = EVALUATED,
    granularity: str = "model",
    size: float | None = None,
    confidence: float | None = CONFIDENCE,
    prover: Prover | Decide | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
    evaluated: bool = False,
) -> Estimate:
    """Estimate what :func:`search` would do with these arguments. Claims are decided, as orders are left by them.

    Args:
        techniques: As for a search, like all arguments that are not named here.
        loss: The loss.
        bench: The bench.
        before: Pairs of techniques.
        evaluations: The most orders to evaluate.
        granularity: "model" or "layer".
        size: The compression rate to reach.
        confidence: The confidence of the race.
        prover: Decides claims.
        store: Keeps verdicts. A search with the same store does not ask these claims again.
        progress: Reports progress.
        evaluated: True if the user evaluates models.
    """
    _check(techniques, bench, granularity, size)
    hurried = _Hurried(decided_by(prover), HURRIED)
    asker, progress = Asker(hurried, store=store), progress or Progress()
    orderings = Orderings(techniques, loss, None if bench is None else bench.shapes(), before=before)
    wanted = Wanted(evaluations, granularity == "layer", size, confidence)
    made = _Search(orderings, bench, asker, progress, wanted, 0)
    made.prove()
    notes = []
    if bench is not None and made.questions.unproved_pairs():
        notes.append("looking for conditions under which a pair is proved, and checking them, is not estimated")
    if hurried.missed:
        notes.append(f"{hurried.missed} claims were not decided within {HURRIED:g} s: fewer orders may be left")
    return estimate(orderings, bench, wanted, evaluated=evaluated, notes=notes)


class _Hurried:
    """A prover that stops deciding claims after some seconds. ``missed``: the claims that it has left undecided."""

    def __init__(self, decide: Decide, seconds: float) -> None:
        self.decide, self.until, self.missed, self.seconds = decide, time.monotonic() + seconds, 0, seconds

    def __call__(self, claim: Claim, scope: Scope, options: dict[str, Any]) -> Verdict:
        if time.monotonic() < self.until:
            return self.decide(claim, scope, options)
        self.missed += 1
        return Verdict(claim, scope, Status.UNKNOWN, reach=scope.describe(), cause=f"{FAILED}: no time for an estimate")


def _check(techniques: Sequence[Technique | Slot], bench: Bench | None, granularity: str, size: float | None) -> None:
    """Raise InputError if the arguments of a search do not fit together."""
    if size is not None and bench is None:
        raise InputError("a size without a model", "a model to measure sizes on", "size")
    if not 1 <= len(techniques) <= LARGEST:
        raise InputError(f"{len(techniques)} techniques", f"1 to {LARGEST}", "techniques")
    if granularity not in GRANULARITIES:
        raise InputError(repr(granularity)[:60], ", ".join(map(repr, GRANULARITIES)), "granularity")
    if granularity == "layer" and bench is None:
        raise InputError("granularity='layer' without a model", "a model", "granularity")
    if whole := [technique for technique in Space(techniques).techniques if technique.whole_model]:
        where, given = str(whole[0]), "a technique that acts on the whole model"
        if bench is None:
            raise InputError(f"{given}, without a model", "a model to measure on", where)
        if granularity == "layer":
            raise InputError(f"{given} with granularity='layer'", "granularity='model'", where)


class _Search:
    """Hold the state of one search."""

    def __init__(
        self,
        orderings: Orderings,
        bench: Bench | None,
        asker: Asker,
        progress: Progress,
        wanted: Wanted,
        seed: int,
    ) -> None:
        self.orderings, self.bench, self.asker = orderings, bench, asker
        self.progress, self.wanted = progress, wanted
        self.loss = loss_named(orderings.loss)
        self.notes: list[str] = []
        self.generated = Generated(orderings, self.loss, progress, seed, needed=bench is None)
        self.questions = Questions(orderings, self.generated, asker, self.loss, progress, self.notes)
        self.whole = any(technique.whole_model for technique in orderings.techniques)

    def run(self) -> PlanData:
        """Ask, measure, and return the plan."""
        start = time.monotonic()
        left = self.prove()
        if not self.whole:
            if self.bench is not None:
                self.questions.ask_conditional(self.bench)
        elif left > self.wanted.evaluations:
            raise InputError(
                f"{left} orders with a technique that acts on the whole model",
                f"at most {self.wanted.evaluations} (evaluations), as each is measured; or compcomp.apply of one order",
                "techniques",
            )
        else:
            self.notes.append("a technique acts on the whole model: no claim was asked, every order was measured")
        with self.progress.timed("measure"):
            ranking = self.generated.ranking(self.notes) if self.bench is None else self.on_model(self.bench)
        self.progress.seconds["total"] = time.monotonic() - start
        return self.plan(ranking, left)

    def prove(self) -> int:
        """Ask the claims that need no model. Return the number of orders that no proof excludes."""
        start, names = time.monotonic(), ", ".join(map(str, self.orderings.techniques))
        LOG.info("%d orders of %s, compared by %s", self.orderings.total, names, self.loss.name)
        if not self.whole:
            self.orderings.stored_alike = self.generated.stored_alike
            if self.bench is not None:
                self.orderings.no_larger = self.generated.no_larger
            self.questions.ask_all(self.bench is not None)
            self.progress.end("screen", "generated layers")
        left = sum(1 for _ in self.orderings.staying())
        asked, reused = self.asker.asked, self.asker.reused
        spent = time.monotonic() - start
        LOG.info("proofs: %d claims asked, %d reused, %d orders left in %.3g s", asked, reused, left, spent)
        return left

    def on_model(self, bench: Bench) -> Ranking:
        """Rank the staying orders on the model."""
        measuring = OnModel(
            self.orderings,
            bench,
            self.wanted,
            self.progress,
            self.notes,
            store=self.asker.store,
            executor=self.asker.executor,
            keeps=self.questions.ask_keeps,
            drop=self.questions.drop_conditional,
        )
        return measuring.ranking()

    def plan(self, ranking: Ranking, left: int) -> PlanData:
        """Return the plan for these measurements.

        Args:
            ranking: The measured orders, best first.
            left: How many orders the proofs left over.
        """
        questions, rows = self.questions, list(ranking.rows)
        listed = {id(verdict) for verdict in questions.pairs}
        decided = [v for v in questions.others if v.status is not Status.UNKNOWN and id(v) not in listed]
        everything = self.asker.verdicts
        proved, refuted = sum(v.proved for v in everything), sum(v.refuted for v in everything)
        own = ranking.by_layer
        return PlanData(
            order=self.orderings.order(ranking.orders[0]),
            optimality=INTERRUPTED if ranking.interrupted else "proved" if left == 1 else "measured",
            orders=self.orderings.counted(),
            left=left,
            verdicts=questions.pairs + decided,
            claims={
                "asked": self.asker.asked,
                "reused": self.asker.reused,
                "proved": proved,
                "refuted": refuted,
                "undecided": len(everything) - proved - refuted,
            },
            measurements=rows,
            dense=dict(ranking.dense),
            best=rows[0],
            worst=rows[ranking.eligible - 1],
            compression_rate=(own.measured if own and own.orders else rows[0]).compression_rate,
            loss=self.loss.name,
            metric=ranking.metric,
            measured_on="generated layers" if self.bench is None else "model",
            applications={
                "done": -(-ranking.kernel_runs // max(1, ranking.layers)),
                "full_tree": self.orderings.full_tree,
                "kernel_runs": ranking.kernel_runs,
            },
            seconds={phase: round(seconds, 3) for phase, seconds in self.progress.seconds.items()},
            orderings=self.orderings,
            notes=self.notes,
            own_orders=dict(own.orders) if own else {},
            by_layer=own.measured if own else None,
            conditional=questions.conditional,
            lower=ranking.lower,
            among=ranking.among,
            pareto=pareto(rows, self.loss.name, ranking.metric, ranking.lower),
        )
