"""Techniques that change the basis of the inputs, in claims about losses and effective weights."""

from __future__ import annotations

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals, Orthogonal
from compcomp.language.refusal import Refusal
from compcomp.language.technique import Sequence, Technique
from compcomp.proving.reasons import listed
from compcomp.proving.rules.inputs import weights_alone
from compcomp.proving.rules.scaling import without_scalings
from compcomp.proving.session import Session

# Reduction (basis). Let T declare `changes_basis`: effective weight, reference and inputs are after it what they were.
# Every loss is a function of these, and "A equals B" compares them alone. So T may be left out where it comes last: at
# the end of either side of "A dominates B" and "A equals B", and at the end of g in "f is orthogonal to g", whose three
# sequences are f >> g, f and g. This holds from every state.
#
# Which rules hold in a changed basis. A state with a transform M holds weight and format in the basis of M x; a
# technique is shown the *view*: the state of the layer W M^-1 on the inputs M x, without a transform. Its contracts and
# encoding speak of the view. Of it and the state itself
#   weight, mask, pattern, grid, rank, cut   are the same ones: what is kept in the view is kept in the state;
#   at the reference                         holds of both or of neither, as M is invertible;
#   equal                                    states with one M have equal views, and lead to equal states;
#   the output loss                          is the same, |(W' - W) M^-1 M X| (`Loss.any_basis`); losses of weights
#                                            are others, unless nothing changes.
# A rule may be used of a claim with a technique that changes the basis only if its argument needs no more than this;
# these rules are listed in ANY_BASIS (rules/__init__.py). Of the others none is asked, and at one shape a formula is
# written without reductions.


def simplified(claim: Claim, session: Session) -> tuple[Claim, tuple[Assumption, ...]]:
    """The claim without techniques that change nothing it speaks of, and the contracts that this depends on."""
    contracts: list[Assumption] = []
    while True:
        shorter, more = weights_alone(claim)
        shorter, others = _ends(shorter)
        shorter, scalings = without_scalings(shorter, session)
        if not more and not others and not scalings:
            return claim, tuple(dict.fromkeys(contracts))
        claim = shorter
        contracts += (*more, *others, *scalings)


def _ends(claim: Claim) -> tuple[Claim, tuple[Assumption, ...]]:
    if not isinstance(claim, Dominates | Equals | Orthogonal):
        return claim, ()
    left, of_left = (claim.left, ()) if isinstance(claim, Orthogonal) else _shortened(claim.left)
    right, of_right = _shortened(claim.right)
    return claim.with_sides(left, right), of_left + of_right


def _shortened(sequence: Sequence) -> tuple[Sequence, tuple[Assumption, ...]]:
    """The sequence without what changes the basis at its end."""
    techniques, contracts = list(sequence.techniques), tuple[Assumption, ...]()
    while techniques and techniques[-1].promises().changes_basis:
        contracts += (changes_basis(techniques.pop()),)
    return Sequence(tuple(techniques)), contracts


def changes_basis(technique: Technique) -> Assumption:
    """The contract of a technique that changes the basis of the inputs."""
    return contract(technique, "changes nothing but the basis of the inputs")


def unlike_bases(claim: Claim, name: str) -> Refusal:
    """Refuse a claim with a technique that changes the basis of the inputs, for a rule that does not hold then."""
    changing = listed(t for sequence in claim.sequences for t in sequence if t.promises().changes_basis)
    return Refusal(f"{changing} changes the basis of the inputs, in which the rule does not hold", name)
