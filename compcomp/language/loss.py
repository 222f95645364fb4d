"""Define losses, the distances of a compressed layer from the dense layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compcomp.errors import InputError
from compcomp.layers.gram import squared_error
from compcomp.layers.state import LayerState
from compcomp.terms import Abs, Sum, Term


@dataclass(frozen=True)
class Loss:
    """Define a loss of one layer, as a term.

    Args:
        name: the name in text.
        formula: the formula, for people.
        degree: scaling reference and weight by t > 0 scales the loss by t ** degree.
        element: the part of one weight, from its reference and its effective value, if the loss is the sum of such
            parts. None if weights interact.
        needs_inputs: True if the loss depends on the calibration inputs.
        weighted: the part of one weight, from its reference, its value and the squared norm of its input feature. It
            is for losses in which weights interact only through a Gram matrix, and holds if that matrix is diagonal and
            no technique changes the inputs.
        distance: True if each part is one convex function of |reference - value|, which grows from 0.
        any_basis: True if the loss is the same in every basis of the inputs: for the layer as a technique sees it, and
            for the layer as it is.
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
        """Return the loss of one weight as a function of reference, value and squared norm of its input feature.

        Args:
            diagonal: True if the Gram matrix is diagonal in all states, because no technique changes the inputs.

        Returns:
            The function, or None if the loss is not a sum over weights.
        """
        element = self.element
        if element is not None:
            return lambda reference, value, norm2: element(reference, value)
        return self.weighted if diagonal else None

    def of(self, layer: LayerState) -> Term:
        """Return the loss of this state as one term, exact for exact terms. Smaller is better."""
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
    """Return the function |reference - value| ** exponent. The root is left out, as it does not change any order."""

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
    """Return the loss of this name; raise InputError if there is none."""
    if not isinstance(name, str) or name not in LOSSES:
        raise InputError(f"loss {name!r}"[:80], ", ".join(LOSSES), "loss")
    return LOSSES[name]
