"""Prove that a last selection that drops only zeros changes no weight: any shape."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import z3

from compcomp.language.assumption import Assumption
from compcomp.language.claim import Claim, Dominates, Equals, Scope
from compcomp.language.parameters import Unknown
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import Selection, at_most
from compcomp.language.technique import Sequence, Technique
from compcomp.layers.partition import Partition
from compcomp.proving.functions import scored
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.rules.fits import zeros_at_end
from compcomp.proving.rules.kept import Contracts, Run, dropped_stay
from compcomp.proving.rules.normal import normal_form
from compcomp.proving.sample import formats_along
from compcomp.proving.session import Session

# Rule (zero selection). Let S be a selection of share s in every group of a partition P, with a score f of single
# weights. Let B be a sequence, and let
#   zeros alone score least   f(0, g, p) = f(0, h, r), and f(0, g, p) < f(w, h, r) for every w other than 0,
#                             for all norms g, h >= 0 and all dense weights p, r;
#   enough zeros              after B at least int(|G| s) weights of every group G of P are zero.
# Then the weight after B >> S is the weight after B, on every layer and for every choice.
#   Let k = int(|G| s) in a group G. If k = 0, nothing goes. Otherwise at least k weights of G have the least score, as
#   they are zero, and no other weight has it. So the k-th least score is that of a zero. With ties "first" and "any" k
#   weights go that score no more: they are zeros. With ties "all" all weights of that score go: the zeros. A weight
#   that goes becomes 0, which it was, and no other weight changes.
# A selection leaves the low-rank term, the inputs and their basis alone. So B >> S equals B. It may leave another mask.
#
# If A and B without such selections at their ends have one normal form (rule normal) and are deterministic, they leave
# equal states, so A equals B; and A loses no more than B under every loss, as a loss depends on the dense layer, the
# effective weight and the inputs. S itself may leave its ties free.
#
# Enough zeros, from zeros in groups of R at a share of s' that stay to the end of B (rule fits, zeros): if R = P and
# s <= s', as int(|P| s) grows with s; or if R cuts groups of P into blocks of c, of which int(c s') >= c s are zero, as
# |G| is a multiple of c. With open parameters: if R = P and s, s' are one parameter.


@rule(
    "zero selection",
    Dominates,
    Equals,
    needs="sequences with one normal form, once selections at their ends that drop zeros alone are left out",
)
def zero_selection(claim: Claim, session: Session) -> Proof | Refusal:
    """Prove that both sequences are the same except for selections at their ends that drop only zeros."""
    found = [_shortened(claim, side, session) for side in claim.sides]
    if all(sequence == side for (sequence, _), side in zip(found, claim.sides, strict=True)):
        return Refusal("neither side ends with a selection that is proved to drop zeros alone")
    left, right = (normal_form(sequence, session) for sequence, _ in found)
    if left.atoms != right.atoms:
        reason = "the sequences differ in more than selections at their ends that drop zeros alone"
        return Refusal(reason, reached=Reached.FACT)
    if not (left.deterministic and right.deterministic):
        return Refusal("a technique leaves choices free, so two runs of it may differ", reached=Reached.FACT)
    contracts = (one for _, each in found for one in each)
    assumptions = dict.fromkeys((EXACT, *contracts, *left.assumptions, *right.assumptions))
    return Proof("zero selection", "any shape", tuple(assumptions), tuple(session.queries))


def _shortened(claim: Claim, side: Sequence, session: Session) -> tuple[Sequence, list[Assumption]]:
    """Return the sequence without last selections that drop only zeros, and the contracts that this depends on."""
    contracts: list[Assumption] = []
    while side.techniques:
        before = Sequence(side.techniques[:-1])
        more = _drops_zeros(claim, before, side.techniques[-1], session)
        if more is None:
            break
        side, contracts = before, [*contracts, *more]
    return side, contracts


def _drops_zeros(claim: Claim, before: Sequence, last: Technique, session: Session) -> Contracts | None:
    """Return the contracts by which the technique drops only zeros, None if that is not proved."""
    steps = last.steps()
    if not steps or not all(isinstance(step, Selection) and step.of_layer is None for step in steps):
        return None
    if not before.techniques or any(t.promises().format_varies for t in before):
        return None
    formats = formats_along(claim.with_sides(before, before), Scope("any"))
    if formats is None:
        return None
    run, contracts = Run(before.techniques, formats, session), list[Assumption]()
    for step in steps:  # each leaves the zeros that it finds
        assert isinstance(step, Selection)
        found = next((own for zeros in _zeros(run) if (own := _enough(step, zeros)) is not None), None)
        if found is None or not _zeros_alone_score_least(step, session):
            return None
        contracts += found
    return contracts


OpenZeros = tuple[Partition, Fraction | Unknown, Contracts]
"""Like ``Zeros`` of rule fits, but the share may be an open parameter."""


def _zeros(run: Run) -> Iterator[OpenZeros]:
    """Yield groups, the least share of each that is zero at the end, and the contracts that this depends on."""
    yield from zeros_at_end(run)
    for k, technique in enumerate(run.techniques):  # shares left open
        steps = [s for s in technique.steps() if isinstance(s, Selection) and not isinstance(s.share, Fraction)]
        contracts = dropped_stay(run, k) if steps else []
        if not isinstance(contracts, Refusal):
            yield from ((step.partition, step.share, contracts) for step in steps)


def _enough(step: Selection, zeros: OpenZeros) -> Contracts | None:
    """Return the contracts if so many zeros are enough for the selection to drop only zeros, else None."""
    partition, share, contracts = zeros
    if partition == step.partition and at_most(step.share, share):
        return contracts
    size = partition.size
    if size is None or not isinstance(share, Fraction) or not isinstance(step.share, Fraction):
        return None
    return contracts if partition.refines(step.partition) and int(size * share) >= size * step.share else None


def _zeros_alone_score_least(selection: Selection, session: Session) -> bool:
    w, g, h, p, r = z3.Reals("w g h p r")
    zero = scored(selection, z3.RealVal(0), g, p)
    same = zero == scored(selection, z3.RealVal(0), h, r)
    goal = z3.And(same, z3.Implies(w != 0, zero < scored(selection, w, h, r)))
    return session.holds("zeros alone score least (selection)", [g >= 0, h >= 0], goal)
