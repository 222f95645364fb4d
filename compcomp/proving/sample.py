"""Run a claim on one small layer, to read the formats, which do not depend on the weights."""

from __future__ import annotations

import numpy as np

from compcomp.language.claim import Claim, Scope
from compcomp.layers.state import Format
from compcomp.proving.candidates import Candidates, shapes_to_try
from compcomp.proving.replay import Suspect, torch_runs, without_kernel

WIDE = 32
"""Columns from which on the torch kernels run the layer: an encoding takes a minute for 128 columns."""


def formats_along(claim: Claim, scope: Scope) -> list[Format] | None:
    """Return the left sequence's formats from the dense state on, None if no small layer fits its techniques.

    The techniques alone determine which fields of a format are set, so one layer shows them.
    """
    claim = claim.instances()[0]
    random = np.random.default_rng(0)
    fast = not without_kernel(claim)
    for rows, columns in shapes_to_try(claim, scope):
        if not claim.fits((rows, columns)):
            continue
        weights = random.integers(-9, 10, (1, rows, columns)).astype(float)
        inputs = random.integers(-9, 10, (1, columns, 1)).astype(float)
        if fast and columns > WIDE:
            return [state.format for state in torch_runs(claim, Suspect(weights[0], inputs[0]))[0]]
        layer = Candidates(weights, inputs).layer(random)
        return [state.format for state in claim.left.trace(layer)]
    return None
