"""Learned masks on tensors: hard-concrete gates [louizos2018]."""

from __future__ import annotations

from math import log

import torch
from torch.optim.adam import adam

from compcomp.encodings.learned_mask import LearnedMask
from compcomp.kernels._shared import Tensor, check, chunks, drop, effective, wide
from compcomp.layers.state import LayerState

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Parameters of the hard-concrete distribution, as published: it is stretched to (LOW, HIGH) and clipped to [0, 1]."""

SHIFT = TEMPERATURE * log(-LOW / HIGH)
"""The shift of log odds: a gate of log odds a is open (not 0) with probability sigmoid(a - SHIFT)."""

START = 2.0
"""The gates' log odds start between -START and START, in the order of |w_ij| |x_j|."""

PENALTY, ASCENT = 10.0, 0.1
"""The augmented Lagrangian's weight of the squared excess of open gates, and the rate of its multipliers."""


def kernel(technique: LearnedMask, layer: LayerState) -> LayerState:
    """Set the weights of every group to zero whose trained gates are least.

    ``layer.weight`` and ``layer.reference`` are out x in, ``layer.gram`` is in x in. A gate z in [0, 1] for every
    weight is drawn from a hard-concrete distribution. The loss is |D X - (W z + L R) X|_F^2 relative to its value at z
    = 0, plus an augmented Lagrangian of the expected share of kept weights. D is the reference, L R the low-rank term.
    Adam moves the log odds of the gates down the gradient of this loss. The result is the initial or the final mask,
    whichever has the smaller output loss. All is computed in float64 on the CPU, elsewhere in at least float32. Memory
    is a few times that of the weight. The result has the weight's dtype and a bool mask, out x in. Source:
    [louizos2018].

    Raises:
        InputError: There are no inputs, the pattern does not fit, or an entry is not finite.
    """
    check(technique, layer)
    (selection,) = technique.steps()
    weight: Tensor = layer.weight
    dtype = torch.float64 if weight.device.type == "cpu" else wide(weight)
    training = _Training(technique, layer, dtype)
    results = [drop(layer, selection, training.score)]
    if technique.iterations and selection.count(selection.partition.group_size((weight.shape[0], weight.shape[1]))):
        for _ in range(technique.iterations):
            training.step()
        results.append(drop(layer, selection, training.score))
    return min(results, key=training.loss)


class _Training:
    """Train the gates of one layer."""

    def __init__(self, technique: LearnedMask, layer: LayerState, dtype: torch.dtype) -> None:
        assert layer.gram is not None
        (selection,) = technique.steps()
        self.dtype, self.device = dtype, layer.weight.device
        self.weight, self.gram = layer.weight.to(dtype), layer.gram.to(dtype)
        self.missing = layer.reference.to(dtype) - effective(layer, dtype) + self.weight  # the target of W z
        self.size = sum(self._loss(part, self.missing[part]) for part in self._parts()) or 1.0
        self.group = selection.partition.group_size((layer.weight.shape[0], layer.weight.shape[1]))
        self.wanted = 1 - selection.count(self.group) / self.group
        self.log_odds = self._start()
        self.rate, self.turn = float(technique.rate), torch.zeros((), device="cpu")
        self.moments = [torch.zeros_like(self.log_odds), torch.zeros_like(self.log_odds)]
        self.multiplier = torch.zeros(self.weight.numel() // self.group, 1, dtype=dtype, device=self.device)
        self.random = torch.Generator(self.device).manual_seed(technique.seed)

    def _parts(self) -> list[slice]:
        rows, columns = self.weight.shape
        return list(chunks(rows, 64 * columns, self.device))

    def _loss(self, part: slice, error: Tensor) -> float:
        return float(((error @ self.gram) * error).sum())

    def _start(self) -> Tensor:
        """Return log odds in the order of |w_ij| |x_j| inside every group, evenly from -START to START."""
        saliency = self.weight.abs().mul_(self.gram.diagonal().clamp(min=0).sqrt()).reshape(-1, self.group)
        order = saliency.sort(dim=1, stable=True).indices
        places = torch.linspace(-START, START, self.group, dtype=self.dtype, device=self.device)
        return torch.empty_like(saliency).scatter_(1, order, places.expand_as(saliency)).reshape(self.weight.shape)

    def score(self, part: slice) -> Tensor:
        """Return the log odds of a slice of rows; a gate with larger log odds is likelier to stay open."""
        return self.log_odds[part]

    def step(self) -> None:
        """Take one step of Adam, then one of the Lagrangian's multipliers, one for each group."""
        open_ = torch.sigmoid(self.log_odds - SHIFT).reshape(-1, self.group)
        excess = open_.mean(dim=1, keepdim=True).sub_(self.wanted)
        pull = open_.mul_(1 - open_).mul_(self.multiplier + PENALTY * excess).div_(self.weight.numel())
        self.multiplier.add_(excess, alpha=ASCENT)
        slope = pull.reshape(self.weight.shape)
        for part in self._parts():
            slope[part] += self._gradient(part, self.log_odds[part])
        first, second = self.moments
        # Not torch.optim.Adam, which loads a compiler: that takes a second.
        adam(
            [self.log_odds],
            [slope],
            [first],
            [second],
            [],
            [self.turn],
            lr=self.rate,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )

    def _gradient(self, part: slice, odds: Tensor) -> Tensor:
        """Return the gradient of the relative output loss by the log odds of a slice of rows, at gates drawn for it."""
        noise = torch.rand(odds.shape, generator=self.random, dtype=self.dtype, device=self.device)
        s = noise.clamp_(1e-6, 1 - 1e-6).logit_().add_(odds).div_(TEMPERATURE).sigmoid_()
        stretched = s * (HIGH - LOW) + LOW
        inside = (stretched > 0) & (stretched < 1)
        error = self.weight[part] * stretched.clamp_(0, 1) - self.missing[part]
        gradient: Tensor = (error @ self.gram).mul_(self.weight[part]).mul_(2 / self.size)
        gradient.mul_(s.mul_(1 - s)).mul_((HIGH - LOW) / TEMPERATURE).mul_(inside)
        return gradient

    def loss(self, state: LayerState) -> float:
        """Return |D X - W' X|_F^2 of a pruned state."""
        return sum(self._loss(part, state.weight[part].to(self.dtype) - self.missing[part]) for part in self._parts())
