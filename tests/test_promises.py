"""Every promise that a technique can make, made falsely: check_encoding finds a layer that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.language.contracts import contracts
from compcomp.language.loss import LOSSES
from compcomp.language.steps import GridMap
from compcomp.language.technique import Declared, Kernel, Technique
from compcomp.layers import walk
from compcomp.layers.state import INVARIANTS, Cut, Factors, Format, LayerState
from compcomp.techniques import (
    AbsMax,
    AbsMaxInputs,
    ApplyMask,
    DistillFactors,
    GradientDistill,
    Hadamard,
    JointPruneQuantize,
    Magnitude,
    MinMax,
    PruneRows,
    SmoothQuant,
    Taylor,
    TruncatedSVD,
)
from compcomp.terms import And, If, each
from compcomp.testing import check_encoding
from compcomp.testing.readings import tensors

HALF, PAIRS = Magnitude("1/2"), Magnitude("1/2", pattern="1:2")
FREE, LOW = MinMax(3, zero="none"), TruncatedSVD(1, residual=True)

SHAPES = ((1, 2), (2, 2), (2, 4))

Change = Callable[[LayerState], LayerState]


def unchanged(layer: LayerState) -> LayerState:
    return layer


def exactly(tensor: Any) -> Any:
    """A tensor as an array of Fractions or bools."""
    if tensor.dtype == torch.bool:
        return np.array(tensor.tolist(), dtype=object)
    return each(Fraction, np.array(tensor.tolist(), dtype=object))


@dataclass(frozen=True)
class Lying(Technique):
    """Another technique, with promises in place of its own, and a change after it."""

    inner: Technique
    lie: dict[str, Any] = field(default_factory=dict)
    change: Change = unchanged

    def promises(self) -> Declared:
        return replace(self.inner.promises(), **self.lie)

    @property
    def needs_inputs(self) -> bool:
        return self.inner.needs_inputs

    @property
    def needs_magnitudes(self) -> bool:
        return self.inner.needs_magnitudes

    @property
    def needs_tokens(self) -> bool:
        return self.inner.needs_tokens

    @property
    def unit(self) -> int:
        return self.inner.unit

    def check(self, shape: tuple[int, ...]) -> None:
        self.inner.check(shape)

    def encode(self, layer: LayerState) -> LayerState:
        return self.change(self.inner.encode(layer))

    def kernel(self) -> Kernel:
        """That of the inner technique; with a change, the encoding, so that the promise alone is broken."""
        if self.change is unchanged:
            return lambda _, layer: self.inner.kernel()(self.inner, layer)

        def kernel(_: Technique, layer: LayerState) -> LayerState:
            after = tensors(self.encode(walk.map(exactly, layer)), "cpu")
            return walk.map(lambda x: x.to(layer.weight.dtype) if x.is_floating_point() else x, after)

        return kernel


def also(technique: Technique, *invariants: str) -> dict[str, Any]:
    """What it keeps, and more."""
    return {"keeps": technique.promises().keeps | set(invariants)}


def caught(technique: Technique, message: str, shapes: Any = SHAPES, layers: int = 3000) -> None:
    fitting = [shape for shape in shapes if technique.fits(shape)]
    with pytest.raises(AssertionError, match=message):
        check_encoding(technique, shapes=fitting, max_examples=layers, minimise=False)


LIES: list[tuple[Technique, dict[str, Any]]] = [
    (FREE, also(FREE, "mask")),
    (FREE, also(FREE, "n:m")),
    (FREE, also(FREE, "shape")),
    (LOW, also(LOW, "shape")),  # zero in the weight, but not in the low-rank term
    (MinMax(2), also(MinMax(2), "grid")),
    (HALF, also(HALF, "rank")),
    (LOW, also(LOW, "factors")),
    (HALF, {"restores": frozenset({"mask"})}),
    *((AbsMax(2), {"never_increases": frozenset({loss})}) for loss in LOSSES),
    (DistillFactors(), {"sees_factors": False}),
    (LOW, {"any_inputs": True}),
    (HALF, {"no_op_on_dense": True}),
    (HALF, {"holds_reference": True}),
    (HALF, {"leaves_weight": True}),
    (HALF, {"changes_inputs": True}),
    (AbsMaxInputs(2), {"changes_inputs": False}),
    (Magnitude("1/2", ties="any"), {"deterministic": True}),
    (AbsMax(2, rounding="any"), {"deterministic": True}),
    (FREE, {"zeros": frozenset({"weights"})}),
    (FREE, {"zeros": frozenset({"rows"})}),
    (HALF, {"removes_rows": True}),
    (HALF, {"removes_columns": True}),
    (SmoothQuant(), {"changes_basis": False}),
    (Hadamard(block=4), {"scales_inputs": True}),
    (LOW, {"idempotent": True}),
    (Taylor("1/2", group="column"), {"idempotent": True}),
    (PruneRows("1/2", ties="any"), {"idempotent": True}),
    (SmoothQuant(), {"involution": True}),
    (ApplyMask(), {"no_op": frozenset({"always"})}),  # of a mask that is broken it changes something
    (GradientDistill(1), {"no_op": frozenset({"on a grid"})}),
    (GradientDistill(1), {"no_op": frozenset({"plain"})}),
    (HALF, {"no_op": frozenset({"plain dense"})}),
    (HALF, {"no_op": frozenset({"masked"})}),
    (LOW, {"no_op": frozenset({"without factors"})}),
    (JointPruneQuantize("1/2", 3, group=2), {"idempotent": True}),  # a group may lose its largest weight
]


@cache
def passes_without_a_lie(technique: Technique) -> bool:
    """Whether the check finds nothing; once for all lies about one technique."""
    check_encoding(Lying(technique), max_examples=20, minimise=False)
    return True


@pytest.mark.parametrize(("technique", "lie"), LIES)
def test_a_false_promise_is_caught(technique: Technique, lie: dict[str, Any]) -> None:
    ((name, value),) = lie.items()
    declared = sorted(set(value) - technique.promises().keeps) if name == "keeps" else [name]
    message = "promise any_inputs|never_increases" if name == "any_inputs" else f"promise .*{declared[0]}.* is false"
    assert passes_without_a_lie(technique)
    few = name == "any_inputs"  # a layer that shows it is rare
    caught(Lying(technique, lie), message, ((1, 2), (2, 2)) if few else SHAPES)


NOTHING_KEPT: dict[str, Any] = {
    "keeps": frozenset(),
    "restores": frozenset(),
    "no_op": frozenset(),
    "idempotent": False,
}
"""Withdraws the promises of ApplyMask."""


def test_a_fixed_scale_is_not_homogeneous() -> None:
    def at_most_one(layer: LayerState) -> LayerState:
        return replace(layer, weight=each(lambda w: If(w > 1, 1, w), layer.weight), format=Format())

    lie = NOTHING_KEPT
    caught(Lying(ApplyMask(), lie, at_most_one), "homogeneous=True is false")
    check_encoding(Lying(ApplyMask(), lie | {"homogeneous": False}, at_most_one), minimise=False)


def test_no_promise_goes_without_a_lie() -> None:
    """Of the optimum, the bits of inputs and formats that vary tests/test_conformance.py tells lies."""
    elsewhere = {"homogeneous", "optimum", "input_bits", "format_varies"}
    declared = {name for _, lie in LIES for name in lie} | elsewhere
    assert declared == contracts().keys()
    kept = {name for t, lie in LIES for name in set(lie.get("keeps", ())) - t.promises().keeps}
    assert kept == {*INVARIANTS, "factors"}


# What is lost from the format, and what is set up and does not hold


def without(name: str) -> Change:
    return lambda layer: replace(layer, format=replace(layer.format, **{name: None}))


@pytest.mark.parametrize(
    ("name", "promise"),
    [("pattern", "n:m"), ("cut", "shape"), ("mask", "mask"), ("grid", "grid"), ("factors", "factors")],
)
def test_what_is_forgotten_is_not_kept(name: str, promise: str) -> None:
    caught(Lying(ApplyMask(), {"restores": frozenset()}, without(name)), f"keeps={{'{promise}'}}|fit the format")


def dropping_all(layer: LayerState) -> LayerState:
    """A mask that drops weights that are not zero."""
    return replace(layer, format=replace(layer.format, mask=np.full(layer.weight.shape, False, dtype=object)))


def stricter_pattern(layer: LayerState) -> LayerState:
    return replace(layer, format=replace(layer.format, pattern=layer.format.with_pattern(0, 2)))


def cut_of_all(layer: LayerState) -> LayerState:
    rows, columns = (np.full(n, False, dtype=object) for n in layer.weight.shape)
    return replace(layer, format=replace(layer.format, cut=Cut(rows, columns)))


def removed(layer: LayerState, *, in_factors: bool = True) -> LayerState:
    """The first row removed: from weight and mask, and from the low-rank term where that is said."""
    rows, columns = (np.full(n, True, dtype=object) for n in layer.weight.shape)
    weight, form = layer.weight.copy(), layer.format
    mask = np.full(layer.weight.shape, True, dtype=object) if form.mask is None else form.mask.copy()
    rows[0], weight[0], mask[0], factors = False, 0, False, form.factors
    if form.cut is not None:
        rows, columns = (each(And, a, b) for a, b in ((rows, form.cut.rows), (columns, form.cut.columns)))
    if factors is not None and in_factors:
        left = factors.left.copy()
        left[0] = Fraction(0)
        factors = Factors(left, factors.right)
    return replace(
        layer, weight=weight, format=replace(form, mask=mask, cut=Cut(rows, columns), factors=factors, grid=None)
    )


def lower_rank(layer: LayerState) -> LayerState:
    return replace(layer, format=replace(layer.format, rank=1))


@pytest.mark.parametrize(
    "change",
    [dropping_all, stricter_pattern, cut_of_all, lower_rank, lambda layer: removed(layer, in_factors=False)],
)
def test_what_is_set_up_must_hold(change: Change) -> None:
    lie = NOTHING_KEPT
    caught(Lying(ApplyMask(), lie, change), "does not fit the format it sets")


def test_what_is_set_up_and_holds_passes() -> None:
    """The check of the test before finds nothing in a removal that is done right."""
    lie = NOTHING_KEPT | {"keeps": frozenset({"mask", "n:m", "shape"})}
    check_encoding(Lying(ApplyMask(), lie, removed), shapes=[(2, 2), (2, 4)], max_examples=300, minimise=False)


def looser_pattern(layer: LayerState) -> LayerState:
    known = layer.format.pattern
    return (
        layer
        if known is None
        else replace(layer, format=replace(layer.format, pattern=tuple((m, m) for _, m in known)))
    )


def looser_cut(layer: LayerState) -> LayerState:
    if layer.format.cut is None:
        return layer
    kept = (np.full(n, True, dtype=object) for n in layer.weight.shape)
    return replace(layer, format=replace(layer.format, cut=Cut(*kept)))


@pytest.mark.parametrize(("change", "promise"), [(looser_pattern, "n:m"), (looser_cut, "shape")])
def test_what_is_loosened_is_not_kept(change: Change, promise: str) -> None:
    caught(Lying(ApplyMask(), {}, change), f"keeps={{'{promise}'}} is false")


# Steps that are not what the technique does


@dataclass(frozen=True)
class Misread(AbsMax):
    """Absmax whose steps are those of another."""

    read_as: Technique = HALF

    def steps(self) -> tuple[GridMap]:
        return self.read_as.steps()  # type: ignore[return-value]

    def encode(self, layer: LayerState) -> LayerState:
        return AbsMax(self.bits, self.group, self.rounding).encode(layer)

    def kernel(self) -> Kernel:
        return lambda technique, layer: AbsMax(technique.bits).kernel()(AbsMax(technique.bits), layer)


@pytest.mark.parametrize(
    "other", [AbsMax(4), AbsMax(3, rounding="half_up"), AbsMax(3, group=2), HALF, MinMax(3)], ids=str
)
def test_steps_that_are_not_all_of_it_are_caught(other: Technique) -> None:
    caught(Misread(3, read_as=other), r"its steps\(\) are not what its encoding does", shapes=((1, 4), (2, 4)))
    check_encoding(Misread(3, read_as=AbsMax(3)), max_examples=20)
