"""Learned masks on tensors: hard-concrete gates [louizos2018]."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch

from compcomp.encodings.learned_mask import LearnedMask
from compcomp.kernels._shared import Tensor, check, chunks, drop, effective, wide
from compcomp.language.layer import LayerState

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Of the hard-concrete distribution, as published: it is stretched to (LOW, HIGH) and cut off at 0 and 1."""

START = 2.0
"""The gates' log odds start between -START and START, in the order of |w_ij| |x_j|."""

PENALTY = 10.0
"""Of the squared distance of the expected share of kept weights from the wanted one."""

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam."""


def kernel(technique: LearnedMask, layer: LayerState) -> LayerState:
    """Set the weights of every group to zero whose trained gates are least.

    ``layer.weight``, ``layer.reference``: out x in. ``layer.gram``: in x in. A gate z in [0, 1] for every weight is
    drawn from a hard-concrete distribution; Adam moves its log odds down the gradient of |D X - (W z + L R) X|_F^2 (D
    the reference, L R the low-rank term), relative to its value at z = 0, plus an augmented Lagrangian of the expected
    share of kept weights. Of the mask it starts from and the one it ends with, that of the smaller loss is taken. In
    float64 on the CPU, elsewhere at least float32; memory is a few times that of the weight. The result has the
    weight's dtype and a bool mask, out x in.
    Raises InputError without inputs, when the pattern does not fit, or when an entry is not finite.
    Source: [louizos2018].
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


@dataclass
class _Moments:
    """Adam's running means of the gradient and of its square."""

    first: Tensor
    second: Tensor


class _Training:
    """The gates of one layer."""

    def __init__(self, technique: LearnedMask, layer: LayerState, dtype: torch.dtype) -> None:
        assert layer.gram is not None
        self.technique, self.layer, self.dtype = technique, layer, dtype
        self.weight, self.gram = layer.weight.to(dtype), layer.gram.to(dtype)
        self.missing = layer.reference.to(dtype) - effective(layer, dtype) + self.weight  # of outputs without W
        self.norms = self.gram.diagonal().clamp(min=0).sqrt()
        self.size = float(sum(self._loss(part, self.missing[part]) for part in self._parts())) or 1.0
        self.log_odds = self._start()
        self.moments = _Moments(torch.zeros_like(self.log_odds), torch.zeros_like(self.log_odds))
        self.random = torch.Generator(weight_device := layer.weight.device).manual_seed(technique.seed)
        self.device, self.turn, self.multiplier = weight_device, 0, 0.0
        selection = technique.steps()[0]
        group = selection.partition.group_size((layer.weight.shape[0], layer.weight.shape[1]))
        self.wanted = 1 - selection.count(group) / group

    def _parts(self) -> list[slice]:
        rows, columns = self.layer.weight.shape
        return list(chunks(rows, 64 * columns, self.layer.weight.device))

    def _loss(self, part: slice, error: Tensor) -> float:
        return float(((error @ self.gram) * error).sum())

    def _start(self) -> Tensor:
        """Log odds in the order of |w_ij| |x_j| in each row, from -START to START."""
        saliency = self.weight.abs() * self.norms
        ranks = torch.empty_like(saliency)
        places = torch.linspace(-START, START, saliency.shape[1], dtype=self.dtype, device=saliency.device)
        order = saliency.sort(dim=1, stable=True).indices
        ranks.scatter_(1, order, places.expand_as(saliency))
        largest = saliency.max()
        return ranks if float(largest) == 0 else ranks.add_(saliency / largest, alpha=1e-3 * START)

    def score(self, part: slice) -> Tensor:
        """The log odds of a slice of rows: the more, the likelier is the gate to stay open."""
        return self.log_odds[part]

    def step(self) -> None:
        """One step of Adam, then one of the Lagrangian's multiplier."""
        self.turn += 1
        shift, count = TEMPERATURE * log(-LOW / HIGH), self.log_odds.numel()
        share = float(torch.sigmoid(self.log_odds - shift).mean())
        pull = self.multiplier + PENALTY * (share - self.wanted)
        for part in self._parts():
            odds = self.log_odds[part]
            noise = torch.rand(odds.shape, generator=self.random, dtype=self.dtype, device=self.device)
            noise.clamp_(1e-6, 1 - 1e-6)
            s = torch.sigmoid((noise.logit() + odds) / TEMPERATURE)
            stretched = s * (HIGH - LOW) + LOW
            inside = (stretched > 0) & (stretched < 1)
            error = self.weight[part] * stretched.clamp_(0, 1) - self.missing[part]
            gradient = (error @ self.gram).mul_(self.weight[part]).mul_(2 / self.size)
            gradient *= (HIGH - LOW) / TEMPERATURE * s * (1 - s) * inside
            open_ = torch.sigmoid(odds - shift)
            gradient += pull / count * open_ * (1 - open_)
            first = self.moments.first[part].mul_(BETA1).add_(gradient, alpha=1 - BETA1)
            second = self.moments.second[part].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            spread = second.div(1 - BETA2**self.turn).sqrt_().add_(EPSILON)
            odds.addcdiv_(first, spread, value=-float(self.technique.rate) / (1 - BETA1**self.turn))
        self.multiplier += PENALTY * (share - self.wanted) / 10

    def loss(self, state: LayerState) -> float:
        """|R X - W' X|_F^2 of a pruned state."""
        return sum(self._loss(part, state.weight[part].to(self.dtype) - self.missing[part]) for part in self._parts())
