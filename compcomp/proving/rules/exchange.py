"""Prove dominance by the two-witness rule: any shape, any sparsity, through formulas about one or two weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields
from typing import Any

import z3

from compcomp.language.claim import Claim, Dominates
from compcomp.language.identity import all_but, identity, same_but
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import ScaledMap, Selection, Step, at_most, leaves_free
from compcomp.layers.partition import Partition
from compcomp.proving.functions import of_measure, of_score, scored
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.reasons import convention, failing, listed, not_additive, owner, without_steps
from compcomp.proving.rules.facts import MapFacts, fixes, keeps_largest, unit_norms, weight_independent
from compcomp.proving.rules.normal import merged
from compcomp.proving.session import LEMMA_SECONDS, Session
from compcomp.terms import Abs, If, Term

# Rule (exchange). Let A and B be sequences of selections and maps, and the loss a sum of l(r, v) over weights (under
# a diagonal Gram matrix also the output loss: then l takes the squared norm of the weight's input as well). Let all
# selections act on one partition R and break ties one by one (not "all", except where the claim's conditions rule
# ties out: then each drops the same weights however ties are broken), and let each map's partition be refined by R
# or refine it. Let D_A be the weights that A drops in the end, and m_A(i) what it leaves at i otherwise; the same
# for B. Let every map send 0 to 0, so that A leaves 0 at D_A. Let A have at most one selection, and its share s be
# at most the largest share in B; so in every group of R |D_A| <= |D_B|, with equality when B has exactly one
# selection and it has share s. Suppose that
#   kept   l(w, m_A(w)) <= l(w, m_B(w))                                      for w in neither D_A nor D_B,
#   pair   l(a, 0) + l(b, m_A(b)) <= l(a, m_B(a)) + l(b, 0)                  for a in D_A \ D_B, b in D_B \ D_A
#                                                                            in one group of R,
#   alone  l(b, m_A(b)) <= l(b, 0)     for b in D_B \ D_A                    (needed unless |D_A| = |D_B|).
# Then A loses no more than B on every layer: inside each group |D_A \ D_B| <= |D_B \ D_A|, so some injection
# pairs every a with a b of its own; sum `kept`, `pair` and `alone`, and note that both drop the rest.
#
# Distances. Let l(r, v) = f(|r - v|) for a growing convex f (Loss.distance: every weight loss). Then no formula asks
# about f: kept and alone are asked of the distances, and so is pair, where x1, x2 are those on its left and y1, y2 on
# its right, as
#   majorized   x1 + x2 <= y1 + y2, and the larger of x1, x2 is at most the larger of y1, y2.
# Let x1 >= x2 and y1 >= y2. If x2 <= y2, f(x1) + f(x2) <= f(y1) + f(y2) as f grows. Otherwise y2 < x2 <= x1 <= y1. Let
# s be the slope of f from y2 to x2; f is convex, so its slope from x1 to y1 is at least s >= 0, and by the sums
# f(y1) - f(x1) >= s (y1 - x1) >= s (x2 - y2) = f(x2) - f(y2). Of f(x) = x the sums alone are asked. So the formulas are
# linear, and the same for every other p.
#
# Each of the three is asked as a formula about one or two weights. A selection gives each a truth value
# "dropped"; if x is dropped and y of the same group is not, then score(x) <= score(y), whatever the selection's
# size, and score(x) < score(y) where conditions rule ties out. Of a selection by a score of the whole layer nothing is
# said but how many weights it drops of each group. A map gives each a fresh value, constrained by the
# facts that are proved of it (facts.py).
#
# Contexts. The context of a map is the largest measure in its group, so no weight's measure exceeds it. Two
# maps of one partition have the same context c0, that of the dense group, as long as every step before keeps
# the largest measure: a map when that is proved of it; a selection when (keeps_largest) is proved of its score,
# for the dense weights where it comes first, for any weights elsewhere, and it keeps a weight of the map's group.
# It does keep one where R refines the map's partition, as its share is below 1, unless all that is tied goes (then a
# group of equal scores goes as a whole, and with it perhaps the largest measure); where the map's partition refines
# R, it may drop the whole group, but then all its values are 0 for every context. Where the claim's conditions say
# so ("largest kept": of a selection; "scale unchanged": of every map), nothing has to be proved. If a step may
# change the largest measure, later contexts are variables of their own.
# A context 0 means a group of zeros (measure 0 only at 0), on which all values are 0: contexts are taken > 0.
#
# Fewer facts. A formula that is unsatisfiable with some of the facts about maps is so with all of them. Where there is
# one map, and it is odd and monotone, it is asked with these facts first, which is quicker, and with all only where
# that does not decide it.
#
# Start. Steps that both sequences start with, and that leave nothing free, do the same in both: their truth values
# are shared, and so are contexts taken of a state that these steps lead to.
#
# Selections in a row. Those that rule absorption (normal.py, selections) proves equal to one of them are that one:
# inside a technique always; across techniques where A would have more than one selection otherwise.
#
# Selections of the dense weight. A selection whose score is proved not to depend on the current weight
# (facts.weight_independent) finds the same scores in every use; unless its ties are "any" it drops the same weights,
# whatever came before. So all uses of it share one truth value for each weight. Where every selection of the claim is
# one such selection, ties "all" are admitted as well: D_A = D_B as soon as both use it.
#
# Inputs. No technique changes them. Norms h >= 0 are arbitrary, one for each weight; where conditions make them equal
# and > 0 there is one, taken as 1 where that is proved to change no comparison (facts.unit_norms).


FEW_SECONDS = 1.0
"""Seconds for a formula with few of the facts, before it is asked with all of them."""


@dataclass(frozen=True)
class Application:
    """One use of a map. ``result`` is its value at ``argument`` in ``context``."""

    step: ScaledMap
    context: str
    argument: Term
    result: Term


@dataclass
class _Run:
    """One sequence run on a few weights. ``values``, ``dropped``: by weight. ``facts``: premises about them."""

    values: dict[str, Term]
    dropped: dict[str, Term]
    facts: list[Term] = field(default_factory=list)


@dataclass
class _Lemmas:
    """Facts about the steps of a claim, each asked once."""

    session: Session
    equal_norms: bool = False
    maps: list[tuple[ScaledMap, MapFacts]] = field(default_factory=list)
    selections: list[tuple[Selection, ScaledMap, bool, bool]] = field(default_factory=list)
    scores: list[tuple[Selection, bool]] = field(default_factory=list)
    nested: list[tuple[ScaledMap, ScaledMap, bool]] = field(default_factory=list)

    def of(self, step: ScaledMap) -> MapFacts:
        for known, facts in self.maps:
            if same_but(known, step):
                return facts
        self.maps.append((step, MapFacts(step, self.session)))
        return self.maps[-1][1]

    def kept_by(self, selection: Selection, step: ScaledMap, *, dense: bool) -> bool:
        for known, other, at, answer in self.selections:
            if at == dense and same_but(known, selection) and same_but(other, step):
                return answer
        answer = keeps_largest(selection, step, self.session, equal_norms=self.equal_norms, dense=dense)
        self.selections.append((selection, step, dense, answer))
        return answer

    def weight_independent(self, selection: Selection) -> bool:
        for known, answer in self.scores:
            if same_but(known, selection):
                return answer
        self.scores.append((selection, weight_independent(selection, self.session)))
        return self.scores[-1][1]

    def inside(self, inner: ScaledMap, outer: ScaledMap) -> bool:
        for known, other, answer in self.nested:
            if same_but(known, inner) and same_but(other, outer):
                return answer
        self.nested.append((inner, outer, fixes(outer, inner, self.session)))
        return self.nested[-1][2]


LEMMAS = {
    "kept": "some weight that both sequences keep loses more under the left one",
    "pair": "of two weights in one group, dropping a on the left costs more than dropping b on the right",
    "alone": "some weight that only the right sequence drops loses less if it is dropped",
    "same value": "some weight that both sequences keep ends with two values",
    "no pair": "of two weights in one group, one sequence drops a and the other b",
}
"""For each premise of this rule, and of the rule `same`, the reason to give if it fails."""


@rule(
    "exchange",
    Dominates,
    needs="both sequences made of selections over one partition and scaled maps, a loss that adds over weights, "
    "at most one selection on the left that drops no more than the right; then kept, pair and alone lemmas",
)
def exchange(claim: Claim, session: Session) -> Proof | Refusal:
    """Prove that the left sequence loses no more, by lemmas about single weights and pairs of weights."""
    if claim.part is None:
        return not_additive(claim, " (given diagonal_gram it may be)")
    problem = problem_of(claim, session)
    if isinstance(problem, Refusal):
        return problem
    goals = ["kept", *(["pair"] if problem.selects else []), *(["alone"] if problem.counts == "fewer" else [])]
    if not problem.once("exchange", lambda: all(problem.holds(goal) for goal in goals)):
        return problem.refusal()
    return Proof("exchange", "any shape", (EXACT,), tuple(problem.lemmas.session.queries))


def problem_of(claim: Claim, session: Session) -> Problem | Refusal:
    """Return the formulas about one and two weights for a claim of two sequences, or why they do not apply."""
    problem = setting(claim, session)
    if isinstance(problem, Refusal):
        return problem
    counts = _counts(*problem.steps)
    if counts is None and not claim.given:  # conditions speak of the steps as they are written
        problem.steps = [merged(steps, session) for steps in problem.steps]
        counts = _counts(*problem.steps)
    if counts is None:
        return _uncounted(claim, *problem.steps)
    problem.counts = counts
    return problem


def _uncounted(claim: Claim, left: Items[Step], right: Items[Step]) -> Refusal:
    """Refuse because the left sequence may drop more weights of a group than the right one."""
    a, b = ([step for step in steps if isinstance(step, Selection)] for steps in (left, right))
    names = listed(owner(claim, step) for step in a)
    if len(a) > 1:
        return Refusal(f"the left sequence has {len(a)} selections ({names}), and the rule needs at most one")
    if not b:
        return Refusal(f"{names} drops weights on the left, and nothing on the right does")
    others = listed(f"{owner(claim, step)} drops {step.share}" for step in b)
    return Refusal(f"{names} may drop more ({a[0].share} of each group) than the right sequence, of which {others}")


def setting(claim: Claim, session: Session) -> Problem | Refusal:
    """Return the claim's sequences as steps on comparable groups, without comparing how many weights they drop."""
    steps = [[step for t in sequence for step in merged(t.steps(), session)] for sequence in claim.sequences]
    every = [step for sequence in steps for step in sequence]
    if claim.changes_inputs:
        changing = (t for sequence in claim.sequences for t in sequence if t.promises().changes_inputs)
        return Refusal(f"{listed(changing)} changes the inputs, and the rule is about layers with the dense inputs")
    if others := without_steps(claim):
        return Refusal(f"{others} is not made of selections and maps, which the rule compares weight by weight")
    if ranges := [step for step in every if not isinstance(step, Selection | ScaledMap)]:
        name = owner(claim, ranges[0])
        return Refusal(f"{name} rounds between the least and the largest weight, and the rule needs one scale for both")
    lemmas = _Lemmas(session, claim.assumes("equal norms"))
    selections = list({all_but(step): step for step in every if isinstance(step, Selection)}.values())
    all_go = any(s.ties == "all" for s in selections) and not claim.assumes("strict selections")
    if all_go and (len(selections) > 1 or not lemmas.weight_independent(selections[0])):
        tied = next(s for s in selections if s.ties == "all")
        reason = f"{owner(claim, tied)} drops all weights that tie, so how many it drops is not known"
        return Refusal(reason, advice=(convention("ties", "first"),))
    group = _common_group(claim, every)
    if isinstance(group, Refusal):
        return group
    for step in every:
        if isinstance(step, ScaledMap) and not (lemmas.of(step).even and lemmas.of(step).zero):
            fact = "0 goes to 0" if lemmas.of(step).even else "its measure is even and scales along"
            return failing(f"of {owner(claim, step)} it is not proved that {fact}", session, Reached.FACT)
    return Problem(claim, steps, group, lemmas)


def _common_group(claim: Claim, steps: Items[Step]) -> Partition | Refusal:
    """Return the partition R of all selections, if every map's partition is comparable with it."""
    selections = {step.partition: step for step in steps if isinstance(step, Selection)}
    if len(selections) > 1:
        each = " and ".join(f"{owner(claim, step)} over {partition}" for partition, step in selections.items())
        return Refusal(f"selections act on unlike groups: {each}")
    group = next(iter(selections), Partition.blocks(1))
    for step in steps:
        if isinstance(step, ScaledMap) and not (group.refines(step.partition) or step.partition.refines(group)):
            scaled = f"{owner(claim, step)} has a scale for {step.partition}"
            one = f"{owner(claim, selections[group])} drops over {group}"
            return Refusal(f"{scaled} and {one}: neither groups lie inside the other")
    return group


def _counts(left: Items[Step], right: Items[Step]) -> str | None:
    """Return how |D_A| compares with |D_B| in every group: "equal", "fewer", or None if that is not known."""
    a = [step.share for step in left if isinstance(step, Selection)]
    b = [step.share for step in right if isinstance(step, Selection)]
    if len(a) > 1 or (a and not any(at_most(a[0], share) for share in b)):
        return None
    return "equal" if a == b else "fewer"


_GRID = ("levels", "below", "beyond", "codes", "scale", "rounding")
"""The fields of maps that determine the value of a weight in a context, not the context."""


def of_context(step: ScaledMap, *without: str) -> Hashable:
    """Return the key of all fields that determine the context that a map finds in a state."""
    return all_but(step, *_GRID, *without)


def majorized(one: Items[Term], other: Items[Term]) -> Term:
    """Return the formula that no growing convex function has a larger sum over ``one`` than over ``other``.

    Both are two distances [marshall2011].
    """
    return z3.And(*(z3.Or(*(x <= y for y in other)) for x in one), sum(one) <= sum(other))


class Problem:
    """The formulas of the rule for one claim.

    ``counts``: how the numbers of dropped weights compare, "equal" or "fewer". ``uses``: the uses of maps in the latest
    runs.
    """

    def __init__(self, claim: Claim, steps: list[list[Step]], group: Partition, lemmas: _Lemmas) -> None:
        self.claim, self.steps, self.group, self.lemmas = claim, steps, group, lemmas
        self.counts, self.uses = "", list[Application]()
        self._count = 0
        self._unit: bool | None = None
        self._magnitudes: dict[int, tuple[Term, Term]] = {}  # by id of the term, which is kept so that it lives

    @property
    def selects(self) -> bool:
        """Return True if there is a selection at all."""
        return any(isinstance(step, Selection) for sequence in self.steps for step in sequence)

    def _norms(self, names: Items[str]) -> tuple[dict[str, Term], list[Term]]:
        """Return the squared norm of each weight's input feature, and the premises about these norms."""
        if self.claim.assumes("equal norms"):
            if self._unit is None:
                selections = [s for sequence in self.steps for s in sequence if isinstance(s, Selection)]
                self._unit = unit_norms(selections, self.claim.part, self.lemmas.session)
            h = z3.RealVal(1) if self._unit else z3.Real("h")
            return dict.fromkeys(names, h), [h > 0]
        norms = {name: z3.Real(f"h_{name}") for name in names}
        return norms, [h >= 0 for h in norms.values()]

    def refusal(self) -> Refusal:
        """Return the lemma that was asked last, as the reason why its rule does not apply."""
        query = self.lemmas.session.missed(last=True)
        goal, _, premises = ("", "", "") if query is None else query.name.partition(": ")
        if query is None or goal not in LEMMAS:
            return Refusal("its lemmas were not all proved", reached=Reached.FACT)
        if premises:
            return Refusal(f"no weight meets the premises of the {goal} lemma", lemma=query, reached=Reached.LEMMA)
        if query.answer == "unknown":
            return Refusal(f"the {goal} lemma was not decided in time", lemma=query, reached=Reached.LEMMA)
        return Refusal(f"{LEMMAS[goal]}: the {goal} lemma fails", lemma=query, reached=Reached.LEMMA)

    def holds(self, goal: str) -> bool:
        """Return True if a premise of a rule is proved.

        Args:
            goal: "kept", "pair" or "alone"; of the rule `same`, "same value" or "no pair".
        """
        found = (step for sequence in self.steps for step in sequence if isinstance(step, ScaledMap))
        maps = {(type(step), all_but(step)): step for step in found}.values()
        few = len(maps) == 1 and all(self.lemmas.of(step).odd and self.lemmas.of(step).monotone for step in maps)
        first = few and self._holds(goal, FEW_SECONDS, few=True)
        return first or self._holds(goal, LEMMA_SECONDS, few=False)

    def _holds(self, goal: str, most: float, *, few: bool) -> bool:
        """Return True if a premise is proved from all facts about maps, or a ``few``, in ``most`` seconds a query."""
        names = ["a", "b"] if goal in ("pair", "no pair") else ["b"]
        weights, norms, (left, right), premises = self.runs(names, "AB", self._start(), few=few)
        metric = self.claim.loss if self.claim.loss is not None and self.claim.loss.distance else None

        def loss(name: str, value: Term) -> Term:
            if metric is not None:
                return self._abs(weights[name] - value)
            assert self.claim.part is not None
            return self.claim.part(weights[name], value, norms[name])

        zero = z3.RealVal(0)
        if goal in ("kept", "same value"):
            case = [z3.Not(left.dropped["b"]), z3.Not(right.dropped["b"])]
            if goal == "same value":
                conclusion = left.values["b"] == right.values["b"]
            else:
                conclusion = loss("b", left.values["b"]) <= loss("b", right.values["b"])
        elif goal == "alone":
            case = [z3.Not(left.dropped["b"]), right.dropped["b"]]
            conclusion = loss("b", left.values["b"]) <= loss("b", zero)
        else:
            case = [
                left.dropped["a"],
                z3.Not(right.dropped["a"]),
                z3.Not(left.dropped["b"]),
                right.dropped["b"],
            ]
            if goal == "no pair":
                conclusion = z3.BoolVal(False)
            else:
                one = loss("a", zero), loss("b", left.values["b"])
                other = loss("a", right.values["a"]), loss("b", zero)
                convex = metric is not None and metric.degree > 1
                conclusion = majorized(one, other) if convex else one[0] + one[1] <= other[0] + other[1]
        session = self.lemmas.session
        if len(names) == 1 and session.ask(f"{goal}: premises", [*premises, *case], "sat", most).answer != "sat":
            return False
        return session.holds(goal, [*premises, *case], conclusion, most)

    def once(self, rule: str, premises: Callable[[], bool]) -> bool:
        """Return True if a rule's premises hold. Claims with the same formulas share one answer.

        The formulas only see which shares and levels are equal (for unequal levels also which grids are nested). So one
        answer serves every sparsity and bit width. For scores and measures they see which are the same function, and
        its term.
        """
        claim = self.claim
        every = [step for sequence in self.steps for step in sequence]
        names: dict[str, list[object]] = {
            name: list(dict.fromkeys(identity(getattr(step, name)) for step in every if hasattr(step, name)))
            for name in ("share", "levels", "score", "measure")
        }
        names["levels"] = names["levels"] if len(names["levels"]) == 1 else []
        says: dict[str, Callable[[Any], Hashable]] = {"score": of_score, "measure": of_measure}

        def seen(step: Any, name: str) -> Hashable:
            value = identity(getattr(step, name))
            alike = ("alike", names[name].index(value)) if value in names.get(name, ()) else value
            return (alike, says[name](step)) if name in says else alike

        steps = tuple(
            tuple((type(step), *(seen(step, f.name) for f in fields(step))) for step in sequence)
            for sequence in self.steps
        )
        assumed = frozenset(fact for condition in claim.given for fact in condition.assumes)
        key = (rule, claim.terms, assumed, self.group, self.counts, steps)
        return self.lemmas.session.once(key, premises)

    def _start(self) -> int:
        """Return the number of equal first steps of both sequences that leave no choice free."""
        count = 0
        for one, other in zip(*self.steps, strict=False):
            if not same_but(one, other) or leaves_free(one):
                break
            count += 1
        return count

    def runs(
        self, names: Items[str], sides: str, start: int = 0, *, few: bool = False
    ) -> tuple[dict[str, Term], dict[str, Term], list[_Run], list[Term]]:
        """Run every sequence on a few weights.

        Args:
            names: of the weights.
            sides: a letter for each sequence. Two with one letter drop the same weights in steps of the same number,
                for sequences of which one continues the other.
            start: the number of first steps that all sequences share.
            few: use only those facts about maps that most claims need.

        Returns:
            The weights, their squared input norms, the runs, and all premises.
        """
        weights = {name: z3.Real(f"w_{name}") for name in names}
        norms, known = self._norms(names)
        self.uses = []
        pairs = zip(sides, self.steps, strict=True)
        runs = [self._run("S" * start + side, sequence, weights, norms, self.uses) for side, sequence in pairs]
        facts = [fact for run in runs for fact in run.facts]
        return weights, norms, runs, [*known, *facts, *self._map_facts(self.uses, few)]

    def _fresh(self, name: str) -> Term:
        self._count += 1
        return z3.Real(f"{name}_{self._count}")

    def _run(
        self,
        sides: str,
        steps: Items[Step],
        weights: dict[str, Term],
        norms: dict[str, Term],
        applications: list[Application],
    ) -> _Run:
        run = _Run(dict(weights), {name: z3.BoolVal(False) for name in weights})
        for number, step in enumerate(steps):
            before, side = steps[:number], sides[min(number, len(sides) - 1)]
            if isinstance(step, Selection):
                self._select(f"{side}{number}", step, run, weights, norms)
            else:
                assert isinstance(step, ScaledMap)  # setting() admits no other kind
                state = ("S" if number < len(sides) else side) + str(number)  # of which the context is taken
                self._map(f"{side}{number}", state, step, before, run, applications)
        return run

    def _select(self, label: str, step: Selection, run: _Run, weights: dict[str, Term], norms: dict[str, Term]) -> None:
        strict = self.claim.assumes("strict selections")
        if self._used_again(step) and (strict or step.ties != "any") and self.lemmas.weight_independent(step):
            label = f"settled{self._number(step)}"
        flags = {name: z3.Bool(f"dropped_{label}_{name}") for name in run.values}
        known = run.values if step.of_layer is None else ()  # a score of the whole layer may be any number
        score = {name: scored(step, run.values[name], norms[name], weights[name]) for name in known}
        for x in score:
            for y in score:
                if x != y:
                    order = score[x] < score[y] if strict else score[x] <= score[y]
                    run.facts.append(z3.Implies(z3.And(flags[x], z3.Not(flags[y])), order))
        for name, flag in flags.items():
            run.values[name] = If(flag, z3.RealVal(0), run.values[name])
            run.dropped[name] = z3.Or(run.dropped[name], flag)

    def _map(
        self,
        label: str,
        state: str,
        step: ScaledMap,
        before: Items[Step],
        run: _Run,
        applications: list[Application],
    ) -> None:
        same = self._dense_context(before, step)
        shared = self.group.refines(step.partition)
        for name, value in run.values.items():
            home = "dense" if same else state
            context = f"c{self._context(step)}_{step.partition}_{home}" + ("" if shared else f"_{name}")
            c = z3.Real(context)
            run.facts += [c > 0, z3.Or(run.dropped[name], step.measure(value) <= c)]
            result = self._fresh(f"q_{label}_{name}")
            # A dropped weight has the value 0 in every context, so nothing is said of its measure.
            run.facts.append(z3.Implies(run.dropped[name], result == 0))
            applications.append(Application(step, context, value, result))
            run.values[name] = result

    def _used_again(self, selection: Selection) -> bool:
        return sum(same_but(step, selection) for sequence in self.steps for step in sequence) > 1

    def _number(self, selection: Selection) -> int:
        """Return the position of a selection among those of the claim. Uses of equal ones have one number."""
        every = dict.fromkeys(all_but(s) for sequence in self.steps for s in sequence if isinstance(s, Selection))
        return list(every).index(all_but(selection))

    def _context(self, step: ScaledMap) -> str:
        """Return a name for all that determines a map's context, other than its groups. The first is "".

        Maps with other names have other contexts.
        """
        maps = (s for sequence in self.steps for s in sequence if isinstance(s, ScaledMap))
        known = dict.fromkeys(of_context(s, "partition") for s in maps)
        place = list(known).index(of_context(step, "partition"))
        return str(place) if place else ""

    def _dense_context(self, before: Items[Step], step: ScaledMap) -> bool:
        """Return True if, after these steps, the map finds the contexts of the dense layer, or groups of zeros."""
        if self.claim.assumes("scale unchanged"):
            return True
        return all(self._keeps_context(earlier, step, dense=not k) for k, earlier in enumerate(before))

    def _may_empty(self, selection: Selection) -> bool:
        """Return True if the selection can zero an entire group.

        With ``ties="all"`` it prunes more than its share when scores tie.
        """
        return selection.ties == "all" and not self.claim.assumes("strict selections")

    def same_grids(self) -> bool:
        """Return True if both sequences are proved to end with the same grid, or both have none."""
        ends = [[k for k, step in enumerate(steps) if isinstance(step, ScaledMap)] for steps in self.steps]
        if not all(ends):
            return not any(ends)
        places = [(steps[: own[-1]], steps[own[-1]]) for steps, own in zip(self.steps, ends, strict=True)]
        one, other = (step for _, step in places)
        assert isinstance(one, ScaledMap) and isinstance(other, ScaledMap)
        alike = same_but(one, other, "rounding")
        if not alike or self.claim.assumes("scale unchanged"):
            return alike
        # A group of which nothing is left has another scale than the dense one.
        selected = [step for before, _ in places for step in before if isinstance(step, Selection)]
        if selected and (self.claim.assumes("largest kept") or not self.group.refines(one.partition)):
            return False
        if any(map(self._may_empty, selected)):
            return False
        return all(self._dense_context(before, one) for before, _ in places)

    def _keeps_context(self, earlier: Step, step: ScaledMap, *, dense: bool) -> bool:
        if isinstance(earlier, Selection):
            if self.claim.assumes("largest kept"):
                return True
            if self._may_empty(earlier) and not step.partition.refines(self.group):
                return False
            return self.lemmas.kept_by(earlier, step, dense=dense)
        assert isinstance(earlier, ScaledMap)
        if of_context(earlier) != of_context(step):
            return False
        facts = self.lemmas.of(earlier)
        return facts.inside and facts.keeps_largest

    def _map_facts(self, applications: list[Application], few: bool) -> list[Term]:
        """Return the facts proved of the maps at the arguments that occur: all, or a ``few`` (odd and monotone)."""
        found: list[Term] = []
        for number, one in enumerate(applications):
            facts, x, y, c = self.lemmas.of(one.step), one.argument, one.result, z3.Real(one.context)
            in_range = one.step.measure(x) <= c
            single = [z3.Implies(x == 0, y == 0)]
            if not few and facts.inside:
                single.append(one.step.measure(y) <= c)
            if facts.monotone:  # with q(0) = 0
                single += [z3.Implies(x >= 0, y >= 0), z3.Implies(x <= 0, y <= 0)]
            if not few and facts.nearest:
                single.append(self._abs(x - y) <= self._abs(x))
            found.append(z3.Implies(in_range, z3.And(*single)))
            for place, other in enumerate(applications):
                if other is not one and other.context == one.context:
                    both = z3.And(in_range, other.step.measure(other.argument) <= c)
                    if two := self._pair_facts(one, other, facts, number < place, few):
                        found.append(z3.Implies(both, z3.And(*two)))
        return found

    def _abs(self, x: Term) -> Term:
        """Return Abs(x), built once for each term, because the same terms occur in many facts."""
        key = x.get_id()
        if key not in self._magnitudes:
            self._magnitudes[key] = x, Abs(x)
        return self._magnitudes[key][1]

    def _pair_facts(self, one: Application, other: Application, facts: MapFacts, first: bool, few: bool) -> list[Term]:
        """Return the facts about two uses of maps.

        Facts that are symmetric in the two uses are returned only if ``first`` is True.
        """
        x, y, v, u = one.argument, one.result, other.argument, other.result
        magnitude = self._abs
        if same_but(other.step, one.step):
            found = [z3.Implies(x == v, y == u)] if first and not few and facts.function else []
            if facts.monotone:
                found.append(z3.Implies(x <= v, y <= u))
            if facts.odd and first:
                found.append(z3.Implies(x == -v, y == -u))
            if facts.odd and facts.monotone:
                found.append(z3.Implies(magnitude(x) <= magnitude(v), magnitude(y) <= magnitude(u)))
            elif not few and facts.ordered:
                found.append(z3.Implies(magnitude(x) < magnitude(v), magnitude(y) <= magnitude(u)))
            if few:
                return found
            if facts.idempotent:
                found.append(z3.Implies(x == u, y == u))
            if facts.nearest:
                found.append(magnitude(x - y) <= magnitude(x - u))
            if facts.mirrored:
                found.append(magnitude(x - y) <= magnitude(x + u))
            return found
        if not few and facts.nearest and self.lemmas.inside(other.step, one.step):  # u is a value of this map too
            found = [magnitude(x - y) <= magnitude(x - u), z3.Implies(x == u, y == u)]
            # u' = q'(v) is such a value too, and so is q'(-v), which is -u' where q' is odd.
            return [*found, magnitude(x - y) <= magnitude(x + u)] if self.lemmas.of(other.step).odd else found
        return []
