"""Decide properties of exact states: masks, patterns, grids, ranks, cuts, and what two states share."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from compcomp.algebra.low_rank import rank_exceeds
from compcomp.errors import NotExactError
from compcomp.language.technique import Technique
from compcomp.layers import walk
from compcomp.layers.basis import Transform
from compcomp.layers.state import Cut, Format, Grid, LayerState
from compcomp.terms import Array, Choices, Term, each


def scales_features(before: LayerState, after: LayerState) -> bool:
    """Return True if every input feature is divided by a number > 0, and its weight column multiplied by it."""
    none = Transform(())
    known, changed = (state.format.transform or none for state in (before, after))
    change = changed.inputs(known.inputs_back(none.matrix(before.weight.shape[1])))
    diagonal = np.diagonal(change)
    alone = np.array_equal(change, np.diag(diagonal)) and all(x > 0 for x in diagonal)
    return alone and np.array_equal(after.weight * diagonal, before.weight)


def same_inputs(one: LayerState, other: LayerState) -> bool:
    """Return True if inputs, Gram matrix and dense inputs are exactly the same."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("inputs", "gram", "reference_inputs")]
    return all(np.array_equal(a, b) for a, b in pairs)


def equal_states(one: LayerState, other: LayerState) -> bool:
    """Return True if weight, mask, grid, low-rank product and inputs are exactly the same."""
    return all(
        a == b if field.kind == "data" else np.array_equal(a, b)
        for field, a, b in walk.compared(one, other, recorded=True)
    )


def weight_alone(before: LayerState, after: LayerState) -> bool:
    """Return True if weight, mask, grid and rank are exactly the same; the low-rank term may differ."""
    alone = (replace(state, format=replace(state.format, factors=None)) for state in (before, after))
    return before.format.rank == after.format.rank and equal_states(*alone)


def _same_grid(one: LayerState, other: LayerState) -> bool:
    """Return True if both grids have the same values."""
    fields = [field for field in walk.FIELDS if field.path.startswith("format.grid.") and field.equal == "as it is"]
    pairs = [(field.of(one), field.of(other)) for field in fields]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def invariant_kept(invariant: str, before: LayerState, after: LayerState) -> bool:
    """Return True if an invariant that holds before holds after: a name of ``keeps`` in the contracts."""
    old, new = before.format, after.format
    if invariant == "factors":
        if old.factors is None or new.factors is None:
            return new.factors is old.factors
        return all(np.array_equal(getattr(old.factors, side), getattr(new.factors, side)) for side in ("left", "right"))
    if old.get(invariant) is None:
        return True
    if new.get(invariant) is None:
        return False
    if old.mask is not None and new.mask is not None and invariant == "mask":
        if np.any(new.mask.astype(bool) & ~old.mask.astype(bool)):
            return False
        return not _fits_mask(before.weight, old.mask) or _fits_mask(after.weight, old.mask)
    if invariant == "grid":
        assert old.grid is not None and new.grid is not None
        if new.transform is not old.transform:  # the grid has changed along with the basis
            kinds = ((g.levels, g.below, g.zero, g.offset is None) for g in (old.grid, new.grid))
            return len(set(kinds)) == 1 and (on_grid(after) or not on_grid(before))
        return _same_grid(before, after) and on_grid(after)
    if invariant == "n:m":
        known = {m: n for n, m in new.pattern or ()}
        return all(
            known.get(m, m) <= n and (_fits_pattern(after.weight, n, m) or not _fits_pattern(before.weight, n, m))
            for n, m in old.pattern or ()
        )
    if invariant == "shape":
        assert old.cut is not None and new.cut is not None
        fewer = not (np.any(new.cut.rows & ~_bools(old.cut.rows)) or np.any(new.cut.columns & ~_bools(old.cut.columns)))
        return fewer and (_fits_cut(after, old.cut) or not _fits_cut(before, old.cut))
    assert old.rank is not None
    return within_rank(after) and not (within_rank(before) and rank_exceeds(after.weight, old.rank))


def _bools(array: Array) -> Array:
    return array.astype(bool)


def _fits_pattern(weight: Array, kept: int, size: int) -> bool:
    return bool(np.all((weight != 0).reshape(len(weight), -1, size).sum(axis=2) <= kept))


def format_numbers(form: Format) -> tuple[Any, ...]:
    """Return the numbers in a format, and which of its fields are set."""
    found: list[Any] = []
    for field in walk.FIELDS:
        value = field.of(SimpleNamespace(format=form))
        if not field.in_format or field.kind == "basis":
            continue
        found.append(value if field.kind == "data" else value is None)
    return (*found, form.factors and form.factors.rank)


def format_numbers_of_zero(technique: Technique, layer: LayerState, choices: Choices) -> tuple[Any, ...] | None:
    """Return the numbers of the format that a zero weight gets; None if the optimum is not rational there."""
    try:
        return format_numbers(technique.encode(replace(layer, weight=layer.weight * 0, choices=choices)).format)
    except NotExactError:
        return None


def _fits_cut(layer: LayerState, cut: Cut) -> bool:
    factors = layer.format.factors
    left = (layer.weight != 0) | (False if factors is None else factors.left @ factors.right != 0)
    return not (np.any(left[~_bools(cut.rows)]) or np.any(left[:, ~_bools(cut.columns)]))


def new_format_holds(before: LayerState, after: LayerState) -> bool:
    """Return True if mask, patterns, and removed rows and columns that the technique set up hold in weight and mask."""
    old, new = before.format, after.format
    full = np.full(after.weight.shape, True)
    mask = full if new.mask is None else _bools(new.mask)
    was = full if old.mask is None else _bools(old.mask)
    fits = _fits_mask(after.weight, mask | ~was)
    for pattern in new.pattern or ():
        fits = fits and _fits_pattern(mask, *pattern)
        fits = fits and (pattern in (old.pattern or ()) or _fits_pattern(after.weight, *pattern))
    if new.cut is not None:
        rows, columns = _bools(new.cut.rows), _bools(new.cut.columns)
        fits = fits and not np.any(mask & ~np.outer(rows, columns))
        if old.cut is not None:
            rows, columns = rows | ~_bools(old.cut.rows), columns | ~_bools(old.cut.columns)
        fits = fits and _fits_cut(after, Cut(rows, columns))
    return fits


def zeros_stay(which: str, before: LayerState, after: LayerState) -> bool:
    """Return True if zeros stay: single weights, or rows or columns of the weight and the low-rank term."""
    if which == "weights":
        return not np.any((after.weight != 0) & (before.weight == 0))
    empty = [empty_lines(state, ("rows", "columns").index(which)) for state in (before, after)]
    return not np.any(empty[0] & ~empty[1])


def empty_lines(layer: LayerState, axis: int) -> Array:
    """Return which rows (axis 0) or columns (axis 1) are zero in the weight and in the low-rank term."""
    factors = layer.format.factors
    parts = [layer.weight, *([] if factors is None else [factors.left @ factors.right])]
    empty: Array = np.all([np.all(part == 0, axis=1 - axis) for part in parts], axis=0)
    return empty


def other_lines_alone(before: LayerState, after: LayerState, axis: int) -> bool:
    """Return True if the cut leaves the columns (axis 0; 1: rows) alone, and the mask adds only what is removed."""
    cut, mask = after.format.cut, after.format.mask
    if cut is None or mask is None:
        return False
    lines, others = (cut.rows, cut.columns)[:: 1 - 2 * axis]
    old = before.format.cut
    stay = True if old is None else _bools((old.columns, old.rows)[axis])
    was = True if before.format.mask is None else _bools(before.format.mask)
    drops = _bools(lines)[:, None] if axis == 0 else _bools(lines)[None]
    return bool(np.all(_bools(others) == stay) and np.all(_bools(mask) == (was & drops)))


def _fits_mask(weight: Array, mask: Array) -> bool:
    return not np.any(weight[~mask.astype(bool)] != 0)


def mask_restored(before: LayerState, after: LayerState) -> bool:
    """Return True if every weight that the mask before drops is zero and dropped after, whatever it was before."""
    old, new = before.format.mask, after.format.mask
    if old is None:
        return True
    return new is not None and not np.any(new.astype(bool) & ~old.astype(bool)) and _fits_mask(after.weight, old)


def on_grid(layer: LayerState) -> bool:
    """Return True if every weight is a value of the grid. If the grid does not contain 0, only kept weights must be."""
    return _fits_grid(layer.weight, layer.format.grid, layer.format.mask)


def factors_fit(layer: LayerState) -> bool:
    """Return True if every entry of a factor is a value of the factor's grid, if it has one."""
    factors = layer.format.factors
    if factors is None:
        return True
    return _fits_grid(factors.left, factors.left_grid, None) and _fits_grid(factors.right, factors.right_grid, None)


def _fits_grid(weight: Array, grid: Grid | None, mask: Array | None) -> bool:
    if grid is None:
        return True
    offset = weight * 0 if grid.offset is None else grid.offset

    def fits(weight: Term, step: Term, least: Term) -> bool:
        if grid.codes is not None:
            return Fraction(weight) / step in grid.codes if step else weight == 0
        level = Fraction(weight - least) / step if step else Fraction(weight - least)
        return level.denominator == 1 and (grid.lowest <= level <= grid.levels if step else level == 0)

    fitting = each(fits, weight, grid.step, offset).astype(bool)
    if mask is not None and not grid.zero:
        fitting |= ~mask.astype(bool) & (weight == 0)
    return bool(fitting.all())


def within_rank(layer: LayerState) -> bool:
    """Return True if the weight has at most the recorded rank."""
    return layer.format.rank is None or not rank_exceeds(layer.weight, layer.format.rank)
