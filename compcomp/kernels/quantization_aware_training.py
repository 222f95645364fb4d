"""Quantization-aware training of one layer on tensors: straight-through gradients [bengio2013, jacob2018]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.quantization_aware_training import QuantizationAwareTraining
from compcomp.kernels._scales import stored
from compcomp.kernels._shared import Tensor, check, chunks, effective, wide
from compcomp.layers.grids import GRIDS
from compcomp.layers.scales import scale_bits
from compcomp.layers.state import Grid, LayerState


def kernel(technique: QuantizationAwareTraining, layer: LayerState) -> LayerState:
    """Train the weights on their grid; each row keeps the iterate of least loss.

    ``layer.weight`` and ``layer.reference`` are out x in, ``layer.gram`` is in x in, of the current inputs. All is
    computed in float64, rows in parts that bound the memory. Losses are those of the weights in their dtype. While the
    mask holds, no row has a larger loss than rounding to nearest with midpoints to the even level. The step is kept in
    the weight's dtype, but at least float32. Source: [bengio2013].

    Raises:
        InputError: There are no inputs, the group does not divide a row, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    shape, dtype = tuple(layer.weight.shape), wide(layer.weight)
    size = technique.partition.group_size((shape[0], shape[1]))
    low, high = layer.weight.reshape(-1, size).aminmax(dim=-1, keepdim=True)
    largest = torch.maximum(-low, high).to(torch.float64)  # groups x 1
    of, levels = GRIDS[technique.grid], technique.levels
    reach, exact = float(of.reach(levels)), technique.scales == "exact"
    scale = stored(largest / reach, technique.scales)
    step = scale.to(dtype).expand(-1, size).reshape(shape)
    unit = (largest if exact else scale).expand(-1, size).reshape(shape)
    ends = -levels - of.below, levels
    gram = layer.gram.to(torch.float64)
    weight = torch.empty_like(layer.weight)
    for part in chunks(shape[0], 100 * shape[1], layer.weight.device):
        weight[part] = _train(technique, layer, gram, part, unit[part], reach if exact else 1.0, ends, step[part])
    bits = scale_bits(technique.scales)
    grid = Grid(step, levels, layer.weight.numel() // size, scale_bits=bits, below=of.below)
    return replace(layer, weight=weight, format=replace(layer.format, grid=grid, rank=None))


def _train(
    technique: QuantizationAwareTraining,
    layer: LayerState,
    gram: Tensor,
    part: slice,
    unit: Tensor,
    reach: float,
    ends: tuple[int, int],
    step: Tensor,
) -> Tensor:
    """Return a slice of rows after training.

    Args:
        technique: The technique.
        layer: The layer.
        gram: Its Gram matrix, float64.
        part: The slice.
        unit: ``reach`` times the step of each weight's group, float64, in the shape of the rows.
        reach: A number of steps.
        ends: The last levels.
        step: The steps as they are kept, in that shape.
    """
    start, slope = layer.weight[part].to(torch.float64), _slope(layer, gram, part)
    dropped = None if layer.format.mask is None else ~layer.format.mask[part]
    trace, (low, high) = gram.trace(), (unit * (end / reach) for end in ends)
    rate = torch.where(trace > 0, float(technique.rate) / trace, 0.0)
    latent = start if dropped is None else start.masked_fill(dropped, 0)
    best: Tensor = layer.weight[part]
    least = torch.full_like(start[:, 0], torch.inf)
    for turn in range(technique.iterations + 1):
        level = (latent * reach).div_(unit).masked_fill_(unit == 0, 0).round_()
        level.clamp_(*ends)
        quantized = (level.to(step.dtype) * step).to(best.dtype)
        change = quantized.to(torch.float64) - start
        now = slope + change @ gram  # half the gradient at the quantized weight
        loss = (change * (slope + now)).sum(dim=1)  # up to a constant of the row
        better = loss < least
        best, least = torch.where(better[:, None], quantized, best), torch.where(better, loss, least)
        if turn < technique.iterations:
            move = now.mul_(rate)
            if dropped is not None:
                move.masked_fill_(dropped, 0)
            latent = torch.minimum(torch.maximum(latent - move, low), high)
    return best


def _slope(layer: LayerState, gram: Tensor, part: slice) -> Tensor:
    """Return half the gradient of the output loss of a slice of rows, at the current weight."""
    reference: Tensor = layer.reference[part].to(torch.float64)
    factors = layer.format.factors
    weight = effective(
        replace(
            layer,
            weight=layer.weight[part],
            format=replace(layer.format, factors=factors and replace(factors, left=factors.left[part])),
        ),
        torch.float64,
    )
    if layer.reference_inputs is None or layer.inputs is None:
        target = reference @ gram
    else:
        target = (reference @ layer.reference_inputs.to(torch.float64)) @ layer.inputs.to(torch.float64).T
    slope: Tensor = weight @ gram - target
    return slope
