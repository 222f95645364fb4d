"""Prove that a selection, perhaps with a map after it, beats every other choice of as many weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import z3

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Dominates, Scope
from compcomp.language.parameters import Unknown
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import CodebookMap, GridMap, Optimum, Selection
from compcomp.language.technique import Technique
from compcomp.layers.partition import Partition
from compcomp.proving.functions import scored
from compcomp.proving.proof import EXACT, Proof, Rule, rule
from compcomp.proving.reasons import failing, owner
from compcomp.proving.rules.exchange import majorized
from compcomp.proving.rules.facts import MapFacts, keeps_largest
from compcomp.proving.rules.fits import zeros_at_end
from compcomp.proving.rules.kept import Contracts, Run, dropped_stay
from compcomp.proving.rules.normal import normal_form
from compcomp.proving.rules.optimum import enough, feasible
from compcomp.proving.sample import formats_along
from compcomp.proving.session import Session
from compcomp.terms import Abs, Term

# Rule (best selection). Let the loss add over weights, as l(r, v, h) of the dense weight r, the value v and the squared
# norm h >= 0 of the weight's input. Let the normal form of A be a selection S of share s over a partition R, whose ties
# go one by one (not "all", except where conditions rule ties out); or S and a map q after it, over a partition that R
# refines; and then techniques T1, ..., Tk that declare never to increase the loss. Let B be proved to leave, on every
# dense layer W and for every choice, no low-rank term and weights with
#   zeros   at least int(n s) zeros in every group of n weights of R;
#   grid    where there is q: in every group of its partition, values of its grid at the context of W (rule optimum).
# Let m(w) be w, or q(w) in the context of W where there is q. Suppose that for dense weights a, b of one context
#   kept    l(b, m(b)) <= l(b, v)                             for every v, or every v on the grid where there is q;
#   alone   l(b, m(b)) <= l(b, 0);
#   pair    l(a, 0) + l(b, m(b)) <= l(a, m(a)) + l(b, 0)      where f(a) <= f(b), f the score of S.
# Then A loses no more than B on every layer.
#
# In a group of R let S drop D, and let Z be where B leaves zeros. |D| = int(n s) <= |Z|, so |D \ Z| <= |Z \ D|, and
# some injection pairs every a in D \ Z with a b in Z \ D of its own. S drops a and keeps b, and finds the dense
# weights as it comes first: f(a) <= f(b). By `pair`, and `kept` at a, l(a, 0) + l(b, m(b)) <= l(a, v) + l(b, 0) for
# the v that B leaves at a. Sum this over the pairs, `alone` over the other b of Z \ D, `kept` over what is in neither
# set; in both sets the losses are equal. A leaves m(w) at what S keeps: the context that q finds is that of W, as S
# keeps a weight of every group of R (its share is below 1), and is proved to keep one of largest measure
# (facts.keeps_largest). T1, ..., Tk do not raise the loss, as the inputs are the dense ones in A.
#
# Zeros. Of B nothing else is needed, where there is no q: it may be any techniques, whose zeros hold at the end by rule
# kept and are counted as in rule fits. A partition P that refines R with int(|P| s') >= |P| s has enough for every
# shape. At one shape the zeros of P's groups inside a group of R are counted: rows of n weights lose (rows) int(n s').
#
# Distances. Where l(r, v) = f(|r - v|) for a growing convex f (Loss.distance) the three are asked of distances, and
# pair as in rule exchange (`majorized`). Without q, m(w) = w has the distance 0, and only pair is asked: |a| <= |b|.
#
# Grids. With q, `kept` and `alone` are facts.nearest and facts.zero, of the map that rounds midpoints either way: what
# holds for every choice holds for q and for the last map of B, which may round otherwise. A value v on the grid is
# q(u) for some u of the group's measure at most: its last map's value, which is fixed (facts.idempotent, facts.fixes).
# `pair` is asked with these facts at a and b, and with facts.mirrored.


@rule(
    "best selection",
    Dominates,
    needs="a selection first on the left, perhaps a map after it, and techniques that never increase the loss; on the "
    "right as many zeros at the end, and values on the map's grid; a loss that grows with the selection's score",
)
def best_selection(claim: Dominates, session: Session) -> Proof | Refusal:
    """Prove that no sequence with as many zeros (and values on the same grid) loses less: any shape."""
    return _best(claim, session, None)


def best_selection_at(shape: tuple[int, int]) -> Rule:
    """Return the same rule for layers of one shape (out, in), where the zeros of groups are counted."""

    @rule(
        "best selection at one shape", Dominates, needs="as best selection, with zeros counted in layers of this shape"
    )
    def prove(claim: Dominates, session: Session) -> Proof | Refusal:
        found = _best(claim, session, shape)
        return found if isinstance(found, Refusal) else replace(found, reach=Scope.of(shape).describe())

    return prove


def _best(claim: Dominates, session: Session, shape: tuple[int, int] | None) -> Proof | Refusal:
    if claim.part is None:
        return Refusal(f"{claim.loss.name} does not add over weights")
    if claim.left.changes_inputs:
        return Refusal("the left sequence changes the inputs")
    left = normal_form(claim.left, session)
    if not left.atoms or not isinstance(selection := left.atoms[0], Selection) or selection.of_layer is not None:
        return Refusal("the left sequence does not start with a selection by scores of single weights")
    if selection.ties == "all" and not claim.assumes("strict selections"):
        return Refusal('the selection on the left drops more than its share where scores tie (ties="all")')
    following = left.atoms[1] if len(left.atoms) > 1 else None
    step = following if isinstance(following, GridMap | CodebookMap) else None
    contracts = list[Assumption]()
    for technique in left.atoms[1 if step is None else 2 :]:
        if not isinstance(technique, Technique) or claim.loss.name not in technique.promises().never_increases:
            name = technique if isinstance(technique, Technique) else owner(claim, technique)
            return Refusal(f"{name} does not promise never to increase {claim.loss.name}")
        contracts.append(contract(technique, f"never increases {claim.loss.name}"))
    own: Contracts | Refusal | None
    if step is None:
        own = _zeros_left(claim, selection, session, shape)
    else:
        own = _on_grid(claim, selection, step, session, shape)
    if isinstance(own, Refusal):
        return own
    if own is None:
        reason = "the right sequence is not proved to end with as many zeros in each group, and no low-rank term"
        return Refusal(reason, reached=Reached.FACT)
    if not _lemmas_hold(claim, selection, step, session):
        return failing("what is lost by dropping a weight does not grow with the score", session, Reached.FACT)
    assumptions = dict.fromkeys((EXACT, *contracts, *own, *left.assumptions))
    return Proof("best selection", "any shape", tuple(assumptions), tuple(session.queries))


# --------------------------------------------------------------------------------------- the other side


def _zeros_left(
    claim: Dominates, selection: Selection, session: Session, shape: tuple[int, int] | None
) -> Contracts | None:
    """Prove that the right sequence ends with enough zeros and no low-rank term.

    Returns:
        The contracts used, None if there is no proof.
    """
    formats = formats_along(claim.with_sides(claim.right, claim.right), Scope("any"))
    techniques = claim.right.techniques
    if formats is None or any(t.promises().format_varies for t in techniques):
        return None
    contracts = list[Assumption]()
    for technique in techniques:
        if not technique.steps():
            if "factors" not in technique.promises().keeps:
                return None
            contracts.append(contract(technique, "leaves the low-rank term alone"))
    run = Run(techniques, formats, session)
    for partition, share, found in [*_open_shares(run, selection), *zeros_at_end(run)]:
        if enough(partition, share, selection.partition, selection.share, shape):
            return [*contracts, *found]
    return None


def _open_shares(run: Run, selection: Selection) -> Iterator[tuple[Partition, Any, Contracts]]:
    """Yield the selections whose share is the open one of the claim, with the contracts by which their zeros stay."""
    for k, technique in enumerate(run.techniques):
        for step in technique.steps():
            if isinstance(step, Selection) and isinstance(step.share, Unknown):
                contracts = dropped_stay(run, k)
                if not isinstance(contracts, Refusal):
                    yield step.partition, step.share, contracts


def _on_grid(
    claim: Dominates, selection: Selection, step: GridMap | CodebookMap, session: Session, shape: tuple[int, int] | None
) -> Contracts | Refusal:
    """Prove that the right sequence ends with enough zeros, and on the grid of the left one's map.

    Returns:
        The contracts used, or a Refusal.
    """
    if not selection.partition.refines(step.partition):
        return Refusal("a group of the selection on the left has several scales of the map after it")
    if not keeps_largest(selection, step, session, dense=True):
        return failing("the selection on the left is not proved to keep the scale of the map", session, Reached.FACT)
    # The grid may be a codebook, for which no technique declares an optimum.
    grid: Any = replace(step, rounding="any")
    target = Optimum(claim.loss.name, selection.partition, selection.share, grid, (Fraction(1),))
    right = normal_form(claim.right, session)
    own = feasible(claim, right.atoms, target, session, shape)
    return own if isinstance(own, Refusal) else [*own, *right.assumptions]


# ------------------------------------------------------------------------------------------- the lemmas


def _lemmas_hold(claim: Dominates, selection: Selection, step: GridMap | CodebookMap | None, session: Session) -> bool:
    assert claim.part is not None
    a, b, g, h = z3.Reals("w_a w_b h_a h_b")
    norms = [g >= 0, h >= 0]
    if claim.assumes("equal norms"):
        h, norms = g, [g > 0]
    metric, part = claim.loss.distance, claim.part

    def loss(weight: Term, value: Term, norm: Term) -> Term:
        return Abs(weight - value) if metric else part(weight, value, norm)

    zero, values, known = z3.RealVal(0), (a, b), list[Term]()
    if step is not None:
        values, facts = z3.Reals("q_a q_b"), _facts(step, session)
        if facts is None or not metric:
            return False
        known = facts(a, values[0], b, values[1])
    elif not metric:
        v = z3.Real("v")
        if not session.holds("kept", norms, loss(b, b, h) <= loss(b, v, h)):
            return False
    order = scored(selection, a, g, a) <= scored(selection, b, h, b)
    one = [loss(a, zero, g), loss(b, values[1], h)]
    other = [loss(a, values[0], g), loss(b, zero, h)]
    convex = metric and claim.loss.degree > 1
    goal = majorized(one, other) if convex else one[0] + one[1] <= other[0] + other[1]
    return session.holds("pair", [*norms, *known, order], goal)


def _facts(step: GridMap | CodebookMap, session: Session) -> Callable[[Term, Term, Term, Term], list[Term]] | None:
    """Return the facts about a map's values at two weights of one context.

    Return None if the values are not proved to be the nearest.
    """
    facts = MapFacts(replace(step, rounding="any"), session)
    if not (facts.even and facts.zero and facts.inside and facts.nearest and facts.idempotent):
        return None

    def known(a: Term, value: Term, b: Term, other: Term) -> list[Term]:
        found = [Abs(a - value) <= Abs(a), Abs(b - other) <= Abs(b)]
        found += [Abs(a - value) <= Abs(a - other), Abs(b - other) <= Abs(b - value)]
        if facts.mirrored:
            found += [Abs(a - value) <= Abs(a + other), Abs(b - other) <= Abs(b + value)]
        return found

    return known
