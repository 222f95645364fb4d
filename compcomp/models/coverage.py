"""Find the weights of a layer on which a claim's conditions hold, and the losses of its sides there and elsewhere.

A claim that is proved under conditions speaks of a layer's *independent units*: the smallest parts such that no step
reads or writes across their borders. Each unit is a layer of its own, so the proof holds for it if the conditions do
(docs/conditions.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import lcm

import torch
from torch import Tensor

from compcomp.bench import Coverage
from compcomp.errors import InputError
from compcomp.language.claim import Claim, Dominates, Equals, SameState
from compcomp.language.conditions import (
    Box,
    Condition,
    DiagonalGram,
    LargestKept,
    NoTies,
    OrthogonalInputs,
    ScaleUnchanged,
)
from compcomp.language.loss import Loss
from compcomp.language.steps import RangeMap, ScaledMap, Selection
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.models.follow import FLOOR, UNIT, FollowedRun, Groups, bounds, follow, measured, slices

Check = Callable[[Condition, Claim, Sequence[FollowedRun], int], list[Groups]]
"""A function that checks a condition: one truth value for each group of each step that the condition speaks of.

A value is true only if the condition surely holds there. The arguments are the condition, the claim, the runs of all
sequences of the claim, and the number of units of the layer.
"""

CHECKS: dict[type[Condition], Check] = {}
"""The check for each kind of condition. A kind without a check holds nowhere."""


def coverage(claims: Sequence[Claim], name: str, layer: LayerState) -> list[Coverage]:
    """Return the coverage of each claim on the dense layer of this name. Sequences that claims share are run once.

    Args:
        claims: Claims that are proved under conditions.
        name: The layer's name.
        layer: The dense layer.

    Raises:
        InputError: A claim speaks of techniques that change inputs or the basis.
    """
    runs: dict[str, FollowedRun] = {}
    for claim in claims:
        if claim.changes_inputs or claim.changes_basis:
            raise InputError(str(claim), "a claim about techniques that act on weights", "coverage")
        for sequence in claim.sequences:
            if str(sequence) not in runs:
                runs[str(sequence)] = follow(sequence, name, layer)
    losses: dict[object, _Lost] = {}
    return [_covered(claim, [runs[str(s)] for s in claim.sequences], layer, losses) for claim in claims]


def units(claim: Claim) -> Partition:
    """Return the smallest parts of a layer that a claim treats as independent layers.

    Every group of every step lies inside one part. A loss of outputs adds over rows only. The unit is the whole layer
    if a condition is not local, or a technique is not a single selection or map.
    """
    steps = [technique.steps() for sequence in claim.sequences for technique in sequence]
    partitions = [step.sees for own in steps for step in own]
    local = all(condition.local for condition in claim.given) and all(len(own) == 1 for own in steps)
    if not local or any(partition.kind == "tensor" for partition in partitions):
        return Partition.tensor()
    by_outputs = claim.loss is not None and claim.loss.element is None
    if by_outputs or not partitions or any(partition.kind == "row" for partition in partitions):
        return Partition.rows()
    return Partition.blocks(lcm(*(partition.size or 1 for partition in partitions)))


def checked(claim: Claim, runs: Sequence[FollowedRun]) -> dict[Condition, list[Groups]]:
    """Return for each condition of the claim where it surely holds along these runs."""
    count = _count(claim, runs[0].last.weight)
    found = {}
    for condition in claim.given:
        check = CHECKS.get(type(condition))
        nowhere = Groups(Partition.tensor(), torch.zeros(1, dtype=torch.bool, device=runs[0].last.weight.device))
        found[condition] = [nowhere] if check is None else check(condition, claim, runs, count)
    return found


def _count(claim: Claim, weight: Tensor) -> int:
    return weight.numel() // units(claim).group_size((weight.shape[0], weight.shape[1]))


def _covered(claim: Claim, runs: Sequence[FollowedRun], layer: LayerState, losses: dict[object, _Lost]) -> Coverage:
    weight: Tensor = layer.weight
    count = _count(claim, weight)
    size = weight.numel() // count
    covered = torch.ones(count, dtype=torch.bool, device=weight.device)
    held, counted = {}, {}
    for condition, groups in checked(claim, runs).items():
        holds = torch.ones_like(covered)
        for group in groups:
            holds &= group.over(count)
        held[str(condition)] = int(holds.sum()) * size
        counted[str(condition)] = sum(len(g.holds) for g in groups), sum(int(g.holds.sum()) for g in groups)
        covered &= holds
    for run in runs:
        covered &= run.known(count)
    left = right = None
    contradicted = 0
    if isinstance(claim, Dominates):
        for run in runs:
            if (claim.loss, count, id(run)) not in losses:
                losses[claim.loss, count, id(run)] = _Lost(claim.loss, run, count)
        one, other = (losses[claim.loss, count, id(run)] for run in runs)
        left, right = one.parts(covered), other.parts(covered)
        contradicted = int((covered & (one.least() > other.most())).sum())
    elif isinstance(claim, Equals | SameState):
        contradicted = int((covered & _differ(runs[0], runs[1], count)).sum())
    return Coverage(weight.numel(), int(covered.sum()) * size, held, counted, left, right, contradicted)


# ------------------------------------------------------------------------------------------------ losses


class _Lost:
    """The loss of one run, unit by unit, and a bound on its distance from the loss of the exact run."""

    def __init__(self, loss: Loss, run: FollowedRun, count: int) -> None:
        self.degree = loss.degree
        last, reference = run.last.weight, run.last.reference
        pieces, errors, sizes = [], [], []
        for part in slices(reference):
            dense, weight = reference[part].to(torch.float64), last[part].to(torch.float64)
            error = weight - dense
            if loss.element is not None:
                lost: Tensor = loss.element(dense, weight)
                pieces.append(_by_lines(lost, count, reference))
                sizes.append(_by_lines(dense.abs() ** loss.degree, count, reference))
            else:
                if run.last.gram is None:
                    raise InputError("no calibration", "calibration data", loss.name)
                gram: Tensor = run.last.gram
                pieces.append(_by_lines((error @ gram.to(torch.float64)) * error, count, reference))
                errors.append(_by_lines(error.square(), count, reference))
                sizes.append(_by_lines(dense.square(), count, reference))
        self.values = _by_units(pieces, count)
        size, root = _by_units(sizes, count), 1 / loss.degree
        relative = run.error + reference.numel() // count * UNIT
        self.norm = self.values.clamp(min=0) ** root
        if errors:  # |E X|^2 <= |E|^2 trace X X^T
            trace = float(run.last.gram.diagonal().sum()) ** 0.5  # type: ignore[union-attr]
            error = _by_units(errors, count) ** 0.5
            rounding = (4 * reference.shape[1] * UNIT) ** 0.5 * error
            self.slack = 2 * trace * (relative * (size**0.5 + error) + rounding)
        else:  # the weights' relative error, by the triangle inequality, and that of the sums
            self.slack = 2 * relative * (size**root + self.norm)

    def parts(self, covered: Tensor) -> tuple[float, float]:
        """Return the loss over the covered units, and over the others."""
        return float(self.values[covered].sum()), float(self.values[~covered].sum())

    def least(self) -> Tensor:
        """Return a lower bound of the exact run's loss, as a norm."""
        least: Tensor = self.norm - self.slack
        return least

    def most(self) -> Tensor:
        """Return an upper bound of the exact run's loss, as a norm."""
        most: Tensor = self.norm + self.slack
        return most


def _by_lines(entries: Tensor, count: int, weight: Tensor) -> Tensor:
    """Return sums over the parts of rows that lie in one unit each."""
    return entries.reshape(-1, min(weight.shape[1], weight.numel() // count)).sum(dim=1)


def _by_units(pieces: list[Tensor], count: int) -> Tensor:
    return torch.cat(pieces).reshape(count, -1).sum(dim=1)


def _differ(one: FollowedRun, other: FollowedRun, count: int) -> Tensor:
    """Return the units in which two runs that should be equal differ by more than their errors."""
    relative, apart = 2 * (one.error + other.error), []
    for part in slices(one.last.weight):
        a, b = (run.last.weight[part].to(torch.float64) for run in (one, other))
        far = (a - b).abs() > relative * torch.maximum(a.abs(), b.abs())
        apart.append(_by_lines(far.to(torch.float64), count, one.last.weight))
    return _by_units(apart, count) > 0


# ------------------------------------------------------------------------------------------------ conditions


def _on(kind: type[Condition]) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        CHECKS[kind] = check
        return check

    return register


@_on(NoTies)
def no_ties(condition: Condition, claim: Claim, runs: Sequence[FollowedRun], count: int) -> list[Groups]:
    """Return where every selection separates its scores, by more than their error unless they are exact."""
    return [
        followed.separated.within(run.known(count, k))
        for run in runs
        for k, followed in enumerate(run.steps)
        if followed.separated is not None
    ]


@_on(LargestKept)
def largest_kept(condition: Condition, claim: Claim, runs: Sequence[FollowedRun], count: int) -> list[Groups]:
    """Return where the largest measure stays: no dropped weight measures more than the largest kept one.

    If measures are not exact, this has to hold surely.
    """
    found = []
    for run in runs:
        for k, followed in enumerate(run.steps):
            if not isinstance(followed.step, Selection):
                continue
            later = (f.step for f in run.steps[k + 1 :] if isinstance(f.step, ScaledMap))
            steps = {(step.partition, step.measure): step for step in later}
            known = run.known(count, k + 1)  # the dropped weights have to be those of exact arithmetic
            found += [
                _largest_stays(step, followed.before, followed.after, followed.error).within(known)
                for step in steps.values()
            ]
    return found


def _largest_stays(step: ScaledMap, before: LayerState, after: LayerState, error: float) -> Groups:
    weight: Tensor = before.weight
    stays, goes = (
        measured(step.measure, part, step.partition, error)
        for part in (after.weight, weight.masked_fill(after.weight != 0, 0))
    )
    if stays is None or goes is None:
        return _nowhere(step.partition, weight)
    (kept, off), (lost, _) = stays, goes
    if off == 0:
        return Groups(step.partition, (lost <= kept) | (kept == 0))
    return Groups(
        step.partition, (kept - lost > FLOOR + 2 * off * (kept.abs() + lost.abs())) | (lost == 0) | (kept == 0)
    )


def _nowhere(partition: Partition, weight: Tensor) -> Groups:
    count = weight.numel() // partition.group_size((weight.shape[0], weight.shape[1]))
    return Groups(partition, torch.zeros(count, dtype=torch.bool, device=weight.device))


@_on(ScaleUnchanged)
def scale_unchanged(condition: Condition, claim: Claim, runs: Sequence[FollowedRun], count: int) -> list[Groups]:
    """Return where every map finds the scale of the dense group.

    Exact floats are compared. No others are accepted, because their equality in exact arithmetic cannot be known.
    """
    found = []
    for run in runs:
        for k, followed in enumerate(run.steps):
            step, layer = followed.step, followed.before
            if not isinstance(step, ScaledMap | RangeMap):
                continue
            same = _nowhere(step.partition, layer.weight)
            if isinstance(step, RangeMap) and followed.error == 0:
                pairs = zip(bounds(step, layer.weight), bounds(step, layer.reference), strict=True)
                (low, dense_low), (high, dense_high) = pairs
                same = Groups(step.partition, (low == dense_low) & (high == dense_high))
            elif isinstance(step, ScaledMap):
                now = measured(step.measure, layer.weight, step.partition, followed.error)
                dense = measured(step.measure, layer.reference, step.partition, 0.0)
                if now is not None and dense is not None and now[1] == dense[1] == 0:
                    same = Groups(step.partition, now[0] == dense[0])
            found.append(same.within(run.known(count, k)))
    return found


@_on(DiagonalGram)
def diagonal_gram(condition: Condition, claim: Claim, runs: Sequence[FollowedRun], count: int) -> list[Groups]:
    """Return True for the whole layer if every off-diagonal entry of the Gram matrix is exactly zero."""
    return [_of_layer(_is_diagonal(_gram(runs)), runs)]


@_on(OrthogonalInputs)
def orthogonal_inputs(condition: Condition, claim: Claim, runs: Sequence[FollowedRun], count: int) -> list[Groups]:
    """Return True for the whole layer if the Gram matrix is diagonal with exactly one positive number on it."""
    gram = _gram(runs)
    holds = gram is not None and _is_diagonal(gram) and bool((gram.diagonal() == gram[0, 0]).all() & (gram[0, 0] > 0))
    return [_of_layer(holds, runs)]


@_on(Box)
def box(condition: Condition, claim: Claim, runs: Sequence[FollowedRun], count: int) -> list[Groups]:
    """Return True for the whole layer if every float is within the radius, compared as exact numbers."""
    assert isinstance(condition, Box)
    weight: Tensor = runs[0].last.reference
    holds = tuple(weight.shape) == condition.shape and all(
        abs(Fraction(w) - centre) <= condition.radius
        for row, line in zip(weight.tolist(), condition.around, strict=True)
        for w, centre in zip(row, line, strict=True)
    )
    return [_of_layer(holds, runs)]


def _gram(runs: Sequence[FollowedRun]) -> Tensor | None:
    gram: Tensor | None = runs[0].last.gram
    return gram


def _is_diagonal(gram: Tensor | None) -> bool:
    return gram is not None and int((gram != 0).sum()) == int((gram.diagonal() != 0).sum())


def _of_layer(holds: bool, runs: Sequence[FollowedRun]) -> Groups:
    return Groups(Partition.tensor(), torch.tensor([holds], device=runs[0].last.weight.device))
