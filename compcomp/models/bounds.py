"""Lower bound on a layer's final loss, given the invariants (mask, grid, factors) that later techniques preserve."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from compcomp.kernels._codebook import coded, nearest_places
from compcomp.kernels.least_squares_distill import least_change, row_errors
from compcomp.language.loss import loss_named
from compcomp.layers.state import Grid, LayerState
from compcomp.models.measure import effective_weight

TOLERANCE = 1e-9
"""The relative amount by which a bound is lowered to allow for rounding."""

# Statement. Let every later technique keep the low-rank term F that is added to the weight ("factors"), and let R be
# the reference. In the end the layer applies V + F for some weight V, and
#   mask   if every entry that the mask drops is 0 now, and the later techniques keep it so, V is 0 there;
#   grid   if the weight lies on a grid without offsets now, and the later techniques keep it there, every entry of V
#          is one of its values.
# So the loss in the end is at least the least loss of such a V:
#   a loss that grows with each |R_ij - (V + F)_ij|: entry by entry, where V_ij = 0 if dropped, else the grid value
#     nearest to (R - F)_ij, else (R - F)_ij itself, which loses nothing;
#   |(R - V - F) X|_F^2 under a mask: that of the least-squares fit to R - F within the mask.
# (No technique keeps both a rank and the low-rank term, so a rank bounds nothing.)


def least_loss(layer: LayerState, loss: str, kept: Collection[str]) -> float:
    """Return a lower bound of the loss after any techniques that keep these invariants, 0 if no bound is known.

    The bound is computed in float64, and lowered by the error that rounding may cause. No bound is known for a layer
    whose inputs have changed basis: its mask and grid are in another basis than its loss.

    Args:
        layer: The state now.
        loss: The name of the loss.
        kept: The invariants that the later techniques keep, out of "mask", "grid" and "factors".
    """
    if "factors" not in kept or layer.format.transform is not None:
        return 0.0
    form, target = layer.format, _reference(layer) - _low_rank(layer)
    mask = form.mask if "mask" in kept and _fits(layer) else None
    grid = form.grid if "grid" in kept and form.grid is not None and _lies_on(layer, form.grid) else None
    part, bounds = loss_named(loss), [0.0]
    if part.distance and part.element is not None and (mask is not None or grid is not None):
        value = target if grid is None else _nearest(target, grid)
        value = value if mask is None else torch.where(_tensor(mask), value, 0.0)
        bounds.append((1 - TOLERANCE) * float(part.element(target, value).sum()))
    if loss == "output_l2" and mask is not None and layer.gram is not None:
        gram = _tensor(layer.gram).to(torch.float64)
        fitted = least_change(target, gram, _tensor(mask), max(1e-12, 4 * torch.finfo(layer.gram.dtype).eps))
        rounding = TOLERANCE * float(target.square().sum()) * float(gram.trace())  # where the Gram matrix is singular
        bounds.append(float(row_errors(target - fitted, gram).sum()) - rounding)
    return max(bounds)


def _fits(layer: LayerState) -> bool:
    """Return True if every masked weight is zero. No technique keeps an invariant that is broken already."""
    return layer.format.mask is not None and not bool(_tensor(layer.weight)[~_tensor(layer.format.mask)].any())


def _lies_on(layer: LayerState, grid: Grid) -> bool:
    """Return True if the grid has no offsets and every weight is one of its values, up to rounding."""
    weight, step = _tensor(layer.weight).to(torch.float64), _tensor(grid.step).to(torch.float64)
    return grid.offset is None and bool(((weight - _nearest(weight, grid)).abs() <= 1e-5 * step.abs()).all())


def _nearest(target: Tensor, grid: Grid) -> Tensor:
    step = _tensor(grid.step).to(torch.float64)
    if grid.codes is not None:
        value = coded(grid.codes, step)[nearest_places(2 * target, step, grid.codes, "half_even")] * step
        return value
    level = torch.where(step == 0, 0.0, torch.round(target / step)).clamp(grid.lowest, grid.levels)
    return torch.where(step == 0, 0.0, level) * step


def _reference(layer: LayerState) -> Tensor:
    return _tensor(layer.reference).to(torch.float64)


def _low_rank(layer: LayerState) -> Tensor:
    return effective_weight(layer).to(torch.float64) - _tensor(layer.weight).to(torch.float64)


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
