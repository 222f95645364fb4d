"""Fixtures: parameters and layers on which a technique is tested and shown. No verdict depends on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from compcomp.layers.state import LayerState

FORMER = {
    "tried": "values",
    "samples": "representatives",
    "tried_shapes": "shapes",
    "exact_scores": "exact_scores",
    "rational": "exact_layer",
}
"""What classes of techniques held before there were :class:`Fixtures`, and the fields that hold it now."""


@dataclass(frozen=True)
class Fixtures:
    """What tests, tables and the catalogue try a technique on.

    values: by the name of a parameter, values to try, where :data:`compcomp.language.samples.VALUES` has none for the
        name, or not the right ones.
    representatives: parameters of the techniques that tables show, where the automatic choice is not the right one.
    shapes: more shapes (out, in) to test on.
    exact_scores: it compares only sums and products of the layer's numbers, which floats hold exactly for small
        integers. The conformance test then compares encoding and kernel at ties of such layers as well.
    exact_layer: ``exact_layer(technique, layer, numbers)`` gives an exact layer like this one for which roots that the
        technique takes are rational. ``numbers``: one for each column, all > 0.
    """

    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    representatives: tuple[Mapping[str, Any], ...] = ()
    shapes: Sequence[tuple[int, int]] = ()
    exact_scores: bool = False
    exact_layer: Callable[[Any, LayerState, Sequence[int]], LayerState] | None = None


def fixtures_of(kind: Any) -> Fixtures:
    """Return the fixtures of a class, and move into them what it holds under former names. Parameters stay."""
    found = {new: old for old, new in FORMER.items() if old in vars(kind) and not _is_parameter(kind, old)}
    fixtures: Fixtures = replace(kind.fixtures, **{new: vars(kind)[old] for new, old in found.items()})
    for old in found.values():
        delattr(kind, old)
    return fixtures


def _is_parameter(kind: type, name: str) -> bool:
    annotations: Mapping[str, Any] = {}
    with suppress(NameError):  # names that are known to type checkers alone
        annotations = inspect.get_annotations(kind)
    return name in annotations and "ClassVar" not in str(annotations[name])
