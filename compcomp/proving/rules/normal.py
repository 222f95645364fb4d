"""Sequences in a normal form: without what changes nothing. Equal normal forms give equal states."""

from __future__ import annotations

from dataclasses import dataclass

import z3

from compcomp.language.steps import Element, GridMap, Selection, Step, at_most
from compcomp.language.technique import Sequence, Technique
from compcomp.proving.rules.facts import map_facts, settled
from compcomp.proving.session import Session

# Two states are equal when they agree in weight, reference, mask, grid and the product of their factors;
# techniques map equal states to equal states, as they see factors through that product alone. A normal form
# maps every dense state to a state equal to what the sequence maps it to. Three rewritings lead to it.
#
# (rest) Call a state s *at the reference* when its effective weight equals its reference. Let T declare `rests`:
# for every s at the reference, T(s) equals s. Let H declare `holds_reference`: for every s at the reference, H(s)
# is at the reference. The dense state is at the reference. So T may be left out of H1 >> ... >> Hk >> T >> R.
#
# (selections) Let two selections by one score f in one partition follow each other directly, both with ties
# "first" or both "all". Let either f not depend on the current weight (facts.settled), or a zero weight score f0, the
# same for all, and no weight score less. Then both together equal the one with the larger share.
#   f does not depend on the current weight: both see one order, of (score, index) or of scores. Ties "first" drop the
#   first k1 and the first k2 of it, ties "all" all up to the k1-th and all up to the k2-th: the larger set holds the
#   smaller. What is dropped twice is 0 and masked as if once.
#   Zero scores least, ties "first": let D be the k1 weights first in the order (score, index), and k2 the second
#   count. If some weight outside D scores f0, all of D scored f0 before and does after: the order is as it was, and
#   the second selection takes its first k2. Otherwise the weights of score f0 are now just those of D, and come first,
#   and the others follow in their old order. Either way what is dropped in the end is the first max(k1, k2) of the old
#   order.
#   Zero scores least, ties "all": D is the set {f <= t1}. If |D| >= k2 the second threshold is f0, which nothing
#   outside D scores unless t1 = f0: then it is in D. Otherwise D comes first and the others follow as before: the
#   threshold is that of k2 among the old scores, where it is not below t1. In both cases the larger set is dropped.
#
# (maps) Let one map follow itself directly, let it be a function, idempotent, and keep the largest measure of its
# group inside the measure it had (facts.py). Then the context of the second use is that of the first, so is the
# grid, and every value is a fixed point: the second use changes nothing.


@dataclass(frozen=True)
class Normal:
    """A sequence's normal form. ``atoms``: steps and techniques without steps. ``resting``: what was left out."""

    atoms: tuple[Step | Technique, ...]
    resting: tuple[Technique, ...]
    absorbed: bool
    deterministic: bool

    @property
    def assumptions(self) -> tuple[str, ...]:
        """One line for every technique whose resting is used."""
        lines = (f"{t} changes nothing while the layer still equals the dense one (its contract)" for t in self.resting)
        return tuple(dict.fromkeys(lines))


def normal_form(sequence: Sequence, session: Session) -> Normal:
    """Rewrite a sequence until nothing is left to leave out."""
    atoms, resting, absorbed, at_reference = list[Step | Technique](), list[Technique](), False, True
    for technique in sequence:
        promises = technique.promises()
        if at_reference and promises.rests:
            resting.append(technique)
            continue
        at_reference = at_reference and promises.holds_reference
        for atom in technique.steps() or (technique,):
            merged = _absorbed(atoms[-1], atom, session) if atoms else None
            if merged is None:
                atoms.append(atom)
            else:
                atoms[-1], absorbed = merged, True
    return Normal(tuple(atoms), tuple(resting), absorbed, deterministic(sequence))


def deterministic(sequence: Sequence) -> bool:
    """Equal inputs give equal results: no convention is left free."""
    return all(t.promises().deterministic for t in sequence)


def _absorbed(first: Step | Technique, second: Step | Technique, session: Session) -> Step | None:
    """The one step that two neighbours equal, or None."""
    if isinstance(first, Selection) and isinstance(second, Selection):
        same = (first.score, first.partition, first.ties) == (second.score, second.partition, second.ties)
        if same and first.ties != "any" and (_zero_scores_least(first, session) or settled(first, session)):
            if at_most(second.share, first.share):
                return first
            return second if at_most(first.share, second.share) else None
    if isinstance(first, GridMap) and first == second:
        facts = map_facts(first, session)
        if facts.function and facts.idempotent and facts.inside and facts.keeps_largest:
            return first
    return None


def _zero_scores_least(selection: Selection, session: Session) -> bool:
    w, g, h, p, r = z3.Reals("w g h p r")
    zero = selection.score(Element(z3.RealVal(0), g, p))
    goal = z3.And(
        zero == selection.score(Element(z3.RealVal(0), h, r)),
        zero <= selection.score(Element(w, h, r)),
    )
    return session.holds("zero scores least (selection)", [g >= 0, h >= 0], goal)
