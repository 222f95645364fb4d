"""Leave out techniques that change the inputs in claims about weights alone."""

from __future__ import annotations

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Orthogonal
from compcomp.language.technique import Sequence, Technique

# Reduction (weights alone). Let a claim be about weights and formats alone: it says "keeps", or "fits" with no part on
# inputs, or its loss does not look at inputs. Let T declare `changes_inputs`: it leaves weight, reference and format as
# they are. If no technique after T in its sequence looks at inputs (`needs_inputs`), then all of them do the same
# without T, and so T may be left out. Conditions carry over: those on inputs speak of the dense ones, those on scores
# of the steps before T or of steps that look at no inputs. In `f is orthogonal to g`, what comes after a technique of f
# includes g.


def weights_alone(claim: Claim) -> tuple[Claim, tuple[Assumption, ...]]:
    """Return the claim without techniques that change unused inputs, and the contracts that this depends on."""
    if not claim.changes_inputs or claim.compares_inputs:
        return claim, ()
    follows = isinstance(claim, Orthogonal) and claim.right.needs_inputs  # after the left side comes the right one
    sides = [_without(side, follows and number == 0) for number, side in enumerate(claim.sides)]
    shorter = claim.with_sides(*(side for side, _ in sides))
    return shorter, tuple(dict.fromkeys(one for _, contracts in sides for one in contracts))


def _without(sequence: Sequence, follows: bool) -> tuple[Sequence, tuple[Assumption, ...]]:
    """Return the sequence without such techniques. ``follows``: something later looks at the inputs."""
    kept, contracts = list[Technique](), list[Assumption]()
    for technique in reversed(sequence.techniques):
        if technique.promises().changes_inputs and not follows:
            contracts.append(acts_on_inputs(technique))
            continue
        follows = follows or technique.needs_inputs
        kept.append(technique)
    return Sequence(tuple(reversed(kept))), tuple(reversed(contracts))


def acts_on_inputs(technique: Technique) -> Assumption:
    """Return the contract of a technique that changes the inputs."""
    return contract(technique, "acts on the inputs alone")
