"""Prove a claim anew from the promises of its techniques, where no solver is needed.

Each argument takes a few lines; docs/proofs has the arguments. This module shares no code with the prover. Claims that
are not derived here may still be true.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from fractions import Fraction
from itertools import pairwise, product

import numpy as np

from compcomp.errors import NotExactError
from compcomp.language.claim import Claim, Dominates, Equals, Fits, Keeps, Orthogonal, SameState
from compcomp.language.identity import same
from compcomp.language.scheme import Scheme
from compcomp.language.size import DENSE
from compcomp.language.steps import Selection
from compcomp.language.technique import Sequence, Technique, unknowns
from compcomp.layers.state import Format, LayerState

KEPT = ("mask", "n:m", "rank", "shape")
"""The invariants for which a promise to keep is sufficient. For a grid without the value zero it is not."""
SMALL = (1, 2, 3, 4, 8, 16)
"""Multiples of rows and columns of the layers that are tried for one run."""


def derived(claim: Claim) -> bool:
    """Return True if the claim holds for every layer by the promises and parameters of its techniques alone."""
    if parts := claim.parts():
        return all(map(derived, parts.values()))
    if isinstance(claim, Keeps):
        return _keeps(claim)
    if isinstance(claim, Fits):
        return _fits(claim)
    if isinstance(claim, Orthogonal):  # errors are not negative: no more than one of two is no more than both
        both = claim.left >> claim.right
        return any(derived(Dominates(both, part, claim.loss)) for part in claim.sides)
    if isinstance(claim, Dominates) and _stays_dense(claim.left):
        return True
    if isinstance(claim, Equals) and all(map(_stays_dense, claim.sides)):
        return True
    return isinstance(claim, Equals | SameState | Dominates) and _compares(claim)


# ------------------------------------------------------------------------------------ two sequences


def _stays_dense(sequence: Sequence) -> bool:
    """Return True if every technique leaves effective weight and inputs alone where they are the dense ones.

    Such a sequence loses nothing.
    """
    promised = [technique.promises() for technique in sequence]
    return all((p.no_op_on_dense or p.holds_reference) and not p.changes_inputs for p in promised)


def _compares(claim: Equals | SameState | Dominates) -> bool:
    """Return True if both sides do the same, or the left one loses no more.

    In the second case it extends the right one by steps that never increase the loss.
    """
    left, right = _changing(claim.left), _changing(claim.right)
    if not isinstance(claim, SameState):
        left, right = _in_last_basis(left), _in_last_basis(right)
    if left.changes_basis or right.changes_basis:
        return _same(left.techniques, right.techniques) and left.is_deterministic
    if isinstance(claim, Dominates) and not claim.loss.needs_inputs:
        left, right = _weights_alone(left), _weights_alone(right)
    if not right.is_deterministic:
        return False
    first, second = _active(left), _active(right)
    more = first[len(second) :]
    if not _same(first[: len(second)], second):
        return False
    if isinstance(claim, Equals | SameState):
        return not more and left.is_deterministic
    promised = [technique.promises() for technique in more]
    return all(claim.loss.name in p.never_increases and (p.any_inputs or not left.changes_inputs) for p in promised)


def _same(left: Items[Technique], right: Items[Technique]) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def _looks(technique: Technique) -> bool:
    """Return True if the result of a technique depends on the inputs, or it changes them."""
    return technique.needs_inputs or technique.needs_magnitudes or technique.needs_tokens


def _changing(sequence: Sequence) -> Sequence:
    """Return the sequence without techniques that change nothing at their place, as far as promises show it."""
    found = list[Technique]()
    for technique in sequence:
        promises, before = technique.promises(), [t.promises() for t in found]
        plain = all(p.changes_inputs or p.changes_basis or p.leaves_weight for p in before)
        dense = plain and all(p.holds_reference and not p.changes_inputs for p in before)
        seen = {"always": True, "plain": plain, "plain dense": dense, "on a grid": _on_a_grid(found)}
        seen |= {"masked": plain or _masked(found), "without factors": all(map(_adds_no_factors, found))}
        again = bool(found) and same(found[-1], technique)
        if any(seen[name] for name in promises.no_op) or (again and promises.idempotent):
            continue
        if again and plain and promises.involution:
            found.pop()
        else:
            found.append(technique)
    return Sequence(tuple(found))


def _masked(techniques: Items[Technique]) -> bool:
    """Return True if all that the mask drops is zero, and no rank is recorded.

    The first technique finds no mask, and what it sets up holds after it. Steps record no rank.
    """
    return bool(techniques) and bool(techniques[-1].steps()) and _all_keep("mask", techniques[1:])


def _adds_no_factors(technique: Technique) -> bool:
    promises = technique.promises()
    return bool(technique.steps()) or promises.changes_inputs or "factors" in promises.keeps


def _on_a_grid(techniques: Items[Technique]) -> bool:
    """Return True if the format after these techniques records a grid.

    That is so if the last step that is no selection sets it up, and no technique without steps follows. Of other
    sequences one run shows it.
    """
    for technique in reversed(techniques):
        if not technique.steps():
            break
        if not _selects_alone(technique):
            return True
    run = Keeps(Sequence(tuple(techniques)), "grid")
    formats = None if not techniques or _open(run.left) else _formats(run)
    return formats is not None and formats[-1].grid is not None


def _in_last_basis(sequence: Sequence) -> Sequence:
    """Return the sequence without changes of basis at its end: they leave effective weight, inputs and losses alone."""
    kept = len(sequence.techniques)
    while kept and sequence.techniques[kept - 1].promises().changes_basis:
        kept -= 1
    return Sequence(sequence.techniques[:kept])


def _weights_alone(sequence: Sequence) -> Sequence:
    """Return the sequence without changes of the inputs that no later technique reads, for a loss of weights."""
    found, looked = list[Technique](), False
    for technique in reversed(sequence.techniques):
        if technique.promises().changes_inputs and not looked:
            continue
        looked = looked or _looks(technique)
        found.append(technique)
    return Sequence(tuple(reversed(found)))


def _active(sequence: Sequence) -> tuple[Technique, ...]:
    """Return the techniques that change something.

    Changes of the inputs come ahead of techniques that do not read them. A technique that is a no-op on the dense layer
    is left out while the layer is still the dense one.
    """
    found, at_reference = list[Technique](), True
    for number, technique in enumerate(sequence):
        promises = technique.promises()
        if promises.changes_inputs:
            at_reference, place = False, len(found)
            while place and not _looks(found[place - 1]):
                place -= 1
            found.insert(place, technique)
            continue
        later = sequence.techniques[number + 1 :]
        unseen = "factors" in promises.keeps or not any(t.promises().sees_factors for t in later)
        if at_reference and promises.no_op_on_dense and unseen:
            continue
        at_reference = at_reference and promises.holds_reference
        found.append(technique)
    return tuple(found)


# -------------------------------------------------------------------------------------- invariants


def _keeps(claim: Keeps) -> bool:
    sequence, techniques, invariant = claim.left, claim.left.techniques, claim.invariant
    if invariant in KEPT and _all_keep(invariant, techniques[1:]):
        return True
    if sequence.changes_basis:
        return False
    if invariant == "mask" and _restored(techniques):
        return True
    if invariant in ("mask", "shape"):
        return _lines_stay(techniques)
    formats = _formats(claim)
    if formats is None:
        return False
    if invariant == "n:m":
        return not _open(sequence) and _pattern_anew(techniques, formats)
    return _rank_stays(techniques, formats) if invariant == "rank" else _grid_stays(techniques, formats)


def _all_keep(invariant: str, techniques: Items[Technique]) -> bool:
    return all(invariant in technique.promises().keeps for technique in techniques)


def _restored(techniques: Items[Technique]) -> bool:
    """Return True if all weights that masks drop are set back to zero at some place, and stay zero.

    Up to that place each mask drops all that the one before it drops. Steps add to the mask, and so do techniques that
    promise to keep or to restore it.
    """
    places = [k for k, technique in enumerate(techniques) if k and "mask" in technique.promises().restores]
    if not places:
        return False
    adds = (t.steps() or "mask" in t.promises().keeps | t.promises().restores for t in techniques[1 : places[-1]])
    return all(adds) and _all_keep("mask", techniques[places[-1] + 1 :])


def _lines_stay(techniques: Items[Technique]) -> bool:
    """Return True if the first technique only removes rows (or columns), and all later ones leave lines of zeros.

    Before the last technique nothing else may be dropped: the techniques between only change the inputs, or only add to
    the low-rank branch. The weights that the last one drops itself are zero after it.
    """
    first = techniques[0].promises()
    if techniques[0].steps() or first.removes_rows == first.removes_columns:
        return False
    lines = "rows" if first.removes_rows else "columns"
    others = [technique.promises() for technique in techniques[1:]]
    between = all(p.changes_inputs or (p.leaves_weight and lines in p.zeros) for p in others[:-1])
    return between and all(p.changes_inputs or lines in p.zeros for p in others[-1:])


def _pattern_anew(techniques: Items[Technique], formats: Items[Format]) -> bool:
    """Return True if some selection leaves every pattern recorded so far, and all patterns are kept from there on.

    A promise to keep them is about those that the format then has.
    """
    for k, technique in enumerate(techniques):
        last = technique.steps()[-1] if technique.steps() else None
        if not isinstance(last, Selection) or not _all_keep("n:m", techniques[k + 1 :]):
            continue
        recorded = {pattern for form in formats[: k + 2] for pattern in form.pattern or ()}
        known = [{m: n for n, m in form.pattern or ()} for form in formats[k + 1 :]]
        if all(_leaves(last, n, m) and all(form.get(m, m) <= n for form in known) for n, m in recorded):
            return True
    return False


def _leaves(selection: Selection, n: int, m: int) -> bool:
    """Return True if at most ``n`` of every ``m`` consecutive weights of a row are left after the selection."""
    size, share = selection.partition.size, selection.share
    if size is None or not isinstance(share, Fraction):
        return False
    left = size - int(size * share)
    return (m % size == 0 and m // size * left <= n) or (size % m == 0 and left <= n)


def _rank_stays(techniques: Items[Technique], formats: Items[Format]) -> bool:
    """Return True if only techniques that keep the rank follow the one that sets it up."""
    if formats[-1].rank is None:
        return False
    source = max(k for k, form in enumerate(formats) if form.rank is None)
    return not techniques[source].steps() and _all_keep("rank", techniques[source + 1 :])


def _grid_stays(techniques: Items[Technique], formats: Items[Format]) -> bool:
    """Return True if a technique sets up the last grid, zero is on it, and it stays.

    Later techniques may keep it, or only set weights to zero.
    """
    changed = [k for k, (before, after) in enumerate(pairwise(formats)) if after.grid is not before.grid]
    grid = formats[-1].grid
    if not changed or grid is None or not grid.zero or techniques[changed[-1]].steps():
        return False
    later = techniques[changed[-1] + 1 :]
    return all("grid" in t.promises().keeps or _selects_alone(t) for t in later)


def _selects_alone(technique: Technique) -> bool:
    return bool(technique.steps()) and all(isinstance(step, Selection) for step in technique.steps())


# ----------------------------------------------------------------------------------------- schemes


def _fits(claim: Fits) -> bool:
    """Return True if every part of the scheme is satisfied. About parts on grids nothing is derived."""
    sequence, scheme = claim.left, claim.scheme
    formats = None if sequence.changes_basis else _formats(claim)
    if formats is None or _open(sequence) or scheme.weights < DENSE or scheme.inputs < DENSE:
        return False
    end, zeros = formats[-1], list(_zeros(sequence.techniques, formats))
    if end.factors is not None and end.factors.rank > scheme.branch_rank:
        return False
    if scheme.rank is not None:
        known = end.rank is not None and end.rank <= scheme.rank
        if not (known and _rank_stays(sequence.techniques, formats)):
            return False
    if scheme.pattern is not None and not any(_leaves(selection, *scheme.pattern) for selection in zeros):
        return False
    return not scheme.sparsity or any(_sparse(selection, scheme) for selection in zeros)


def _zeros(techniques: Items[Technique], formats: Items[Format]) -> list[Selection]:
    """Return the selections that are the last step of a technique and whose dropped weights are all zero at the end."""
    found = []
    for k, technique in enumerate(techniques):
        last = technique.steps()[-1] if technique.steps() else None
        kept = formats[k].mask is None and _all_keep("mask", techniques[k + 1 :])
        if isinstance(last, Selection) and (kept or _restored(techniques[k:])):
            found.append(last)
    return found


def _sparse(selection: Selection, scheme: Scheme) -> bool:
    """Return True if the selection drops as much as the scheme asks for, in each of the scheme's groups."""
    partition, share, size = selection.partition, selection.share, selection.partition.size
    if not isinstance(share, Fraction):
        return False
    if partition == scheme.share_of:
        return share >= scheme.sparsity
    return size is not None and partition.refines(scheme.share_of) and int(size * share) >= size * scheme.sparsity


# ----------------------------------------------------------------------------------------- one run


def _open(sequence: Sequence) -> bool:
    """Return True if parameters are left open. A run then shows the numbers for only one of their values."""
    return any(unknowns(technique) for technique in sequence)


def _formats(claim: Claim) -> list[Format] | None:
    """Return the formats of a run on one small layer, from the dense layer on.

    None if they say nothing about other layers. Which fields are set, and the numbers in them, depend on techniques and
    parameters alone, unless `format_varies`.
    """
    if any(technique.promises().format_varies for technique in claim.left):
        return None
    claim = claim.instances()[0]
    units = claim.row_unit, claim.unit
    for rows, columns in sorted(product(SMALL, SMALL), key=lambda shape: (shape == (1, 1), sum(shape))):
        shape = rows * units[0], columns * units[1]
        if not claim.fits(shape):
            continue
        weight, inputs = np.full(shape, Fraction(0), dtype=object), np.full((shape[1], shape[1]), Fraction(0))
        for k in range(min(shape)):
            weight[k, k] = Fraction(k + 1)
        for k in range(shape[1]):
            inputs[k, k] = Fraction(1)
        try:
            return [state.format for state in claim.left.trace(LayerState.dense(weight, inputs))]
        except NotExactError:
            return None
    return None
