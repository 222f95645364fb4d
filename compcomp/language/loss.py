"""What a sequence loses: the distance of a compressed layer from the dense one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compcomp.errors import InputError
from compcomp.layers.gram import squared_error
from compcomp.layers.state import LayerState
from compcomp.terms import Abs, Sum, Term


@dataclass(frozen=True)
class Loss:
    """A loss of one layer, as a term.

    ``degree``: scaling reference and weight by t > 0 scales it by t ** degree. ``element``: the part of one
    weight, from its reference and its effective value, where the loss is the sum of such parts; None where
    weights interact. ``needs_inputs``: it depends on the calibration inputs. ``weighted``: the part of one
    weight where weights interact only through a Gram matrix, that is diagonal, and no technique changes the
    inputs: from the weight's reference, its value and the squared norm of its input feature. ``distance``: each part
    is one convex function of |reference - value|, which grows from 0. ``any_basis``: it is the same in every basis of
    the inputs: of the layer as a technique sees it, and of the layer as it is.
    """

    name: str
    formula: str
    degree: int
    element: Callable[[Term, Term], Term] | None
    needs_inputs: bool = False
    weighted: Callable[[Term, Term, Term], Term] | None = None
    distance: bool = False
    any_basis: bool = False

    def part(self, *, diagonal: bool) -> Callable[[Term, Term, Term], Term] | None:
        """The loss of one weight from reference, value and squared norm of its input feature; None when there is none.

        ``diagonal``: whether the Gram matrix is diagonal, all along, as no technique changes the inputs.
        """
        element = self.element
        if element is not None:
            return lambda reference, value, norm2: element(reference, value)
        return self.weighted if diagonal else None

    def of(self, layer: LayerState) -> Term:
        """The loss of this state, exact for exact terms. A number: smaller is better."""
        effective = layer.effective()
        if self.element is not None:
            return Sum(map(self.element, layer.reference.ravel(), effective.ravel()))
        if layer.reference_inputs is not None:
            outputs = effective @ layer.inputs - layer.reference @ layer.reference_inputs
            return Sum(x * x for x in outputs.ravel())
        error = effective - layer.reference
        if layer.inputs is not None:
            return Sum(x * x for x in (error @ layer.inputs).ravel())
        return squared_error(error, layer.gram)


def _power(exponent: int) -> Callable[[Term, Term], Term]:
    """|reference - value| ** exponent, without the root that would not change any order."""

    def part(reference: Term, value: Term) -> Term:
        distance = reference - value
        result = distance if exponent % 2 == 0 else Abs(distance)
        for _ in range(exponent - 1):
            result = result * distance if exponent % 2 == 0 else result * Abs(distance)
        return result

    return part


def _weighted(reference: Term, value: Term, norm2: Term) -> Term:
    distance = reference - value
    return norm2 * (distance * distance)


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("weight_l1", "sum |w - w'|", 1, _power(1), distance=True),
        Loss("weight_l2", "sum (w - w')^2", 2, _power(2), distance=True),
        Loss("weight_l3", "sum |w - w'|^3", 3, _power(3), distance=True),
        Loss("weight_l4", "sum (w - w')^4", 4, _power(4), distance=True),
        Loss("output_l2", "|W X - W' X'|_F^2", 2, None, needs_inputs=True, weighted=_weighted, any_basis=True),
    )
}


def loss_named(name: object) -> Loss:
    """The loss of this name; InputError when there is none."""
    if not isinstance(name, str) or name not in LOSSES:
        raise InputError(f"loss {name!r}"[:80], ", ".join(LOSSES), "loss")
    return LOSSES[name]
