"""List the fields of a layer's state in one table, and walk over them.

Each field that is added to a state or a format needs an entry in :data:`FIELDS`. It is then mapped, compared, shown,
stored and tested for conformance. Code that depends on a few fields by name, such as the bits of a layer or the effect
of a change of basis on a format, is elsewhere.

This module does not depend on the classes of a state: a walk follows the paths of the table, and skips fields that are
absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from compcomp.layers.basis import unlike
from compcomp.terms import Abs, And, Not, Or, Term

S = TypeVar("S")


@dataclass(frozen=True)
class Field:
    """Describe one field of a state that has no fields itself.

    Args:
        path: the attribute path from the state, such as ``format.grid.step``.
        name: the name for people.
        kind: "numbers" or "truths" for arrays, "data" for values that are the same in every reading, "basis" for a
            change of basis, whose parts hold numbers.
        shape: the sides of an array, by name.
        equal: the comparison that decides whether states are equal. With "as it is" the values are the same. With
            "full" they are the same, and None means true everywhere. With "changed" they are the same if some technique
            has changed the field. With "product" only the product with the other factor counts. With "often" the field
            does not count, but is the same in most equal states. With "" it does not count.
        dense: for fields in the coordinates of the dense layer, the method of a change of basis that maps them to the
            coordinates of the weight. The method that maps them back has the same name with ``_back``.
        stored: the way in which :func:`compcomp.models.components.pack` stores the field. "apart": as one component of
            its name. "": by a rule of its own, or not at all.
    """

    path: str
    name: str
    kind: str = "numbers"
    shape: tuple[str, ...] = ()
    equal: str = ""
    dense: str = ""
    stored: str = ""

    @property
    def is_array(self) -> bool:
        """True if the field is an array of numbers or truth values."""
        return self.kind in ("numbers", "truths")

    @property
    def in_format(self) -> bool:
        """True if the field is part of the format."""
        return self.path.startswith("format.")

    @property
    def given(self) -> bool:
        """True if the field is about the dense layer and its inputs, not about the compressed weight."""
        return not self.in_format and self.path != "weight"

    def of(self, state: Any) -> Any:
        """Return the field's value in a state, or None if there is none, such as the step of an absent grid."""
        for name in self.path.split("."):
            state = getattr(state, name, None)
        return state


def _grid(path: str, name: str, shape: tuple[str, ...], equal: str = "", often: str = "") -> tuple[Field, ...]:
    return (
        Field(f"{path}.step", f"{name} step", "numbers", shape, equal),
        Field(f"{path}.offset", f"{name} offset", "numbers", shape, equal),
        Field(f"{path}.levels", f"{name} levels", "data", equal=equal),
        Field(f"{path}.below", f"{name} levels below", "data", equal=equal),
        Field(f"{path}.zero", f"zero on the {name}", "data", equal=equal),
        Field(f"{path}.codes", f"{name} codes", "data", equal=equal),
        Field(f"{path}.scale_bits", f"bits of a {name} scale", "data", equal=equal),
        Field(f"{path}.shared_bits", f"bits that {name} scales share", "data", equal=equal),
        Field(f"{path}.scales", f"number of {name} scales", "data", equal=often),
    )


WEIGHT = ("out", "in")

FIELDS: tuple[Field, ...] = (
    Field("weight", "weight", "numbers", WEIGHT, "as it is"),
    Field("format.mask", "mask", "truths", WEIGHT, "full"),
    *_grid("format.grid", "grid", WEIGHT, "as it is", "often"),
    Field("format.pattern", "pattern", "data", equal="as it is"),
    Field("format.transform", "transform", "basis", equal="as it is"),
    Field("format.cut.rows", "kept rows", "truths", ("out",), "as it is"),
    Field("format.cut.columns", "kept columns", "truths", ("in",), "as it is"),
    Field("inputs", "inputs", "numbers", ("in", "tokens"), "changed", dense="inputs"),
    Field("format.factors.left", "left factor", "numbers", ("out", "rank"), "product"),
    Field("format.factors.right", "right factor", "numbers", ("rank", "in"), "product"),
    *_grid("format.factors.left_grid", "left grid", ("out", "rank")),
    *_grid("format.factors.right_grid", "right grid", ("rank", "in")),
    Field("format.rank", "rank", "data", equal="often"),
    Field("reference", "reference", "numbers", WEIGHT, dense="weights"),
    Field("gram", "Gram matrix", "numbers", ("in", "in"), dense="gram"),
    Field("reference_inputs", "dense inputs", "numbers", ("in", "tokens"), dense="inputs"),
    Field("magnitudes.largest", "largest magnitudes", "numbers", ("in",)),
    Field("magnitudes.mean", "mean magnitudes", "numbers", ("in",)),
)
"""All fields of a state except its choices, in the order in which states are compared."""

PRODUCT = Field("format.factors", "low-rank product", "numbers", WEIGHT, "product")
"""The product by which two factors are compared."""


# ------------------------------------------------------------------------------------------------ map


def map(function: Callable[..., Any], *states: S) -> S:
    """Return the first state with every array replaced by a function of the arrays of all states.

    This includes arrays in a change of basis. All other values are those of the first state. The other states must have
    its fields.
    """
    mapped: S = _mapped(_tree(FIELDS), function, states)
    return mapped


def _mapped(tree: dict[str, Any], function: Callable[..., Any], values: tuple[Any, ...]) -> Any:
    changed = {}
    for name, below in tree.items():
        first, *others = (getattr(value, name, None) for value in values)
        if first is None:
            continue
        if isinstance(below, dict):
            changed[name] = _mapped(below, function, (first, *others))
        elif below.is_array:
            changed[name] = function(first, *others)
        elif below.kind == "basis":
            changed[name] = first.map(function, *others)
    return replace(values[0], **changed) if changed else values[0]


@cache
def _tree(fields: tuple[Field, ...]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for field in fields:
        *above, last = field.path.split(".")
        place = tree
        for name in above:
            place = place.setdefault(name, {})
        place[last] = field
    return tree


# ------------------------------------------------------------------------------------------------ leaves


def leaves(state: Any, *kinds: str) -> Iterator[tuple[Field, Any]]:
    """Return the fields of these kinds (of all kinds if none is named) that have a value in the state, with it."""
    for field in FIELDS:
        value = field.of(state)
        if value is not None and (not kinds or field.kind in kinds):
            yield field, value


def arrays(state: Any) -> Iterator[tuple[Field, Any]]:
    """Return the fields that are arrays and have a value in the state, with their values."""
    return leaves(state, "numbers", "truths")


def apart_of(form: Any) -> Iterator[tuple[Field, Any]]:
    """Return the arrays of a format that are stored as components of their own."""
    for field, array in arrays(SimpleNamespace(format=form)):
        if field.stored == "apart":
            yield field, array


def lines(state: Any) -> list[str]:
    """Return a line for each field that has a value, for people.

    Arrays are shown as rows of texts, a transform as its matrix.
    """
    found = []
    for field, value in leaves(state):
        if field.kind == "basis":
            value = value.matrix(state.weight.shape[1])
        found.append(f"{field.name} = {shown(value)}")
    return found


def shown(value: Any) -> str:
    """Return a value as text for people. An array is shown as rows of texts."""
    if isinstance(value, np.ndarray):
        return str([[str(x) for x in row] for row in np.atleast_2d(value)])
    return str([str(x) for x in value] if isinstance(value, tuple) else value)


# ------------------------------------------------------------------------------------------------ comparison


def compared(
    one: Any, other: Any, number: Callable[[Any], Term] = Fraction, *, recorded: bool = False
) -> Iterator[tuple[Field, Any, Any]]:
    """Return each field that counts in the equality of two states, with its values in both (None if absent).

    Args:
        one: a state.
        other: the state that it is compared with.
        number: as for :meth:`compcomp.layers.basis.Transform.matrix`.
        recorded: True if an absent mask differs from a mask that keeps all weights, and inputs count even if no
            technique has changed them.
    """
    for field in FIELDS:
        a, b = field.of(one), field.of(other)
        if field.equal == "full" and not recorded:
            if a is not None or b is not None:
                full = np.full(one.weight.shape, True, dtype=object)
                yield field, full if a is None else a, full if b is None else b
        elif field.kind == "basis":
            pairs = unlike(a, b, one.weight.shape[1], number)
            left, right = np.empty(len(pairs), dtype=object), np.empty(len(pairs), dtype=object)
            for k, (x, y) in enumerate(pairs):
                left[k], right[k] = x, y
            yield field, left, right
        elif field.equal in ("as it is", "full") or (field.equal == "changed" and (recorded or _changed(one, other))):
            yield field, a, b
    if one.format.factors is not None or other.format.factors is not None:
        yield PRODUCT, one.effective() - one.weight, other.effective() - other.weight


def _changed(*states: Any) -> bool:
    return any(state.reference_inputs is not None for state in states)


def differences(one: Any, other: Any, tolerance: float = 0) -> dict[str, list[Term]]:
    """Return truth-valued terms for every field that counts, one of which is true if the two states differ in it.

    Fields that are equal without any term are left out.

    Args:
        one: a state.
        other: the state that it is compared with.
        tolerance: relative slack for floats; 0 is exact.
    """
    found = {}
    for field, a, b in compared(one, other, float if tolerance else Fraction):
        if a is None or b is None:
            terms = [True] if a is not b else []
        elif field.kind == "data":
            terms = [a != b]
        elif field.kind == "truths":
            terms = [Or(And(x, Not(y)), And(y, Not(x))) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
        else:
            terms = [apart(x, y, tolerance) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
        if terms:
            found[field.name] = terms
    return found


def apart(a: Term, b: Term, tolerance: float = 0) -> Term:
    """Return a term that is true if two numbers differ. A tolerance is relative to the first."""
    return Abs(a - b) > tolerance * (1 + Abs(a)) if tolerance else a != b


def alike_but(one: Any, other: Any, *names: str) -> bool:
    """Return True if two states of numbers agree exactly in every field except those of these names."""
    for field in FIELDS:
        a, b = field.of(one), field.of(other)
        if field.name in names or a is b:
            continue
        if a is None or b is None:
            return False
        if field.kind == "basis":
            same = all(x == y for x, y in unlike(a, b, one.weight.shape[1]))
        else:
            same = np.array_equal(a, b) if field.is_array else a == b
        if not same:
            return False
    return True
