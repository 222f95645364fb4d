"""Ask the claims of a search, and merge and drop orders by the verdicts that are proofs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import lcm
from typing import Any

from compcomp.bench import Bench
from compcomp.language.claim import Claim, Scope, dominates, keeps, same_state
from compcomp.language.loss import Loss
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.ask import Asker
from compcomp.ordering.conditional import CLAIM_SECONDS, TECHNIQUES, ConditionalEntry, conditional
from compcomp.ordering.dag import Orderings
from compcomp.ordering.generated import SCREENED, Generated
from compcomp.ordering.progress import Progress
from compcomp.ordering.screen import Sketch, alike, no_worse
from compcomp.ordering.space import Prefix

SCREEN_SECONDS = 60.0
"""Seconds that are spent on generated layers to find candidates."""
CANDIDATES = 400
"""The most claims that are asked about complete orders, and about prefixes of each length."""
ANY, ONE_BY_FOUR = Scope.of("any"), Scope.of("1x4")
RULES = ("rule",)
"""The stages for candidates, which a search for counterexamples has already passed."""
BOUNDED_SECONDS = 10.0


class Questions:
    """Ask claims about the techniques of a search, and use the verdicts in its orderings.

    Args:
        orderings: The orderings that verdicts merge and drop.
        generated: The generated layers that candidates are found on.
        asker: Asks the claims.
        loss: The loss that orders are compared by.
        progress: Reports progress.
        notes: A list that receives notes for the report.

    Attributes:
        pairs: Verdicts on pairs of techniques, both ways.
        others: Every other verdict.
        conditional: Claims under conditions, about pairs that are proved neither way.
    """

    def __init__(
        self,
        orderings: Orderings,
        generated: Generated,
        asker: Asker,
        loss: Loss,
        progress: Progress,
        notes: list[str],
    ) -> None:
        self.orderings, self.generated, self.asker = orderings, generated, asker
        self.loss, self.progress, self.notes = loss, progress, notes
        self.pairs: list[Verdict] = []
        self.others: list[Verdict] = []
        self.conditional: list[ConditionalEntry] = []

    def ask_all(self, has_model: bool) -> None:
        """Ask every claim that does not need the model."""
        self.ask_pairs()
        self.ask_idle()
        self.ask_rewrites()
        if self.orderings.total > 1 or not has_model:
            self.ask_equal_prefixes(has_model)
        self.ask_dominance()

    def ask(self, claims: Sequence[Claim], scope: Scope, text: str, **options: Any) -> list[Verdict]:
        """Return the verdicts of claims at a scope, reporting progress.

        Args:
            claims: The claims.
            scope: The layers to cover.
            text: A description of the claims for progress.
            options: Options of the prover.
        """
        done = 0

        def answered(_: Verdict) -> None:
            nonlocal done
            done += 1
            self.progress.report("prove", done, len(claims), text)

        if claims:
            self.progress.report("prove", 0, len(claims), text)
        with self.progress.timed("prove"):
            found = self.asker.ask(claims, scope, options, answered)
        if done < len(claims):  # those that were known already
            self.progress.report("prove", len(claims), len(claims), text)
        return found

    def ask_pairs(self) -> None:
        """Ask for each pair of techniques, both ways, if one order never loses more than the other (law 2)."""
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
        """Return a shape at which a bounded proof is likely, None if there is none.

        Such a proof needs techniques of selections and maps, and a loss that adds over weights.
        """
        steps = [step for technique in pair for step in technique.steps()]
        if self.loss.element is None or not all(technique.steps() for technique in pair):
            return None
        return ONE_BY_FOUR if 4 % lcm(*(step.partition.size or 1 for step in steps)) == 0 else None

    # ------------------------------------------------------------------------------------ equal states

    def ask_idle(self) -> None:
        """Ask which techniques are no-ops on the dense layer (law 1), and never lose anything at the end (law 3)."""
        known = self.orderings.techniques
        idle = [same_state(t, Order()) for step, t in enumerate(known) if self.generated.may_be_equal((step,), ())]
        self.ask_equal(idle, "no-ops on the dense layer")
        candidates = [
            technique
            for step, technique in enumerate(known)
            if self.orderings.normal_after((), step)[0] == () and self.loss.name in technique.promises().never_increases
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

    def ask_rewrites(self) -> None:
        """Ask which techniques absorb each other or commute (law 1).

        A proof from every state is wanted, so that one answer serves inside every order.
        """
        orderings, known = self.orderings, self.orderings.techniques
        places = range(len(known))
        pairs = [(a, b) for a in places for b in places if a == b or orderings.home[a] != orderings.home[b]]
        pairs = [p for p in pairs if p[0] != p[1] or orderings.counts[orderings.home[p[0]]] > 1]
        claims: list[Claim] = []
        for a, b in pairs:
            sides = [(a,), (b,), *([(b, a)] if b < a else [])]
            claims += [
                same_state(known[a] >> known[b], orderings.order(side))
                for side in sides
                if self.generated.may_be_equal(side, (a, b))
            ]
        self.ask_equal(claims, "what absorbs what")
        factors = [x for x in places if known[x].promises().leaves_weight]
        triples = [
            same_state(known[a] >> known[x] >> known[b], known[a] >> known[x])
            for a, b in pairs
            if orderings.normal_after((a,), b)[0] == (a,)
            for x in factors
            if x not in (a, b)
        ]
        self.ask_equal(triples, "what absorbs what")

    def ask_equal(self, claims: Sequence[Claim], text: str) -> None:
        """Ask equalities, and use those that are proved."""
        for verdict in self.ask(claims, ANY, text, stages=RULES):
            self.orderings.merge(verdict)
            self.others.append(verdict)

    def ask_equal_prefixes(self, has_model: bool) -> None:
        """Apply prefixes to generated layers, level by level, and ask after each level which are equal.

        Merged prefixes are not continued. A level that would take too many applications is left out, and so are the
        levels below it. Then fewer claims are asked, and more orders are measured.
        """
        screen = self.generated.screen
        if screen is None:
            self.notes.append("too wide or too slow for generated layers: only claims about pairs were asked")
            return
        for level in range(1, self.orderings.length + 1):
            forms = self.forms_at(level)
            more, spent = self.generated.missing(forms), self.progress.seconds["screen"]
            each = spent / max(1, screen.applications)
            if screen.applications + more > SCREENED or spent + more * each > SCREEN_SECONDS:
                self.notes.append(
                    f"claims about orders longer than {level - 1} techniques were not looked for: there are too many, "
                    "or they take too long"
                )
                self.generated.forget_states()
                return
            self.ask_alike({form: self.generated.sketch(form) for form in forms})
        for leaf in self.orderings.leaves():
            self.generated.note_losses(leaf)
            if has_model:
                self.generated.format(leaf)
        self.generated.forget_states()

    def forms_at(self, level: int) -> list[Prefix]:
        """Return the normal forms of all prefixes of this length."""
        found = (node.normal for node in self.orderings.nodes.values() if len(node.prefix) == level)
        return list(dict.fromkeys(found))

    def ask_alike(self, sketches: dict[Prefix, Sketch]) -> None:
        """Ask in rounds which normal forms are equal. A pair that earlier rounds have merged is not asked."""
        asked, candidates = 0, alike(sketches)
        while candidates and asked < CANDIDATES:
            turn, later, busy = list[tuple[Prefix, Prefix]](), list[tuple[Prefix, Prefix]](), set[Prefix]()
            for first, second in candidates:
                if self.orderings.normal_form(first)[0] == self.orderings.normal_form(second)[0]:
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

    # ------------------------------------------------------------------------------------ complete orders

    def ask_dominance(self) -> None:
        """Ask in rounds which complete orders never lose more than another, until each is dropped or all is asked.

        For each order that still stays, every round asks about the next of the orders that lost no more on any
        generated layer. Claims that already follow from proofs are not asked.
        """
        known = self.generated.losses
        leaves = {leaf: known.get(self.orderings.normal_form(leaf)[0]) for leaf in self.orderings.leaves()}
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
        """Return the first of these orders that is not yet proved to lose no more than this one."""
        return next((one for one in better if not self.orderings.dominated(one, order)), None)

    # ------------------------------------------------------------------------------------ for measuring

    def ask_conditional(self, bench: Bench) -> None:
        """Ask, for pairs that are proved neither way, under which conditions they are proved, and where these hold."""
        pairs = self.unproved_pairs()
        if not pairs:
            return

        def ask(claim: Claim, scope: Scope) -> Verdict:
            return self.asker.ask([claim], scope, {"stages": RULES, "timeout": CLAIM_SECONDS})[0]

        with self.progress.timed("prove"):
            self.conditional, proofs = conditional(
                pairs, self.loss, bench, ask, self.orderings.held, self.progress.of("prove")
            )
        self.others += proofs
        self.notes += [entry.conclusion for entry in self.conditional if entry.contradicted]

    def unproved_pairs(self) -> list[tuple[Technique, Technique]]:
        """Return the pairs that are proved neither way, for which conditions are looked for."""
        known, home = self.orderings.techniques, self.orderings.home
        if len(known) > TECHNIQUES:
            return []
        proved = {v.claim.sides for v in self.pairs if v.proved}
        pairs = [
            (known[one], known[other]) for one, other in combinations(range(len(known)), 2) if home[one] != home[other]
        ]
        return [(a, b) for a, b in pairs if not {(a >> b, b >> a), (b >> a, a >> b)} & proved]

    def drop_conditional(self, evaluated: bool) -> None:
        """Drop one of two orders by law 5, if there are no others.

        Args:
            evaluated: True if the user evaluates models. An order is then dropped only if the proof covers all weights.
        """
        staying = set(self.orderings.staying())
        for entry in self.conditional:
            better, worse = (self.orderings.prefix(side.techniques) for side in (entry.left, entry.right))
            enough = entry.coverage == 1 if evaluated else entry.coverage > 0
            if (
                enough
                and entry.in_every_layer
                and self.orderings.total == 2
                and better in staying
                and worse in staying
                and self.orderings.no_larger(better, worse)
            ):
                because = f"{entry.left} {entry.conclusion}; this says nothing of other models"
                self.orderings.under_conditions(worse, better, f"{because} [{entry.claim}]")
                return

    def ask_keeps(self) -> dict[str, list[int]]:
        """Return by invariant the positions of the techniques that are proved to keep it.

        The invariants are mask, grid and the factors of the low-rank branch. By law 4 they bound the final loss of a
        layer. A map that sets up a grid of its own keeps that one, so the grid counts only for techniques that promise
        to keep it. A technique that changes the basis of the inputs keeps nothing here, as bounds are computed in the
        dense basis.
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
