"""Define fixtures, the parameters and layers on which a technique is tested and shown.

No verdict depends on them.
"""

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
"""Former attributes of technique classes, and the fields of :class:`Fixtures` that replace them."""


@dataclass(frozen=True)
class Fixtures:
    """Hold what tests, tables and the catalogue try a technique on.

    Args:
        values: values to try, by the name of the parameter, if those of :data:`compcomp.language.samples.VALUES` are
            missing or do not suit the technique.
        representatives: parameters of the techniques that tables show, if the automatic choice does not suit.
        shapes: more shapes (out, in) to test on.
        exact_scores: True if the technique compares only sums and products of the layer's numbers. Floats hold these
            exactly for small integers, so the conformance test also compares encoding and kernel at ties of such
            layers.
        exact_layer: ``exact_layer(technique, layer, numbers)`` returns an exact layer similar to this one for which
            the roots that the technique takes are rational. ``numbers`` has one number > 0 for each column.
    """

    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    representatives: tuple[Mapping[str, Any], ...] = ()
    shapes: Sequence[tuple[int, int]] = ()
    exact_scores: bool = False
    exact_layer: Callable[[Any, LayerState, Sequence[int]], LayerState] | None = None


def fixtures_of(kind: Any) -> Fixtures:
    """Return the fixtures of a class, with its attributes of former names moved into them.

    A parameter of such a name stays where it is.
    """
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
