"""The two-witness rule: any shape, any sparsity, through one or two weights and what they share."""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import z3

from compcomp.language.claim import Claim
from compcomp.language.partition import Partition
from compcomp.language.steps import Element, GridMap, Selection, Step
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.rules.facts import MapFacts, fixes, keeps_largest, map_facts
from compcomp.proving.session import Session
from compcomp.proving.solver import Solver
from compcomp.terms import Abs, If, Term

# Rule (exchange). Let A and B be sequences of selections and maps, and the loss a sum of l(r, v) over weights.
# Let all selections act on one partition R and break ties one by one (not "all"), and let each map's partition
# be refined by R or refine it. Let D_A be the weights that A drops in the end, and m_A(i) what it leaves at i
# otherwise; the same for B. Let every map send 0 to 0, so that A leaves 0 at D_A. Let A have at most one
# selection, and its share s be at most the largest share in B; so in every group of R |D_A| <= |D_B|, with
# equality when B has exactly one selection and it has share s. Suppose that
#   kept   l(w, m_A(w)) <= l(w, m_B(w))                                      for w in neither D_A nor D_B,
#   pair   l(a, 0) + l(b, m_A(b)) <= l(a, m_B(a)) + l(b, 0)                  for a in D_A \ D_B, b in D_B \ D_A
#                                                                            in one group of R,
#   alone  l(b, m_A(b)) <= l(b, 0)     for b in D_B \ D_A                    (needed unless |D_A| = |D_B|).
# Then A loses no more than B on every layer: inside each group |D_A \ D_B| <= |D_B \ D_A|, so some injection
# pairs every a with a b of its own; sum `kept`, `pair` and `alone`, and note that both drop the rest.
#
# Each of the three is asked as a formula about one or two weights. A selection gives each a truth value
# "dropped"; if x is dropped and y of the same group is not, then score(x) <= score(y), whatever the selection's
# size. A map gives each a fresh value, constrained by the facts that are proved of it (facts.py).
#
# Contexts. The context of a map is the largest measure in its group, so no weight's measure exceeds it. Two
# maps of one partition have the same context c0, that of the dense group, as long as every step before keeps
# the largest measure: a map when that is proved of it; a selection when (keeps_largest) is proved of its score
# and it keeps a weight of the map's group. It does keep one where R refines the map's partition, as its share
# is below 1; where the map's partition refines R, it may drop the whole group, but then all its values are 0
# for every context. If a step may change the largest measure, later contexts are variables of their own.
# A context 0 means a group of zeros (measure 0 only at 0), on which all values are 0: contexts are taken > 0.


@dataclass(frozen=True)
class _Application:
    """One use of a map: ``result`` is its value at ``argument`` in ``context``."""

    step: GridMap
    context: str
    argument: Term
    result: Term


@dataclass
class _Run:
    """One sequence run on a few weights. ``values``, ``dropped``: by weight. ``facts``: what is known."""

    values: dict[str, Term]
    dropped: dict[str, Term]
    facts: list[Term] = field(default_factory=list)


@dataclass
class _Lemmas:
    """Facts about the steps of a claim, each asked once."""

    session: Session
    maps: list[tuple[GridMap, MapFacts]] = field(default_factory=list)
    selections: list[tuple[Selection, GridMap, bool]] = field(default_factory=list)
    nested: list[tuple[GridMap, GridMap, bool]] = field(default_factory=list)

    def of(self, step: GridMap) -> MapFacts:
        for known, facts in self.maps:
            if known == step:
                return facts
        self.maps.append((step, map_facts(step, self.session)))
        return self.maps[-1][1]

    def kept_by(self, selection: Selection, step: GridMap) -> bool:
        for known, other, answer in self.selections:
            if (known, other) == (selection, step):
                return answer
        self.selections.append((selection, step, keeps_largest(selection, step.measure, self.session)))
        return self.selections[-1][2]

    def inside(self, inner: GridMap, outer: GridMap) -> bool:
        for known, other, answer in self.nested:
            if (known, other) == (inner, outer):
                return answer
        self.nested.append((inner, outer, fixes(outer, inner, self.session)))
        return self.nested[-1][2]


def exchange(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """Both sequences select and map, and weights can be compared one by one or in pairs."""
    if claim.kind != "dominates" or claim.loss is None or claim.loss.element is None:
        return None
    steps = [[step for t in sequence for step in t.steps()] for sequence in claim.sequences]
    if not all(t.steps() for sequence in claim.sequences for t in sequence):
        return None
    group = _common_group(steps[0] + steps[1])
    counts = _counts(*steps)
    if group is None or counts is None:
        return None
    session = Session(solver, time.monotonic() + deadline)
    lemmas = _Lemmas(session)
    if not all(lemmas.of(s).zero and lemmas.of(s).even for s in steps[0] + steps[1] if isinstance(s, GridMap)):
        return None
    problem = _Problem(claim, steps, group, lemmas)
    goals = ["kept", *(["pair"] if _selects(steps) else []), *(["alone"] if counts == "fewer" else [])]
    if not all(problem.holds(goal) for goal in goals):
        return None
    return Proof("exchange", "any shape", (EXACT,), tuple(session.queries))


def _selects(steps: Items[Items[Step]]) -> bool:
    return any(isinstance(step, Selection) for sequence in steps for step in sequence)


def _common_group(steps: Items[Step]) -> Partition | None:
    """The partition R of all selections, if there is one that every map's partition is comparable with."""
    selections = {step.partition for step in steps if isinstance(step, Selection)}
    if len(selections) > 1 or any(isinstance(s, Selection) and s.ties == "all" for s in steps):
        return None
    maps = [step.partition for step in steps if isinstance(step, GridMap)]
    group = next(iter(selections), Partition.blocks(1))
    return group if all(group.refines(m) or m.refines(group) for m in maps) else None


def _counts(left: Items[Step], right: Items[Step]) -> str | None:
    """How |D_A| compares with |D_B| in every group: "equal", "fewer", or None when that is not known."""
    a = [step.share for step in left if isinstance(step, Selection)]
    b = [step.share for step in right if isinstance(step, Selection)]
    if len(a) > 1 or (a and (not b or a[0] > max(b))):
        return None
    return "equal" if a == b else "fewer"


class _Problem:
    """The formulas of the rule for one claim."""

    def __init__(self, claim: Claim, steps: list[list[Step]], group: Partition, lemmas: _Lemmas) -> None:
        self.claim, self.steps, self.group, self.lemmas = claim, steps, group, lemmas
        self._count = 0

    def holds(self, goal: str) -> bool:
        """Whether one of the premises "kept", "pair" and "alone" of the rule is proved."""
        names = ["a", "b"] if goal == "pair" else ["b"]
        weights = {name: z3.Real(f"w_{name}") for name in names}
        norms = {name: z3.Real(f"h_{name}") for name in names}
        applications: list[_Application] = []
        left, right = (
            self._run(f"{side}", sequence, weights, norms, applications)
            for side, sequence in zip("AB", self.steps, strict=True)
        )
        premises = [h >= 0 for h in norms.values()] + left.facts + right.facts
        premises += self._map_facts(applications)
        assert self.claim.loss is not None and self.claim.loss.element is not None
        loss, zero, b = self.claim.loss.element, z3.RealVal(0), weights["b"]
        if goal == "kept":
            case = [z3.Not(left.dropped["b"]), z3.Not(right.dropped["b"])]
            conclusion = loss(b, left.values["b"]) <= loss(b, right.values["b"])
        elif goal == "alone":
            case = [z3.Not(left.dropped["b"]), right.dropped["b"]]
            conclusion = loss(b, left.values["b"]) <= loss(b, zero)
        else:
            a = weights["a"]
            case = [
                left.dropped["a"],
                z3.Not(right.dropped["a"]),
                z3.Not(left.dropped["b"]),
                right.dropped["b"],
            ]
            gains = loss(a, zero) + loss(b, left.values["b"]) <= loss(a, right.values["a"]) + loss(b, zero)
            conclusion = gains
        session = self.lemmas.session
        if goal == "kept" and session.ask("kept: premises", [*premises, *case], "sat", 5.0).answer != "sat":
            return False
        return session.holds(goal, [*premises, *case], conclusion)

    def _fresh(self, name: str) -> Term:
        self._count += 1
        return z3.Real(f"{name}_{self._count}")

    def _run(
        self,
        side: str,
        steps: Items[Step],
        weights: dict[str, Term],
        norms: dict[str, Term],
        applications: list[_Application],
    ) -> _Run:
        run = _Run(dict(weights), {name: z3.BoolVal(False) for name in weights})
        for number, step in enumerate(steps):
            before = steps[:number]
            if isinstance(step, Selection):
                self._select(f"{side}{number}", step, run, norms)
            else:
                self._map(f"{side}{number}", step, before, run, applications)
        return run

    def _select(self, label: str, step: Selection, run: _Run, norms: dict[str, Term]) -> None:
        flags = {name: z3.Bool(f"dropped_{label}_{name}") for name in run.values}
        scores = {name: step.score(Element(run.values[name], norms[name])) for name in run.values}
        for x in run.values:
            for y in run.values:
                if x != y:
                    run.facts.append(z3.Implies(z3.And(flags[x], z3.Not(flags[y])), scores[x] <= scores[y]))
        for name, flag in flags.items():
            run.values[name] = If(flag, z3.RealVal(0), run.values[name])
            run.dropped[name] = z3.Or(run.dropped[name], flag)

    def _map(self, label: str, step: GridMap, before: Items[Step], run: _Run, applications: list[_Application]) -> None:
        same = all(self._keeps_context(earlier, step) for earlier in before)
        shared = self.group.refines(step.partition)
        for name, value in run.values.items():
            home = "dense" if same else label
            context = f"c_{step.partition}_{home}" + ("" if shared else f"_{name}")
            c = z3.Real(context)
            run.facts += [c > 0, z3.Or(run.dropped[name], step.measure(value) <= c)]
            result = self._fresh(f"q_{label}_{name}")
            # Of a dropped weight the value is 0 for every context, so nothing is said of its measure.
            run.facts.append(z3.Implies(run.dropped[name], result == 0))
            applications.append(_Application(step, context, value, result))
            run.values[name] = result

    def _keeps_context(self, earlier: Step, step: GridMap) -> bool:
        if isinstance(earlier, Selection):
            return self.lemmas.kept_by(earlier, step)
        if earlier.partition != step.partition or earlier.measure != step.measure:
            return False
        facts = self.lemmas.of(earlier)
        return facts.inside and facts.keeps_largest

    def _map_facts(self, applications: list[_Application]) -> list[Term]:
        """What is proved of the maps, at the arguments that occur."""
        found: list[Term] = []
        for one in applications:
            facts, x, y, c = self.lemmas.of(one.step), one.argument, one.result, z3.Real(one.context)
            in_range = one.step.measure(x) <= c
            single = [z3.Implies(x == 0, y == 0)]
            if facts.inside:
                single.append(one.step.measure(y) <= c)
            if facts.monotone:  # with q(0) = 0
                single += [z3.Implies(x >= 0, y >= 0), z3.Implies(x <= 0, y <= 0)]
            if facts.nearest:
                single.append(Abs(x - y) <= Abs(x))
            found.append(z3.Implies(in_range, z3.And(*single)))
            for other in applications:
                if other is not one and other.context == one.context:
                    both = z3.And(in_range, other.step.measure(other.argument) <= c)
                    if two := self._pair_facts(one, other, facts):
                        found.append(z3.Implies(both, z3.And(*two)))
        return found

    def _pair_facts(self, one: _Application, other: _Application, facts: MapFacts) -> list[Term]:
        x, y, v, u = one.argument, one.result, other.argument, other.result
        if other.step == one.step:
            found = [z3.Implies(x == v, y == u)] if facts.function else []
            if facts.monotone:
                found.append(z3.Implies(x <= v, y <= u))
            if facts.odd:
                found.append(z3.Implies(x == -v, y == -u))
            if facts.odd and facts.monotone:
                found.append(z3.Implies(Abs(x) <= Abs(v), Abs(y) <= Abs(u)))
            if facts.idempotent:
                found.append(z3.Implies(x == u, y == u))
            if facts.nearest:
                found.append(Abs(x - y) <= Abs(x - u))
            return found
        if facts.nearest and self.lemmas.inside(other.step, one.step):  # u is a value of this map too
            return [Abs(x - y) <= Abs(x - u), z3.Implies(x == u, y == u)]
        return []
