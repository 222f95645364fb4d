"""Distillation of the whole model on its logits, on tensors [hinton2015]."""

from __future__ import annotations

import torch

from compcomp.encodings.distill_logits import DistillLogits
from compcomp.errors import InputError
from compcomp.kernels._shared import Tensor, wide
from compcomp.kernels._train import alone, train
from compcomp.layers.state import LayerState
from compcomp.layers.whole import Outputs, WholeModel


def kernel(technique: DistillLogits, layer: LayerState) -> LayerState:
    """Take gradient steps on the output loss of a layer alone, which has no logits.

    Raises:
        InputError: There are no inputs.
    """
    return alone(technique, layer)


def kernel_model(technique: DistillLogits, whole: WholeModel) -> dict[str, LayerState]:
    """Train the layers without a grid on T^2 KL(dense || compressed); see :func:`compcomp.kernels._train.train`.

    Logits (..., vocabulary) are compared in float32 or wider. Source: [hinton2015].

    Raises:
        InputError: The outputs are no such tensor, or the loss is not finite.
    """
    temperature = float(technique.temperature)

    def lost(teacher: Outputs, student: Outputs) -> Tensor:
        if not isinstance(teacher.logits, Tensor) or teacher.logits.ndim < 2:
            given = f"a model that puts out a {type(teacher.logits).__name__}"
            raise InputError(given, "logits (..., vocabulary)", str(technique))
        dtype = wide(teacher.logits)
        wanted, found = (
            torch.log_softmax(outputs.logits.to(dtype) / temperature, dim=-1) for outputs in (teacher, student)
        )
        apart = (wanted.exp() * (wanted - found)).sum(dim=-1)
        if teacher.real is not None and teacher.real.shape == apart.shape:
            apart = apart[teacher.real]
        return temperature**2 * apart.mean()

    return train(technique, whole, lost)
