"""One check for every technique: its kernel against its encoding, and its contracts in exact numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st

from compcomp.errors import InputError, NotExactError
from compcomp.language.technique import Kernel, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import Array, Choices, each
from compcomp.testing.agreement import compare
from compcomp.testing.draws import SEEDED
from compcomp.testing.promises import check_promises
from compcomp.testing.report import Coverage
from compcomp.testing.strategies import Shape, conventions, integers, layers

SHAPES: tuple[Shape, ...] = ((1, 4), (2, 4), (3, 4), (4, 2), (2, 3), (1, 8), (3, 6))
"""The shapes (out x in) to try, if the technique fits them."""


SEED = 0x272EA1AB43FF13FE587908C80894327A0EA251719510635671C51B049CC45C8611984AFB4B501DC79434F8E4705BAA18
"""The seed of the layers: the same ones are drawn however the function that examines them changes."""


def check_encoding(
    technique: Technique | type[Technique],
    shapes: Sequence[Shape] = SHAPES,
    max_examples: int = 40,
    device: str = "cpu",
    kernel: Kernel | None = None,
    minimise: bool = True,
) -> Coverage:
    """Check that kernel, encoding and contracts of the technique agree, and return what was covered.

    On exact layers drawn by Hypothesis, the encoding on Fractions is compared with the torch kernel in float64 on
    ``device`` and with the encoding on batches. Compared are weight, mask, grid, low-rank product, rank, inputs and
    every loss. Away from ties and midpoints they must agree.

    At a tie they must agree too if floats hit the tie exactly, and if the technique is a single step, only selects, or
    acts on inputs. This excludes scores of the whole layer that are quotients, which floats round. If the fixtures say
    ``exact_scores``, they must also agree at ties on layers of small integers. A technique with ``feasible`` leaves its
    result open: the kernel's result must then be feasible instead. Every declared contract must hold on the Fractions,
    for every choice tried.

    Args:
        technique: A technique, or a class, of which every technique that :func:`conventions` gives is checked. It need
            not be registered.
        shapes: (out, in) pairs. By default the shapes that the technique brings are added. Shapes that it does not fit
            are left out.
        max_examples: The number of layers to draw, always the same ones.
        device: The torch device of the kernel.
        kernel: A kernel that replaces the registered one.
        minimise: True looks for a simpler layer before failing, which takes a while.

    Raises:
        AssertionError: They do not agree, or a contract is broken.
        TypeError: The encoding holds floats, or asks for the truth value of a term.
        InputError: No shape fits.
    """
    if isinstance(technique, type):
        return _check_class(technique, shapes, max_examples, device, kernel, minimise)
    run = kernel or technique.kernel()
    shapes = (*shapes, *technique.fixtures.shapes) if shapes is SHAPES else shapes
    fitting = [shape for shape in shapes if technique.fits(shape)]
    if not fitting:
        raise InputError(", ".join(f"{m}x{n}" for m, n in shapes), "a shape that fits", f"{technique}")
    coverage = Coverage()

    @seed(SEED)
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        backend=SEEDED,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if minimise else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def examine(data: st.DataObject) -> None:
        shape = data.draw(st.sampled_from(fitting))
        inputs = technique.needs_inputs or data.draw(st.booleans())
        whole = technique.needs_tokens or technique.needs_magnitudes
        layer = data.draw(layers(shape, inputs, gram_only=not whole))
        if layer.format.mask is not None and data.draw(st.booleans()):
            layer = _unmasked(layer, data.draw(integers(shape, 3)))
        if layer.format.pattern and data.draw(st.booleans()):
            layer = _other_mask(layer, layer.format.pattern[0][1])
        if (exact_layer := technique.fixtures.exact_layer) is not None:
            numbers = data.draw(st.lists(st.integers(1, 3), min_size=shape[1], max_size=shape[1]))
            layer = exact_layer(technique, layer, numbers)
        seed = data.draw(st.integers(0, 2**16))
        factor = data.draw(st.sampled_from((Fraction(3), Fraction(1, 2), Fraction(2, 7))))
        try:
            result = technique.encode(replace(layer, choices=Choices()))
            check_promises(technique, layer, result, seed, factor)
            coverage.promises += 1
            compare(technique, run, layer, result, device, coverage)
        except NotExactError:
            coverage.skipped += 1
            reject()

    examine()
    return coverage


def _check_class(kind: type[Technique], shapes: Sequence[Shape], *rest: Any) -> Coverage:
    """Check every convention of the class that fits some shape."""
    found = [technique for technique in conventions(kind) if any(map(technique.fits, (*shapes, *kind.fixtures.shapes)))]
    if not found:
        raise InputError(
            f"the fixtures of {kind.__name__}", "parameters that the class allows and some shape fits", "check_encoding"
        )
    return sum((check_encoding(technique, shapes, *rest) for technique in found), Coverage())


def _unmasked(layer: LayerState, change: Array) -> LayerState:
    """Return the layer with weights changed that its mask drops, as if an earlier step had broken the mask."""
    mask = np.full(layer.weight.shape, True) if layer.format.mask is None else layer.format.mask
    weight = each(lambda w, keep, x: w if keep else w + x, layer.weight, mask, change)
    return replace(layer, weight=weight, format=replace(layer.format, grid=None, rank=None))


def _other_mask(layer: LayerState, size: int) -> LayerState:
    """Return the layer with the weights of every ``size`` reversed: its N:M patterns hold, its mask may be broken."""
    rows, columns = layer.weight.shape
    weight = layer.weight.reshape(rows, columns // size, size)[:, :, ::-1].reshape(rows, columns)
    return replace(layer, weight=weight, format=replace(layer.format, grid=None, rank=None))
