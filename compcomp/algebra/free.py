"""Represent open outcomes: any weights that a layer's format allows, as training may find them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compcomp.layers import walk
from compcomp.layers.state import LayerState
from compcomp.terms import And, Array, Equal, If, Term, each


def any_weights(layer: LayerState) -> LayerState:
    """Return the layer with any weight (out x in) that is 0 where the mask drops. A layer on a grid does not change."""
    form = layer.format
    if form.grid is not None:
        return layer
    weight = each(layer.choices.number, layer.weight)
    if form.mask is not None:
        weight = each(lambda w, keep: If(keep, w, 0), weight, form.mask)
    return replace(layer, weight=weight, format=replace(form, rank=None))


def is_any_weights(before: LayerState, after: LayerState) -> Term:
    """Return a term that is true if :func:`any_weights` may lead from the state ``before`` to ``after``."""
    form = before.format
    expected = form if form.grid is not None else replace(form, rank=None)
    same: list[Term] = [alike(expected, after.format)]
    if form.grid is not None:
        same.append(alike(before.weight, after.weight))
    elif form.mask is not None:
        same += [If(keep, True, Equal(w, 0)) for keep, w in zip(form.mask.ravel(), after.weight.ravel(), strict=True)]
    same += [alike(field.of(before), field.of(after)) for field in walk.FIELDS if field.given]
    return And(*same)


def alike(one: Any, other: Any) -> Term:
    """Return a term that is true if two parts of states are equal.

    Arrays of terms are compared entry by entry, dataclasses field by field, and everything else with ``==``.
    """
    if one is None or other is None:
        return one is other
    if hasattr(one, "shape"):
        return one.shape == other.shape and _entries_equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return And(True, *(alike(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__))
    return bool(one == other)


def _entries_equal(one: Array, other: Array) -> Term:
    return And(True, *map(Equal, one.ravel(), other.ravel()))
