from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from compcomp.encodings.fp8_inputs import FP8Inputs
from tests.helpers import layer, refused


def test_every_token_has_a_scale() -> None:
    """Tokens are columns: (448, 1) at scale 1 and (672, 3/2) at 3/2, at which 448 is none and goes to 288 * 3/2."""
    inputs = [[448, 672], [1, "3/2"]]
    state = FP8Inputs().encode(layer([[1, 2]], inputs))
    assert state.inputs is not None and state.inputs.tolist() == [[448, 672], [1, Fraction(3, 2)]]
    state = FP8Inputs(per="tensor").encode(layer([[1, 2]], inputs))
    assert state.inputs is not None and state.inputs.tolist() == [[432, 672], [Fraction(33, 32), Fraction(3, 2)]]
    assert state.gram is not None and state.gram[0, 1] == 432 * Fraction(33, 32) + 672 * Fraction(3, 2)
    assert state.reference_inputs is not None and state.reference_inputs[0, 0] == 448


@pytest.mark.parametrize("given", [{"format": "e3m4"}, {"per": "row"}, {"rounding": "up"}])
def test_bad_parameters(given: dict[str, Any]) -> None:
    refused(lambda: FP8Inputs(**given), "FP8Inputs")


def test_inputs_are_needed() -> None:
    refused(lambda: FP8Inputs().encode(layer([[1, 2]])), "no inputs")
