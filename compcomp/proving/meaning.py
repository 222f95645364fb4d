"""What it means for a claim to fail, once, for every reading: numbers, batches, z3 terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compcomp.algebra.grids import off_grid
from compcomp.algebra.low_rank import rank_exceeds
from compcomp.language.claim import Claim
from compcomp.language.scheme import Scheme
from compcomp.language.size import DENSE, value_bits
from compcomp.layers import walk
from compcomp.layers.partition import Partition
from compcomp.layers.state import Grid, LayerState
from compcomp.layers.walk import apart
from compcomp.terms import And, Array, Choices, If, Not, Or, Sum, Term

Run = Sequence[LayerState]
"""The states of a layer from before the first technique to after the last."""


def fails(claim: Claim, runs: Sequence[Run], tolerance: float = 0) -> Term:
    """Whether these runs of the claim's sequences contradict it, as a truth-valued term.

    They do where every condition of the claim holds and what it says is false. ``tolerance``: relative slack
    for floats; 0 is exact.
    """
    failure = _contradicts(claim, runs, tolerance)
    return And(conditions_hold(claim, runs, tolerance), failure) if claim.given else failure


def conditions_hold(claim: Claim, runs: Sequence[Run], tolerance: float = 0) -> Term:
    """Whether all conditions of the claim hold along these runs; true where it has none."""
    return And(True, *(condition.holds(claim, runs, tolerance) for condition in claim.given))


def _contradicts(claim: Claim, runs: Sequence[Run], tolerance: float) -> Term:
    last = [run[-1] for run in runs]
    if claim.kind == "dominates":
        assert claim.loss is not None
        left, right = (claim.loss.of(state) for state in last)
        return left - right > tolerance * (1 + right) if tolerance else left > right
    if claim.kind == "orthogonal":
        assert claim.loss is not None
        whole, first, second = (claim.loss.of(state) for state in last)
        excess = whole - first - second - _allowance(claim, last[0])
        slack = tolerance * (1 + whole)
        if claim.loss.degree == 1:
            return excess > slack
        # The root of the whole exceeds the sum of the two roots: squared twice, so that numbers stay rational.
        return And(excess > slack, excess * excess > 4 * first * second + slack * slack)
    if claim.kind == "equal":
        return _any(differences(last[0], last[1], tolerance))
    if claim.kind == "fits":
        assert claim.scheme is not None
        return _any([term for terms in misfits(claim.scheme, last[0], tolerance).values() for term in terms])
    return _any(_broken(claim.invariant or "", runs[0], tolerance))


def _allowance(claim: Claim, end: LayerState) -> Term:
    """``slack`` grid steps for every weight that is dropped in the end."""
    mask, grid = end.format.mask, end.format.grid
    if not claim.slack or mask is None or grid is None:
        return 0
    dropped = (If(keep, 0, step) for keep, step in zip(mask.ravel(), grid.step.ravel(), strict=True))
    return claim.slack * Sum(dropped)


def differences(left: LayerState, right: LayerState, tolerance: float = 0) -> list[Term]:
    """Truth-valued terms, one of which holds when the states differ in some field."""
    return [term for terms in walk.differences(left, right, tolerance).values() for term in terms]


def establishes(invariant: str, run: Run) -> bool:
    """Whether some step of this run sets up what the invariant speaks of."""
    formats = [state.format for state in run]
    return any(f.get(invariant) is not None for f in formats)


def _broken(invariant: str, run: Run, tolerance: float) -> list[Term]:
    """Truth-valued terms, one of which holds when the invariant is broken at the end of the run."""
    end = run[-1]
    if invariant == "mask":
        return [
            And(Not(keep), apart(w, 0, tolerance))
            for state in run
            if state.format.mask is not None
            for keep, w in zip(state.format.mask.ravel(), end.weight.ravel(), strict=True)
        ]
    formats = [state.format for state in run if state.format.get(invariant) is not None]
    if invariant == "n:m":
        patterns = dict.fromkeys(pattern for form in formats for pattern in form.pattern or ())
        return [too_many for n, m in patterns for too_many in _more_than(n, m, end.weight, tolerance)]
    if invariant == "shape":
        terms = [end.weight, *([] if end.format.factors is None else [end.effective() - end.weight])]
        return [
            And(Not(keep), apart(term[index], 0, tolerance))
            for form in formats
            if form.cut is not None
            for term in terms
            for index in np.ndindex(*term.shape)
            for keep in (form.cut.rows[index[0]], form.cut.columns[index[1]])
        ]
    if invariant == "rank":
        assert formats[-1].rank is not None
        return [rank_exceeds(end.weight, formats[-1].rank)]
    grid = formats[-1].grid
    assert grid is not None
    return _off(grid, end.weight, tolerance)


def _off(grid: Grid, weight: Array, tolerance: float) -> list[Term]:
    """For every weight: whether it is no value of the grid."""
    return [
        apart(w, grid.nearest(w, (index[0], index[1]), Choices()), tolerance) for index, w in np.ndenumerate(weight)
    ]


def misfits(scheme: Scheme, end: LayerState, tolerance: float = 0) -> dict[str, list[Term]]:
    """By what it asks for: truth-valued terms, one of which holds when a layer at the end does not fit the scheme."""
    found: dict[str, list[Term]] = {}
    form, shape = end.format, (end.weight.shape[0], end.weight.shape[1])
    if scheme.weights < DENSE:
        wide = form.grid is None or value_bits(form.grid) > scheme.weights
        found["grid"] = [True] if wide or form.grid is None else _off(form.grid, end.weight, tolerance)
    if scheme.pattern is not None:
        found["pattern"] = _more_than(*scheme.pattern, end.weight, tolerance)
    if scheme.sparsity:
        for group in scheme.share_of.groups(shape):
            left = Sum(If(apart(end.weight[index], 0, tolerance), 1, 0) for index in group)
            found.setdefault("sparsity", []).append(left > len(group) - int(len(group) * scheme.sparsity))
    if scheme.rank is not None:
        found["rank"] = [rank_exceeds(end.weight, scheme.rank)]
    found["low-rank term"] = [form.factors is not None and form.factors.rank > scheme.beside]
    if scheme.inputs < DENSE:
        assert end.inputs is not None
        inputs = end.inputs if form.transform is None else form.transform.inputs(end.inputs)
        found["inputs"] = [off_grid(token, scheme.inputs, tolerance) for token in inputs.T]
    return found


def _more_than(kept: int, size: int, weight: Array, tolerance: float) -> list[Term]:
    """For every ``size`` consecutive weights of a row: whether more than ``kept`` of them are not zero."""
    groups = Partition.blocks(size).groups((weight.shape[0], weight.shape[1]))
    return [Sum(If(apart(weight[index], 0, tolerance), 1, 0) for index in group) > kept for group in groups]


def _any(terms: list[Term]) -> Term:
    return Or(*terms) if terms else False
