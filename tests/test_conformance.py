"""The one check that every registered technique must pass, with every convention, and proof that it bites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.errors import InputError
from compcomp.kernels import least_squares_distill
from compcomp.language.layer import Format, LayerState
from compcomp.language.technique import Declared, Kernel, Technique
from compcomp.techniques import (
    AbsMax,
    AbsMaxInputs,
    ApplyMask,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    TruncatedSVD,
    Wanda,
)
from compcomp.terms import Batch, Or, each
from compcomp.testing import check_encoding, conventions
from tests.helpers import DEVICES

ALL = [technique for kind in Technique.kernels for technique in conventions(kind)]
EXAMPLES = {LeastSquaresDistill: 120, TruncatedSVD: 40, ApplyMask: 60}
"""Layers a convention; techniques with many conventions need fewer."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("technique", ALL, ids=str)
def test_kernel_encoding_and_promises_agree(technique: Technique, device: str) -> None:
    coverage = check_encoding(technique, max_examples=EXAMPLES.get(type(technique), 12), device=device)
    assert coverage.clear + coverage.at_ties >= 8
    if len(technique.steps()) != 1 and not technique.promises().changes_inputs:
        assert coverage.clear >= 25


def test_ties_and_midpoints_are_met() -> None:
    met = (Magnitude("1/2"), Wanda("1/2"), AbsMax(bits=4), AbsMax(bits=3, rounding="half_away"), MinMax(2), MinMax(3))
    for technique in met:
        assert check_encoding(technique, max_examples=60).at_ties >= 3


def test_every_registered_technique_has_conventions() -> None:
    for kind in Technique.kernels:
        assert conventions(kind), f"{kind.__name__} has a parameter without values: add them to VALUES"


# Promises that are false


@dataclass(frozen=True)
class Lying(Magnitude):
    """Magnitude pruning that promises more than it keeps."""

    lie: str = "nothing"

    def promises(self) -> Declared:
        true = super().promises()
        if self.lie == "input_bits":
            return replace(true, input_bits=2)
        if self.lie in ("mask", "grid", "rank", "factors"):
            return replace(true, keeps=true.keeps | {self.lie})
        if self.lie == "restores":
            return replace(true, restores=frozenset({"mask"}))
        if self.lie.startswith(("weight", "output")):
            return replace(true, never_increases=frozenset({self.lie}))
        return true if self.lie == "nothing" else replace(true, **{self.lie: True})

    def kernel(self) -> Kernel:
        return Magnitude("1/2").kernel()


def test_the_truth_passes() -> None:
    check_encoding(Lying("1/2"), max_examples=30)


@pytest.mark.parametrize(
    "lie",
    [
        *("rank", "weight_l1", "weight_l2", "output_l2", "rests", "holds_reference", "leaves_weight"),
        *("deterministic", "restores", "input_bits"),
    ],
)
def test_a_false_promise_is_caught(lie: str) -> None:
    ties = "any" if lie == "deterministic" else "first"
    with pytest.raises(AssertionError, match=f"promise .*{lie}.* is false"):
        check_encoding(Lying("1/2", ties=ties, lie=lie), shapes=[(1, 2), (2, 2)], max_examples=300, minimise=False)


@dataclass(frozen=True)
class Loosened(AbsMax):
    """Absmax with an ``encode`` that can be changed."""

    change: Callable[[LayerState], LayerState] = lambda layer: layer
    keeps: frozenset[str] = frozenset({"mask", "factors"})

    def promises(self) -> Declared:
        return Declared(keeps=self.keeps)

    def kernel(self) -> Kernel:
        return AbsMax(bits=3).kernel()

    def encode(self, layer: LayerState) -> LayerState:
        return self.change(super().encode(layer))


def masked_where_zero(layer: LayerState) -> LayerState:
    """With a mask that keeps what is not zero: it forgets what was dropped where a step has broken the mask."""
    if layer.format.mask is None:
        return layer
    mask = each(lambda keep, w: Or(keep, w != 0), layer.format.mask, layer.weight)
    return replace(layer, format=replace(layer.format, mask=mask))


def shifted(layer: LayerState) -> LayerState:
    return replace(layer, weight=layer.weight + Fraction(1))


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (shifted, "fit the format"),
        (lambda layer: replace(shifted(layer), format=replace(layer.format, grid=None)), "mask|homogeneous"),
        (lambda layer: replace(layer, format=replace(layer.format, factors=None)), "factors"),
        (lambda layer: replace(layer, format=Format()), "mask|factors"),
        (masked_where_zero, "keeps={'mask'}"),
    ],
)
def test_what_an_encoding_breaks_is_caught(change: Callable[[LayerState], LayerState], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_encoding(Loosened(bits=3, change=change), shapes=[(1, 2), (2, 2)], max_examples=150, minimise=False)


def of_varying_levels(layer: LayerState) -> LayerState:
    """As many levels as the first weight asks for: all weights still lie on the grid."""
    grid = layer.format.grid
    assert grid is not None
    first = layer.weight[0, 0]
    wide = replace(grid, levels=grid.levels + (not isinstance(first, Batch) and first != 0))
    return replace(layer, format=replace(layer.format, grid=wide))


def with_a_pattern(layer: LayerState) -> LayerState:
    return replace(layer, format=replace(layer.format, mask=layer.weight == layer.weight, pattern=((1, 2),)))


@pytest.mark.parametrize(
    ("change", "promise"), [(of_varying_levels, "format_varies=False"), (with_a_pattern, "the pattern it sets")]
)
def test_formats_that_say_something_false_are_caught(change: Callable[[LayerState], LayerState], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_encoding(
            Loosened(bits=3, change=change, keeps=frozenset()), shapes=[(1, 2)], max_examples=150, minimise=False
        )


def test_a_grid_that_is_replaced_is_not_kept() -> None:
    with pytest.raises(AssertionError, match=r"keeps=\{'grid'\} is false"):
        check_encoding(Loosened(bits=3, keeps=frozenset({"grid"})), shapes=[(1, 2)], max_examples=150, minimise=False)


@pytest.mark.parametrize("field", ["inputs", "gram", "reference_inputs"])
def test_inputs_changed_without_a_word_are_caught(field: str) -> None:
    def changed(layer: LayerState) -> LayerState:
        return replace(layer, **{field: None if layer.inputs is None else layer.inputs * 0})

    with pytest.raises(AssertionError, match="changes_inputs=False is false"):
        check_encoding(Loosened(bits=3, change=changed), shapes=[(1, 2)], max_examples=60, minimise=False)


@dataclass(frozen=True)
class Wandering(AbsMaxInputs):
    """Rounds the inputs, and then does what it must not."""

    change: Callable[[LayerState, LayerState], LayerState] = lambda before, after: after

    def kernel(self) -> Kernel:
        return AbsMaxInputs(bits=3).kernel()

    def encode(self, layer: LayerState) -> LayerState:
        return self.change(layer, super().encode(layer))


@pytest.mark.parametrize(
    "change",
    [
        lambda before, after: shifted(after),
        lambda before, after: replace(after, reference=after.reference * 2),
        lambda before, after: replace(after, format=replace(after.format, mask=None)),
        lambda before, after: replace(after, format=replace(after.format, rank=None)),
        lambda before, after: replace(after, reference_inputs=None),
        lambda before, after: replace(after, gram=before.gram),
        lambda before, after: after.with_inputs(after.inputs * (1 + abs(after.weight[0, 0]))),
    ],
)
def test_a_change_of_more_than_inputs_is_caught(change: Callable[[LayerState, LayerState], LayerState]) -> None:
    with pytest.raises(AssertionError, match=r"changes_inputs=True is false|homogeneous|keeps|fit the format"):
        check_encoding(Wandering(bits=3, change=change), shapes=[(1, 2), (2, 2)], max_examples=200, minimise=False)


def test_inputs_that_are_looked_at_but_not_needed_are_caught() -> None:
    def by_inputs(layer: LayerState) -> LayerState:
        return layer if layer.gram is None else replace(layer, weight=layer.weight * 0, format=Format())

    with pytest.raises(AssertionError, match="looks at the inputs"):
        check_encoding(
            Loosened(bits=3, change=by_inputs, keeps=frozenset()), shapes=[(1, 2)], max_examples=60, minimise=False
        )


@dataclass(frozen=True)
class Boasting(TruncatedSVD):
    """A low-rank correction that claims to help whatever the inputs have become."""

    def promises(self) -> Declared:
        return replace(super().promises(), any_inputs=True)

    def kernel(self) -> Kernel:
        return TruncatedSVD(rank=1).kernel()


def test_a_promise_for_changed_inputs_is_checked_on_them() -> None:
    with pytest.raises(AssertionError, match=r"never_increases={'output_l2'} is false"):
        check_encoding(Boasting(rank=1, residual=True), shapes=[(1, 2), (2, 2)], max_examples=300, minimise=False)


# Kernels that are wrong


def other(technique: Technique) -> Kernel:
    """The kernel run with another convention."""
    return lambda _, layer: technique.kernel()(technique, layer)


def one_sweep(technique: Any, layer: LayerState) -> LayerState:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(least_squares_distill, "SWEEPS", 1)
        return technique.kernel()(technique, layer)  # type: ignore[no-any-return]


def without(field: str, technique: Technique) -> Kernel:
    """The kernel with one field of the format lost."""

    def run(_: Technique, layer: LayerState) -> LayerState:
        after = technique.kernel()(technique, layer)
        return replace(after, format=replace(after.format, **{field: None}))

    return run


def in_place(technique: Technique) -> Kernel:
    def run(_: Technique, layer: LayerState) -> LayerState:
        after = technique.kernel()(technique, layer)
        layer.weight.copy_(after.weight)  # type: ignore[attr-defined]
        return after

    return run


def last_among_ties(technique: Technique, layer: LayerState) -> LayerState:
    turned = replace(layer, weight=layer.weight.flip(1), format=Format())
    after = technique.kernel()(technique, turned)
    mask = after.format.mask.flip(1)
    if layer.format.mask is not None:
        mask &= layer.format.mask
    return replace(layer, weight=after.weight.flip(1), format=replace(layer.format, mask=mask, rank=None))


P, Q, D = Magnitude("1/2", pattern="2:4"), AbsMax(bits=3), LeastSquaresDistill()
X = AbsMaxInputs(bits=3)
R = TruncatedSVD(rank=1, residual=True)


@pytest.mark.parametrize(
    ("technique", "kernel"),
    [
        (P, other(Magnitude("1/2", pattern="2:4", ties="all"))),
        (P, last_among_ties),
        (P, other(Magnitude("1/2"))),
        (P, without("mask", P)),
        (P, without("grid", P)),
        (P, in_place(P)),
        (Wanda("1/2"), other(Magnitude("1/2", per="row"))),
        (Q, other(AbsMax(bits=3, rounding="half_up"))),
        (Q, other(AbsMax(bits=3, group=2))),
        (Q, other(AbsMax(bits=4))),
        (AbsMax(bits=3, rounding="half_away"), other(AbsMax(bits=3, rounding="half_up"))),
        (X, other(AbsMaxInputs(bits=3, per="tensor"))),
        (X, other(AbsMaxInputs(bits=3, rounding="half_up"))),
        (X, other(AbsMaxInputs(bits=4))),
        (X, lambda technique, layer: replace(technique.kernel()(technique, layer), reference_inputs=None)),
        (X, lambda technique, layer: replace(technique.kernel()(technique, layer), gram=layer.gram)),
        (D, lambda technique, layer: technique.kernel()(technique, replace(layer, reference_inputs=None))),
        (MinMax(bits=3), other(MinMax(bits=3, rounding="half_up"))),
        (MinMax(bits=3), other(MinMax(bits=3, zero="none"))),
        (MinMax(bits=3, zero="none"), other(MinMax(bits=3, zero="none", rounding="half_up"))),
        (MinMax(bits=3), other(MinMax(bits=3, group=2))),
        (ApplyMask(), lambda _, layer: layer),
        (ApplyMask(), without("mask", ApplyMask())),
        (Magnitude("1/2", of="dense"), other(Magnitude("1/2"))),
        (D, lambda _, layer: layer),
        (D, one_sweep),
        (D, without("factors", D)),
        (R, other(TruncatedSVD(rank=2, residual=True))),
        (R, without("rank", R)),
        (TruncatedSVD(rank=1), other(TruncatedSVD(rank=2))),
    ],
)
def test_a_wrong_kernel_is_caught(technique: Technique, kernel: Kernel) -> None:
    with pytest.raises(AssertionError, match="kernel"):
        check_encoding(technique, shapes=[(2, 4), (3, 6)], max_examples=400, kernel=kernel, minimise=False)


def test_a_kernel_in_float32_is_within_no_tolerance() -> None:
    """The tolerance is for float64: narrower arithmetic shows."""

    def narrow(technique: Any, layer: LayerState) -> LayerState:
        after = technique.kernel()(technique, replace(layer, weight=layer.weight.float()))
        return replace(after, weight=after.weight.to(torch.bfloat16).double())

    with pytest.raises(AssertionError, match="torch kernel differs"):
        check_encoding(AbsMax(bits=4), shapes=[(1, 4)], max_examples=100, kernel=narrow, minimise=False)


def test_a_failure_shows_a_small_layer() -> None:
    with pytest.raises(AssertionError) as caught:
        check_encoding(Magnitude("1/2"), shapes=[(1, 2)], max_examples=100, kernel=last_among_ties)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Magnitude(sparsity=1/2): the mask of the torch kernel differs"
    assert "  weight = [['0', '0']]" in lines


def test_no_shape_that_fits_is_wrong_use() -> None:
    with pytest.raises(InputError, match="a shape that fits"):
        check_encoding(AbsMax(bits=4, group=4), shapes=[(2, 3)])
