"""On models it is tested in tests/models/test_whole.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compcomp.kernels import distill_hidden, distill_logits
from compcomp.techniques import AbsMax, DistillHidden, DistillLogits, Magnitude
from tests.helpers import DEVICES, loss, refused, tensors

PAIRS = [(DistillLogits(20), distill_logits.kernel), (DistillHidden(20), distill_hidden.kernel)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("technique", "kernel"), PAIRS, ids=["logits", "hidden"])
def test_a_layer_alone_comes_closer_to_its_outputs(technique: Any, kernel: Any, device: str) -> None:
    layer = tensors((6, 8), device)
    start = Magnitude("1/2").kernel()(Magnitude("1/2"), layer)
    after = kernel(technique, start)
    assert loss(after) < loss(start)
    assert not bool(after.weight[~start.format.mask].any())
    quantized = AbsMax(bits=3).kernel()(AbsMax(bits=3), layer)
    assert kernel(technique, quantized) is quantized
    refused(lambda: kernel(technique, replace(layer, gram=None)), "calibration inputs")
