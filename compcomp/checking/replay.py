"""Replay a saved counterexample in exact arithmetic, from its numbers, the claim's text and the encodings."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from typing import Any

import numpy as np

from compcomp.algebra.grids import off_grid
from compcomp.algebra.low_rank import rank_exceeds
from compcomp.checking.farkas import Invalid, number
from compcomp.language.claim import Claim, Dominates, Equals, Fits, Keeps, Orthogonal, SameState, Scope
from compcomp.language.scheme import Scheme
from compcomp.language.size import DENSE, values_of
from compcomp.language.technique import run_kernel
from compcomp.layers.basis import unlike
from compcomp.layers.state import LayerState
from compcomp.terms import Array, Choices, RandomChoices

Run = list[LayerState]
FLOATS = 1e-6
"""Relative difference of losses in float64 that is allowed between machines."""


def replay(claim: Claim, scope: Scope, witness: dict[str, Any]) -> str:
    """Return "" if the layer is in the scope and refutes the claim, step by step as recorded; else the reason why not.

    Args:
        claim: The claim.
        scope: The scope of the verdict.
        witness: The content of witness.json.

    Raises:
        Invalid: The witness cannot be read, or claims of this kind are not replayed.
        InputError: The claim is not about layers of its shape.
    """
    texts = [trace["sequence"] for trace in witness["traces"]]
    spoken = claim.parts() or {"": claim}
    instances = ((name, instance) for name, part in spoken.items() for instance in part.instances())
    found = [(name, c) for name, c in instances if [str(s) for s in c.sequences] == texts]
    if not found:
        return "the sequences that were run are not those of the claim"
    instance = found[0][1]
    weight, inputs = _matrix(witness["weight"]), witness["inputs"]
    tokens = None if inputs is None else _matrix(inputs)
    seed = witness["seed"]
    if 0 in weight.shape or scope.shape not in (None, weight.shape):
        return f"a layer of shape {weight.shape[0]} x {weight.shape[1]} is not in the scope {scope}"
    if tokens is not None and (tokens.shape[0] != weight.shape[1] or not tokens.shape[1]):
        return "the inputs do not fit the weight"
    instance.check((weight.shape[0], weight.shape[1]))
    runs: list[Run] = []
    for k, sequence in enumerate(instance.sequences):
        choices = Choices() if seed is None else RandomChoices(seed + k)
        start = LayerState.dense(weight, tokens, choices=choices)
        runs.append(sequence.trace(start))
    for sequence, run, trace in zip(instance.sequences, runs, witness["traces"], strict=True):
        if len(run) != len(trace["steps"]):
            return "a run has another number of steps than recorded"
        if [step["after"] for step in trace["steps"]] != ["dense", *map(str, sequence)]:
            return "the steps are not those of the sequence"
        now = inputs
        for state, step in zip(run, trace["steps"], strict=True):
            if not _same(state.weight, _matrix(step["weight"])):
                return f"the weights after {step['after']} are others than recorded"
            now = step.get("inputs", now)
            if state.inputs is not None and not _same(state.inputs, _matrix(now)):
                return f"the inputs after {step['after']} are others than recorded"
        if (instance.loss is None) != (trace["loss"] is None):
            return "a loss that the claim does not speak of, or none"
        if instance.loss is not None and Fraction(instance.loss.of(run[-1])) != number(trace["loss"]):
            return f"the loss of {trace['sequence']} is another than recorded"
    if not all(bool(condition.holds(instance, runs)) for condition in instance.given):
        return "the layer does not meet the conditions of the claim"
    if not _fails(instance, runs):
        return "the layer does not refute the claim"
    if (seed is None) != instance.is_deterministic or (seed is not None and seed < 0):
        return "the seed is not one of choices that the techniques leave free"
    reason = _reason(instance, witness["traces"], [run[-1] for run in runs])
    if witness["reason"] not in [Claim.of_part(reason, n, claim.parts()[n]) if n else reason for n, _ in found]:
        return "the reason is not what differs"
    return _in_floats(instance, weight, tokens, [trace["torch_loss"] for trace in witness["traces"]])


def _reason(claim: Claim, traces: list[dict[str, Any]], ends: list[LayerState]) -> str:
    """Return the reason that a witness gives for refuting a claim."""
    loses = [f"{trace['sequence']} loses {trace['loss']}" for trace in traces]
    match claim:
        case Dominates():
            return f"{loses[0]}, {traces[1]['sequence']} only {traces[1]['loss']}"
        case Orthogonal():
            return f"{loses[0]}; {loses[1]}, {traces[2]['sequence']} {traces[2]['loss']}"
        case Equals():
            return f"the two sequences give different {' and '.join(_computes_apart(*ends))}"
        case SameState():
            return f"the two sequences give different states: they differ in {', '.join(_differ(*ends))}"
        case Fits(scheme=scheme):
            return f"what does not fit {scheme} at the end: {', '.join(_misfits(scheme, ends[0]))}"
        case Keeps(invariant=invariant):
            return f"the {invariant} is broken at the end"
    raise Invalid(f"a claim of kind {claim.kind} is not replayed here")


def _in_floats(claim: Claim, weight: Array, inputs: Array | None, recorded: list[float | None]) -> str:
    """Return "" if torch kernels give the recorded losses, else the difference. They run only if torch is installed."""
    expected = claim.loss is not None and all(t.has_kernel for sequence in claim.sequences for t in sequence)
    if any((loss is not None) != expected for loss in recorded):
        return "losses in torch are those of claims about losses, of techniques with kernels"
    if claim.loss is None or not expected or importlib.util.find_spec("torch") is None:
        return ""
    import torch

    def tensor(values: Array) -> Any:
        return torch.tensor([[float(x) for x in row] for row in values], dtype=torch.float64, device="cpu")

    for sequence, loss in zip(claim.sequences, recorded, strict=True):
        state = LayerState.dense(tensor(weight), None if inputs is None else tensor(inputs))
        for technique in sequence:
            state = run_kernel(technique, state)
        lost = float(claim.loss.of(_listed(state)))
        if loss is None or not abs(lost - loss) <= FLOATS * (1 + abs(lost)):
            return f"in torch {sequence} loses {lost:.9g}, recorded is {loss}"
    return ""


def _listed(state: LayerState) -> LayerState:
    """Return the fields that losses read, as arrays of floats: the layer without its format."""

    def array(values: Any) -> Any:
        return None if values is None else np.array(values.tolist(), dtype=object)

    names = ("gram", "inputs", "reference_inputs")
    rest = {name: array(getattr(state, name)) for name in names}
    return LayerState(array(state.effective()), array(state.reference), **rest)


def _fails(claim: Claim, runs: list[Run]) -> bool:
    """Return True if the claim's statement is false of these exact runs."""
    ends = [run[-1] for run in runs]
    losses = [] if claim.loss is None else [Fraction(claim.loss.of(end)) for end in ends]
    match claim:
        case Equals():
            return bool(_computes_apart(*ends))
        case SameState():
            return bool(_differ(*ends))
        case Keeps(invariant=invariant):
            return _broken(invariant, runs[0])
        case Fits(scheme=scheme):
            return bool(_misfits(scheme, ends[0]))
        case Dominates():
            return losses[0] > losses[1]
        case Orthogonal(slack=slack, loss=loss):
            both, first, second = losses
            more = both - first - second - slack * _dropped_steps(ends[0])
            # In norms that are square roots: sqrt(a) > sqrt(b) + sqrt(c) iff a - b - c > 2 sqrt(b c).
            return more > 0 if loss.name == "weight_l1" else more > 0 and more * more > 4 * first * second
    raise Invalid(f"a claim of kind {claim.kind} is not replayed here")


def _dropped_steps(end: LayerState) -> Fraction:
    """Return the sum of the grid steps at the weights that are dropped in the end."""
    if end.format.grid is None:
        return Fraction(0)
    return Fraction(sum(abs(end.format.grid.step[~_mask(end)]), start=Fraction(0)))


def _computes_apart(left: LayerState, right: LayerState) -> list[str]:
    """Return the names of the fields that the two layers compute with and that differ."""
    found = [] if _same(left.effective(), right.effective()) else ["effective weights"]
    changed = left.reference_inputs is not None or right.reference_inputs is not None
    return [*found, *(["inputs"] if changed and not _alike(left.inputs, right.inputs) else [])]


GRID = {
    "step": "grid step",
    "offset": "grid offset",
    "levels": "grid levels",
    "below": "grid levels below",
    "zero": "zero on the grid",
    "codes": "grid codes",
    "scale_bits": "bits of a grid scale",
    "shared_bits": "bits that grid scales share",
}
"""The fields of a grid that count in the equality of states, and their names in texts."""


def _differ(left: LayerState, right: LayerState) -> list[str]:
    """Return the fields in which the states differ, in the order of the state."""
    one, other = left.format, right.format
    found = {"weight": _same(left.weight, right.weight), "mask": _same(_mask(left), _mask(right))}
    for name, said in GRID.items():
        found[said] = _alike(getattr(one.grid, name, None), getattr(other.grid, name, None))
    found["pattern"] = one.pattern == other.pattern
    found["transform"] = all(a == b for a, b in unlike(one.transform, other.transform, left.weight.shape[1]))
    for side in ("rows", "columns"):
        kept = [None if form.cut is None else getattr(form.cut, side).astype(bool) for form in (one, other)]
        found[f"kept {side}"] = _alike(*kept)
    changed = left.reference_inputs is not None or right.reference_inputs is not None
    found["inputs"] = not changed or _alike(left.inputs, right.inputs)
    if one.factors is not None or other.factors is not None:
        found["low-rank product"] = _same(left.effective() - left.weight, right.effective() - right.weight)
    return [name for name, same in found.items() if not same]


def _alike(left: Any, right: Any) -> bool:
    """Return True if both are the same, or both are missing."""
    if left is None or right is None:
        return left is right
    return _same(left, right) if isinstance(left, np.ndarray) else bool(left == right)


def _broken(invariant: str, run: Run) -> bool:
    end = run[-1].weight
    if invariant == "mask":
        return any(bool(np.any(~_mask(state) & (end != 0))) for state in run)
    formats = [state.format for state in run if state.format.get(invariant) is not None]
    last = formats[-1]
    if invariant == "n:m":
        return any(
            bool(np.any((end != 0).reshape(len(end), -1, m).sum(axis=2) > n))
            for n, m in {pattern for form in formats for pattern in form.pattern or ()}
        )
    if invariant == "shape":
        left = (end != 0) | (run[-1].effective() != end)
        cuts = [form.cut for form in formats if form.cut is not None]
        return any(bool(left[~cut.rows.astype(bool)].any() or left[:, ~cut.columns.astype(bool)].any()) for cut in cuts)
    if invariant == "rank":
        assert last.rank is not None
        return bool(rank_exceeds(end, last.rank))
    assert last.grid is not None
    grid = last.grid
    return any(w != grid.nearest(w, (index[0], index[1]), Choices()) for index, w in np.ndenumerate(end))


def _misfits(scheme: Scheme, end: LayerState) -> list[str]:
    """Return the parts of the scheme that the layer at the end does not satisfy."""
    grid, factors, zero = end.format.grid, end.format.factors, end.weight == 0
    counted = zero.sum(axis=1) if scheme.per == "row" else [zero.sum()]
    of = zero.shape[1] if scheme.per == "row" else zero.size
    found: dict[str, Any] = {}
    if scheme.weights < DENSE:
        found["grid"] = grid is None or 2**scheme.weights < values_of(grid)
        if grid is not None and not found["grid"]:
            nearest = ((w, grid.nearest(w, (i[0], i[1]), Choices())) for i, w in np.ndenumerate(end.weight))
            found["grid"] = any(w != value for w, value in nearest)
    if scheme.pattern is not None:
        n, m = scheme.pattern
        found["pattern"] = np.any((~zero).reshape(len(zero), -1, m).sum(axis=2) > n)
    found["sparsity"] = any(zeros < int(of * scheme.sparsity) for zeros in counted)
    found["rank"] = scheme.rank is not None and rank_exceeds(end.weight, scheme.rank)
    found["low-rank term"] = (0 if factors is None else factors.rank) > scheme.branch_rank
    if scheme.inputs < DENSE:
        inputs = end.working().inputs
        found["inputs"] = inputs is None or any(off_grid(token, scheme.inputs) for token in inputs.T)
    return [requirement for requirement, wrong in found.items() if wrong]


def _mask(state: LayerState) -> Array:
    mask = state.format.mask
    return np.full(state.weight.shape, True) if mask is None else mask.astype(bool)


def _same(left: Array, right: Array) -> bool:
    return left.shape == right.shape and bool(np.all(left == right))


def _matrix(rows: Any) -> Array:
    """Return a matrix of exact numbers, read from rows of texts."""
    values = np.array([[number(x) for x in row] for row in rows], dtype=object)
    if values.ndim != 2:
        raise Invalid("a matrix needs rows of equal length")
    return values
