"""Compare a joint step with a sequence: the best of a set of weights against one that is proved to be in the set."""

from __future__ import annotations

from collections.abc import Sequence as Items
from fractions import Fraction

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates
from compcomp.language.identity import same_but
from compcomp.language.parameters import Unknown
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import Optimum, ScaledMap, Selection, Step, at_most
from compcomp.language.technique import Technique
from compcomp.layers.partition import Partition
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.reasons import failing, listed, not_additive, owner
from compcomp.proving.rules.facts import MapFacts, fixes, keeps_largest
from compcomp.proving.rules.normal import normal_form
from compcomp.proving.session import Session

# Rule (optimum). Let J declare an optimum (language/steps.py): from weights w it leaves one of the set F(w) of all
# weights that have enough zeros in every group of a partition R and lie, in every group of a partition P, on the grid
# of some ratio; and none of F(w) has less loss f against w. f adds over weights. Let B be a sequence that is proved to
# leave, on every dense layer W and for every choice, a weight of F(W) and no low-rank term. Let the normal form of A
# be J followed by T1, ..., Tk that declare never to increase f, and let no technique change the inputs. Then A loses
# no more than B: J finds the dense weight W, so f of what it leaves is at most that of any weight in F(W), and T1, ...,
# Tk do not raise it. What either leaves free is of no account, as the contract holds for every choice.
#
# B leaves a weight of F(W) if it consists of selections and maps with q(0) = 0 (then a zero stays zero), or of one
# technique with an optimum of its own and selections after it, and
#   zeros  the share s of J is 0, or some selection of B has at least the share s over R, or a share s' over blocks of m
#          inside the groups of R with int(m s') >= m s: a group of R of n weights consists of such blocks, as both fit
#          the layer, and loses at least n s. A selection drops no fewer than int(n s') of n, and int(n s') >= int(n s).
#   grid   ratio 1 is one of J's, and the last map q of B is over P with J's measure, and q has J's levels or each of
#          its values is one of J's (facts.fixes); its values lie on its grid (idempotent: asked), and after it come
#          only selections, which leave a value or make it 0, that is k = 0. Its context in a group is that of W, or
#          the whole group is 0 before it, and then after it, as every step before it
#            is a map over P of the same measure that is proved to keep the largest measure of its group, or
#            is a selection of which it is proved (facts.keeps_largest; for the dense weights where it comes first) that
#            dropping x of largest measure and keeping y of one group leaves y with the same measure. Let its partition
#            be S. If P refines S: of a group of P either nothing is left, or some y is, and either x of largest measure
#            is left or y measures the same. If S refines P: the group of S that holds x keeps some y, as the share is
#            below 1 and ties are not "all".
#   own    the technique with an optimum has J's measure, levels and P, its ratios are among J's, nothing but selections
#          comes after it, and `zeros` holds of its own zeros or of a selection.
# Techniques with an optimum declare to keep "factors": on the dense layer there are none after them either. For B its
# normal form stands, whose results are those of B, choice by choice.


@rule(
    "optimum",
    Dominates,
    needs="a left sequence that begins with a technique that declares an optimum of this loss, and a right one that is "
    "proved to end in the set that this is the best of",
)
def joint_optimum(claim: Dominates, session: Session) -> Proof | Refusal:
    """Prove that the left sequence takes the best of a set of weights that contains the right one's result."""
    if claim.loss.element is None:
        return not_additive(claim)
    if claim.changes_inputs:
        return Refusal("a technique changes the inputs")
    left = normal_form(claim.left, session)
    joint, rest = (left.atoms[0], left.atoms[1:]) if left.atoms else (None, ())
    optimum = _optimum(joint)
    if optimum is None:
        first = "nothing" if joint is None else str(joint) if isinstance(joint, Technique) else owner(claim, joint)
        return Refusal(f"the left sequence begins with {first}, which declares no optimum")
    if optimum.loss != claim.loss.name:
        return Refusal(f"{joint} is the optimum of {optimum.loss}, not of {claim.loss.name}")
    contracts = [contract(joint, f"leaves the weight of least {optimum.loss} among those it may choose from")]
    for technique in rest:
        if not isinstance(technique, Technique) or claim.loss.name not in technique.promises().never_increases:
            name = str(technique) if isinstance(technique, Technique) else owner(claim, technique)
            return Refusal(f"{name} does not promise never to increase {claim.loss.name}", reached=Reached.FACT)
        contracts.append(contract(technique, f"never increases {claim.loss.name}"))
    right = normal_form(claim.right, session)
    own = feasible(claim, right.atoms, optimum, session)
    if isinstance(own, Refusal):
        return own
    assumptions = dict.fromkeys((EXACT, *contracts, *own, *left.assumptions, *right.assumptions))
    return Proof("optimum", "any shape", tuple(assumptions), tuple(session.queries))


def feasible(
    claim: Claim,
    atoms: Items[Step | Technique],
    optimum: Optimum,
    session: Session,
    shape: tuple[int, int] | None = None,
) -> list[Assumption] | Refusal:
    """Prove that the right sequence ends in the set that an optimum chooses from, from every dense layer.

    Args:
        claim: names the techniques in refusals.
        atoms: the right sequence in normal form.
        optimum: defines the set.
        session: asks the facts about steps.
        shape: (out, in) of the layer, None for every shape.

    Returns:
        The contracts used, or a Refusal.
    """
    contracts, first = list[Assumption](), atoms[0] if atoms else None
    if (other := _optimum(first)) is not None:
        atoms = atoms[1:]
        contracts.append(contract(first, "leaves a weight out of those it may choose from"))
    steps = [step for step in atoms if isinstance(step, Selection | ScaledMap)]
    if len(steps) < len(atoms):
        others = [a for a in atoms if not isinstance(a, Selection | ScaledMap)]
        names = listed(a if isinstance(a, Technique) else owner(claim, a) for a in others)
        return Refusal(f"{names} on the right is neither a selection nor a map to an even grid", reached=Reached.FACT)
    for step in steps:
        if isinstance(step, ScaledMap) and not MapFacts(step, session).zero:
            return failing(f"{owner(claim, step)} is not proved to send 0 to 0", session, Reached.FACT)
    cuts = [(step.partition, step.share) for step in steps if isinstance(step, Selection)]
    cuts += [] if other is None else [(other.partition, other.share)]
    wanted, groups = optimum.share, optimum.partition
    if wanted != 0 and not any(enough(part, share, groups, wanted, shape) for part, share in cuts):
        share = f"{optimum.share} of {optimum.partition}"
        return Refusal(f"no selection on the right drops as much as the optimum has to ({share})", reached=Reached.FACT)
    if other is not None:
        inside = _smaller(other, optimum) and len(cuts) == len(steps) + 1
    else:
        inside = _on_grid(steps, optimum, session)
    if not inside:
        reason = "the right sequence is not proved to end on a grid of the optimum, at the scale of the dense layer"
        return failing(reason, session, Reached.FACT)
    return contracts


def _optimum(atom: Step | Technique | None) -> Optimum | None:
    """Return the optimum that a technique declares, if it leaves the low-rank term alone."""
    if not isinstance(atom, Technique) or "factors" not in atom.promises().keeps:
        return None
    return atom.promises().optimum


def enough(
    partition: Partition,
    share: Fraction | Unknown,
    groups: Partition,
    wanted: Fraction | Unknown,
    shape: tuple[int, int] | None,
) -> bool:
    """Return True if this share of every group of ``partition`` is at least the ``wanted`` share of each of ``groups``.

    Both round down, group by group.

    Args:
        partition: the groups in which ``share`` is zero.
        share: a part of 1, perhaps open.
        groups: the groups in which ``wanted`` has to be zero.
        wanted: a part of 1, perhaps open.
        shape: (out, in) of the layer, None for every shape that both fit.
    """
    if partition == groups and at_most(wanted, share):
        return True
    if isinstance(share, Unknown) or isinstance(wanted, Unknown) or not partition.refines(groups):
        return False
    size = partition.size
    if size is not None and int(size * share) >= size * wanted:
        return True
    if shape is None:
        return False
    inner, outer = partition.group_size(shape), groups.group_size(shape)
    return outer // inner * int(inner * share) >= int(outer * wanted)


def _smaller(inner: Optimum, outer: Optimum) -> bool:
    """Return True if every grid of the inner optimum is one of the outer."""
    return same_but(inner.grid, outer.grid, "rounding") and set(inner.ratios) <= set(outer.ratios)


def _on_grid(steps: Items[Step], optimum: Optimum, session: Session) -> bool:
    """Return True if the last map's values are proved to lie on the optimum's grid at the dense context.

    A group may also be all zeros instead.
    """
    places = [k for k, step in enumerate(steps) if isinstance(step, ScaledMap)]
    if not places or 1 not in optimum.ratios:
        return False
    last, grid = steps[places[-1]], optimum.grid
    assert isinstance(last, ScaledMap)
    if not same_but(last, grid, "levels", "rounding"):  # of codebooks the codes are the same
        return False
    if not same_but(last, grid, "rounding") and not fixes(grid, last, session):
        return False
    if not MapFacts(last, session).idempotent or not MapFacts(grid, session).even:
        return False
    return all(_keeps_context(step, last, session, dense=not k) for k, step in enumerate(steps[: places[-1]]))


def _keeps_context(step: Step, grid: ScaledMap, session: Session, *, dense: bool) -> bool:
    if isinstance(step, ScaledMap):
        facts = MapFacts(step, session)
        return same_but(step, grid, "levels", "rounding") and facts.inside and facts.keeps_largest
    assert isinstance(step, Selection)
    keeps_some = step.partition.refines(grid.partition) and step.ties != "all"
    if not keeps_some and not grid.partition.refines(step.partition):
        return False
    return keeps_largest(step, grid, session, dense=dense)
