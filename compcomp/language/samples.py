"""Choose representative parameters of techniques, for tests, tables and documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.language.technique import Sequence as Techniques
from compcomp.language.technique import Technique
from compcomp.layers.batches import unstack
from compcomp.layers.grids import GRIDS
from compcomp.layers.scales import SCALES
from compcomp.layers.state import INVARIANTS, LayerState
from compcomp.terms import ROUNDINGS, TIES, Array, BatchChoices

VALUES: dict[str, Sequence[Any]] = {
    "sparsity": (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(7, 10)),
    "pattern": ("unstructured", "2:4", "1:2", "3:4"),
    "per": ("tensor", "row", "channel", "token"),
    "ties": TIES,
    "of": ("current", "dense"),
    "bits": (2, 3, 4, 8),
    "group": (None, 2, 4),
    "rounding": ROUNDINGS,
    "grid": tuple(GRIDS),
    "scales": tuple(SCALES),
    "zero": ("exact", "none"),
    "rank": (1, 2, 3),
    "residual": (False, True),
}
"""Values to try, by the name of the parameter."""

USUAL: dict[str, Any] = {"sparsity": Fraction(1, 2), "bits": 4, "rank": 2}
"""Values of parameters without a default in a representative, if the class gives no examples."""

SHAPES = ((2, 4), (4, 8), (4, 6), (4, 5), (4, 7), (4, 3), (4, 2), (1, 1))
"""Small shapes (out, in). A representative fits one of them if possible, as proofs and searches use small layers."""


def unlike(weight: Array, numbers: Sequence[int]) -> Array:
    """Return exact weights with a number from 0 to 1 added to each, so that few are equal.

    Args:
        weight: exact weights (out x in).
        numbers: one integer for each column, from which the added numbers are computed.
    """
    found = weight.copy()
    for place, (i, j) in enumerate(np.ndindex(*weight.shape)):
        found[i, j] += Fraction(numbers[j] * (place + 1) ** 2 % 89 + 1, 97)
    return found


def conventions(kind: type[Technique], **values: Sequence[Any]) -> list[Technique]:
    """Return all techniques of a class with parameters from ``values``, its fixtures, or :data:`VALUES`.

    Parameters in none of them stay at their defaults. Combinations that the class rejects with InputError are left
    out, so the result is empty if no combination is allowed.

    Args:
        kind: the class.
        values: values to try, by the name of the parameter.
    """
    known: Mapping[str, Sequence[Any]] = {**VALUES, **kind.fixtures.values, **values}
    names = [f.name for f in fields(kind) if f.init and f.name in known]
    return list(_allowed(kind, (dict(zip(names, c, strict=True)) for c in product(*(known[n] for n in names)))))


def representatives(kind: type[Technique]) -> list[Technique]:
    """Return one technique for each kind of behaviour of a class: a sample, and techniques that differ from it.

    If the class has representatives in its fixtures, these are returned. Otherwise the required parameters of the first
    are from ``examples``, the values of its fixtures, :data:`USUAL` or :data:`VALUES`. Its other parameters are at
    their defaults, or at the first value of the fixtures if the default is not among them. It fits a layer of at most
    eight columns, if some parameters do. The others differ from it in one parameter, and in their formats or contracts.
    """
    if given := kind.fixtures.representatives:
        return [kind(**parameters) for parameters in given]
    first = _first(kind)
    found = {_behaviour(first): first}
    known: Mapping[str, Sequence[Any]] = {**VALUES, **kind.fixtures.values}
    for name in _names(kind):
        changed = (_parameters(first) | {name: value} for value in known.get(name, ()))
        for technique in _allowed(kind, changed):
            if _is_small(technique):
                found.setdefault(_behaviour(technique), technique)
    return list(found.values())


def sample(kind: type[Technique]) -> Technique:
    """Return one technique of this class, the first of its representatives."""
    return representatives(kind)[0]


def sets_up(technique: Technique | Techniques) -> frozenset[str]:
    """Return the invariants of :data:`compcomp.layers.state.INVARIANTS` that it sets up on a dense layer.

    Raises:
        InputError: it fits no layer of up to 8 x 256 weights.
    """
    random = np.random.default_rng(0)
    shape = next((s for s in _shapes() if technique.fits(s)), None)
    if shape is None:
        raise InputError(str(technique), "a technique that fits some layer of up to 8 x 256", "sets_up")
    weight, inputs = (unstack(random.integers(-9, 10, (1, *s)).astype(float)) for s in (shape, (shape[1], shape[1])))
    after = technique.encode(LayerState.dense(weight, inputs, choices=BatchChoices(1, random)))
    return frozenset(name for name in INVARIANTS if after.format.get(name) is not None)


def _shapes() -> Iterator[tuple[int, int]]:
    yield from SHAPES
    yield from ((rows, columns) for columns in range(9, 257) for rows in (2, 4, 8))


def _behaviour(technique: Technique) -> tuple[object, ...]:
    promised = technique.promises()
    return (
        *(sets_up(technique), promised.keeps, promised.restores, promised.leaves_weight, promised.changes_inputs),
        technique.needs_inputs,
    )


def _is_small(technique: Technique) -> bool:
    return any(technique.fits(shape) for shape in SHAPES)


def _first(kind: type[Technique]) -> Technique:
    required, tried = {}, kind.fixtures.values
    for f in fields(kind):
        if f.init and f.default is MISSING and f.default_factory is MISSING:
            known = kind.examples.get(f.name) or tried.get(f.name)
            required[f.name] = known[0] if known else USUAL.get(f.name, next(iter(VALUES.get(f.name, ())), None))
        elif f.init and type(f.default) is int and f.default not in tried.get(f.name, (f.default,)):
            required[f.name] = tried[f.name][0]
    usual = next(_allowed(kind, [required]), None)
    if usual is not None and _is_small(usual):
        return usual
    others = conventions(kind)
    wanted = required if usual is None else _parameters(usual)

    def changed(technique: Technique) -> tuple[bool, int]:
        given = _parameters(technique)
        return not _is_small(technique), sum(given[name] != value for name, value in wanted.items())

    candidates = [*([] if usual is None else [usual]), *others]
    if not candidates:
        raise InputError(f"the fixtures of {kind.__name__}", "a combination of parameters that it allows", "samples")
    return min(candidates, key=changed)


def _allowed(kind: type[Technique], combinations: Any) -> Iterator[Technique]:
    for parameters in combinations:
        try:
            yield kind(**parameters)
        except InputError:
            continue


def _names(kind: type[Technique]) -> list[str]:
    return [f.name for f in fields(kind) if f.init]


def _parameters(technique: Technique) -> dict[str, Any]:
    return {name: getattr(technique, name) for name in _names(type(technique))}
