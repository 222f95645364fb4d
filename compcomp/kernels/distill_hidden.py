"""Distillation of the whole model on its hidden states, on tensors [romero2015, sun2019]."""

from __future__ import annotations

import torch

from compcomp.encodings.distill_hidden import DistillHidden
from compcomp.kernels._shared import Tensor, wide
from compcomp.kernels._train import alone, train
from compcomp.layers.state import LayerState
from compcomp.layers.whole import Outputs, WholeModel


def kernel(technique: DistillHidden, layer: LayerState) -> LayerState:
    """Take gradient steps on the output loss of a layer alone, which has no hidden states but its output.

    Raises:
        InputError: There are no inputs.
    """
    return alone(technique, layer)


def kernel_model(technique: DistillHidden, whole: WholeModel) -> dict[str, LayerState]:
    """Train the layers without a grid on the summed relative errors of the hidden states after each block.

    All is computed in float32 or wider. See :func:`compcomp.kernels._train.train`. Source: [romero2015], [sun2019].
    """

    def lost(teacher: Outputs, student: Outputs) -> Tensor:
        total = torch.zeros((), device=teacher.hidden[-1].device)
        for wanted, found in zip(teacher.hidden[1:], student.hidden[1:], strict=True):
            wanted, found = wanted.to(wide(wanted)), found.to(wide(wanted))
            if teacher.real is not None and teacher.real.shape == wanted.shape[:-1]:
                wanted, found = wanted[teacher.real], found[teacher.real]
            size = wanted.square().sum()
            total = total.to(size) + torch.where(size > 0, (found - wanted).square().sum() / size, 0.0)
        return total

    return train(technique, whole, lost)
