from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.errors import InputError
from compcomp.language.loss import LOSSES
from compcomp.layers.state import Factors, Format, LayerState
from compcomp.models.measure import effective_weight, layer_losses, total
from tests.models.fakes import seeded


def exact(tensor: Any) -> Any:
    values = [Fraction(float(x)) for x in tensor.flatten()]
    return np.array(values, dtype=object).reshape(tuple(tensor.shape))


@pytest.mark.parametrize("factors", [False, True])
def test_losses_are_those_of_the_language(factors: bool) -> None:
    source = seeded()
    dense = torch.randn(3, 4, generator=source)
    inputs = torch.randn(4, 6, generator=source).double()
    state = LayerState.dense(dense, gram=inputs @ inputs.T)
    left, right = torch.randn(3, 2, generator=source), torch.randn(2, 4, generator=source)
    form: Any = Format(factors=Factors(left, right)) if factors else Format()
    state = replace(state, weight=torch.round(dense), format=form)
    language = LayerState(
        exact(state.weight),
        exact(dense),
        gram=exact(state.gram),
        format=Format(factors=Factors(exact(left), exact(right))) if factors else Format(),
    )
    measured = layer_losses(state, tuple(LOSSES))
    for name, loss in LOSSES.items():
        assert measured[name] == pytest.approx(float(loss.of(language)), rel=1e-12)
    assert measured["output_norm2"] == pytest.approx(float(((dense.double() @ inputs) ** 2).sum()))


def test_an_unchanged_layer_loses_exactly_nothing() -> None:
    state = LayerState.dense(torch.randn(3, 4, generator=seeded()), gram=torch.eye(4))
    measured = layer_losses(state)
    assert measured["weight_l1"] == measured["weight_l2"] == measured["output_l2"] == 0


def test_the_weight_itself_is_returned_without_factors() -> None:
    weight = torch.zeros(2, 2)
    assert effective_weight(LayerState.dense(weight)) is weight


def test_totals_relate_to_the_outputs_of_the_dense_model() -> None:
    layers = [
        {"weight_l2": 1.0, "output_l2": 3.0, "output_norm2": 10.0},
        {"weight_l2": 2.0, "output_l2": 2.0, "output_norm2": 40.0},
    ]
    assert total(layers) == {"weight_l2": 3, "output_l2": 5, "relative_output_l2": 0.1}
    assert total([{"output_l2": 0.0, "output_norm2": 0.0}])["relative_output_l2"] == 0
    assert total([]) == {}


def test_output_loss_needs_a_gram_matrix() -> None:
    with pytest.raises(InputError, match="output_l2: no calibration"):
        layer_losses(LayerState.dense(torch.zeros(2, 2)))
    with pytest.raises(InputError, match="loss 'kl'; allowed: weight_l1"):
        layer_losses(LayerState.dense(torch.zeros(2, 2)), ("kl",))
