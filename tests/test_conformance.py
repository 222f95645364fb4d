"""The one check that every registered technique must pass, with every convention, and proof that it bites."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis.internal.conjecture import providers

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.errors import InputError
from compcomp.kernels import least_squares_distill
from compcomp.language.technique import Declared, Kernel, Sequence, Technique, as_sequence
from compcomp.layers.state import Format, LayerState
from compcomp.techniques import (
    AWQ,
    FP4,
    FP8,
    GPTQ,
    JSQ,
    LPLR,
    MX,
    NF4,
    OBQ,
    OBS,
    RIA,
    AbsMax,
    AbsMaxInputs,
    AdaptiveSparseTraining,
    ApplyMask,
    BlockFloatingPoint,
    BlockMeans,
    ClippedAbsMax,
    DistillFactors,
    DistillHidden,
    DistillLogits,
    FP8Inputs,
    GradientDistill,
    GradualMagnitude,
    Hadamard,
    JointPruneQuantize,
    LearnedMask,
    LeastSquaresDistill,
    LoftQ,
    LoRA,
    LoSparse,
    Magnitude,
    MinMax,
    PruneColumns,
    PruneHeads,
    PruneNeurons,
    PruneRows,
    QuantizationAwareTraining,
    RemoveBlocks,
    SmoothQuant,
    SparseGPT,
    Taylor,
    TruncatedSVD,
    Wanda,
)
from compcomp.terms import Batch, Or, each
from compcomp.testing import check_encoding, conformance, conventions
from tests.amount import covering, marked
from tests.helpers import DEVICES

PART = 3
"""With every change, one of so many of the layers that ``make exhaustive`` draws."""


def chosen(kind: type[Technique]) -> list[Any]:
    """Each convention with all its layers, and before it, with a part of them, few in which every value occurs."""
    every = conventions(kind)
    few = [every[place] for place in sorted(covering(every))]
    return marked([*((t, PART) for t in few), *((t, 1) for t in every)], range(len(few)))


ALL = [param for kind in Technique.kernels for param in chosen(kind)]
EXAMPLES = {Taylor: 60, RIA: 40, PruneRows: 50, PruneColumns: 60, PruneNeurons: 60, PruneHeads: 60, RemoveBlocks: 60}
EXAMPLES |= {GPTQ: 50, SparseGPT: 120, OBS: 40, OBQ: 60, ApplyMask: 60, JSQ: 48, JointPruneQuantize: 30}
EXAMPLES |= {NF4: 60, ClippedAbsMax: 60, QuantizationAwareTraining: 30, AdaptiveSparseTraining: 80}
EXAMPLES |= {Hadamard: 40, SmoothQuant: 40, AWQ: 80, TruncatedSVD: 40, BlockMeans: 30, DistillFactors: 120}
EXAMPLES |= {LoftQ: 60, LPLR: 60, LoSparse: 100, LoRA: 40}
EXAMPLES |= {LeastSquaresDistill: 120, GradientDistill: 40, DistillHidden: 60, DistillLogits: 40}
"""Layers a convention, where the default is not right: techniques with many conventions need fewer."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("technique", "part"), ALL, ids=str)
def test_kernel_encoding_and_promises_agree(technique: Technique, part: int, device: str) -> None:
    layers = EXAMPLES.get(type(technique), 12 if technique.steps() else 60)
    coverage = check_encoding(technique, max_examples=max(layers // part, 12), device=device)
    assert coverage.clear + coverage.at_ties >= 8 / part
    promises = technique.promises()
    if not technique.steps() and not promises.changes_inputs and promises.optimum is None:
        assert coverage.clear >= 25 / part


@pytest.mark.parametrize(("layers", "least"), [(40, 1), pytest.param(60, 3, marks=pytest.mark.exhaustive)])
def test_ties_and_midpoints_are_seen(layers: int, least: int) -> None:
    seen = (Magnitude("1/2"), Wanda("1/2"), AbsMax(bits=4), AbsMax(bits=3, rounding="half_away"), MinMax(2), MinMax(3))
    seen = (*seen, PruneRows("1/2"), PruneColumns("1/2"), PruneNeurons("1/2"), PruneHeads("1/2"), Taylor("1/2"))
    for technique in seen:
        assert check_encoding(technique, max_examples=layers).at_ties >= least


def test_layers_do_not_depend_on_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, Hypothesis draws constants of imported modules more often than other numbers."""
    drawn: list[list[Any]] = []
    monkeypatch.setattr(conformance, "compare", lambda _, __, layer, *___: drawn[-1].append(layer.weight.tolist()))
    found = providers._get_local_constants()
    for constants in (found, providers.Constants(integers={-2, 0, 3})):
        drawn.append([])
        monkeypatch.setattr(providers, "_get_local_constants", lambda constants=constants: constants)
        monkeypatch.setattr(providers, "CONSTANTS_CACHE", {})
        check_encoding(Magnitude("1/2"), max_examples=200)
    assert drawn[0] == drawn[1]


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
        *("rank", "weight_l1", "weight_l2", "output_l2", "no_op_on_dense", "holds_reference", "leaves_weight"),
        *("deterministic", "restores", "input_bits"),
    ],
)
def test_a_false_promise_is_caught(lie: str) -> None:
    ties = "any" if lie == "deterministic" else "first"
    with pytest.raises(AssertionError, match=f"promise .*{lie}.* is false"):
        check_encoding(Lying("1/2", ties=ties, lie=lie), shapes=[(1, 2), (2, 2)], max_examples=300, minimise=False)


@dataclass(frozen=True)
class LyingRows(PruneRows):
    """Pruning of rows that promises to leave the low-rank term alone, or breaks what it sets up."""

    lie: str = "factors"

    def promises(self) -> Declared:
        true = super().promises()
        return replace(true, keeps=true.keeps | {"factors"}) if self.lie == "factors" else true

    def kernel(self) -> Kernel:
        return PruneRows("1/2").kernel()

    def encode(self, layer: LayerState) -> LayerState:
        after = super().encode(layer)
        return after if self.lie == "factors" else replace(after, weight=layer.weight)


@pytest.mark.parametrize(("lie", "found"), [("factors", "keeps={'factors'}"), ("zeros", "fit the format|keeps")])
def test_rows_that_are_said_to_go_have_to_go(lie: str, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        check_encoding(LyingRows("1/2", lie=lie), shapes=[(2, 2)], max_examples=300, minimise=False)


@dataclass(frozen=True)
class Loosened(AbsMax):
    """Absmax with an ``encode`` that can be changed."""

    change: Callable[[LayerState], LayerState] = lambda layer: layer
    keeps: frozenset[str] = frozenset({"mask", "factors"})

    def promises(self) -> Declared:
        return Declared(keeps=self.keeps)

    def kernel(self) -> Kernel:
        return other(AbsMax(self.bits))

    def steps(self) -> tuple[()]:  # type: ignore[override]
        return ()

    def encode(self, layer: LayerState) -> LayerState:
        return self.change(AbsMax(self.bits).encode(layer))


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


def with_a_float(layer: LayerState) -> LayerState:
    return replace(layer, weight=layer.weight * 0.5)


def with_a_truth_value(layer: LayerState) -> LayerState:
    return replace(layer, weight=each(lambda w: 0 if w == 3 else w, layer.weight))


@pytest.mark.parametrize(("change", "says"), [(with_a_float, "Fraction"), (with_a_truth_value, "truth value")])
def test_encodings_that_are_not_on_terms_are_caught(change: Callable[[LayerState], LayerState], says: str) -> None:
    loose = Loosened(bits=3, change=change, keeps=frozenset())
    with pytest.raises((TypeError, AssertionError), match=says):
        check_encoding(loose, shapes=[(1, 2)], max_examples=60, minimise=False)


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
    ("change", "promise"), [(of_varying_levels, "format_varies=False"), (with_a_pattern, "the format it sets")]
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
def test_inputs_changed_without_a_contract_are_caught(field: str) -> None:
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


@dataclass(frozen=True)
class Scaling(MX):
    """A power of two as a scale, with the promise that it scales along with every factor."""

    def promises(self) -> Declared:
        return replace(super().promises(), homogeneous=True)

    def kernel(self) -> Kernel:
        return MX(group=2).kernel()


def test_a_power_of_two_does_not_scale_along() -> None:
    with pytest.raises(AssertionError, match="homogeneous=True is false"):
        check_encoding(Scaling(group=2), shapes=[(1, 2), (2, 2)], max_examples=100, minimise=False)


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


@dataclass(frozen=True)
class Modest(JointPruneQuantize):
    """Promises the optimum of its parameters, and does something else."""

    done: Sequence = field(default_factory=Sequence)

    def encode(self, layer: LayerState) -> LayerState:
        return self.done.encode(layer)


@pytest.mark.parametrize(
    "done",
    [
        Magnitude("1/2", per="row") >> AbsMax(bits=3, group=2),
        as_sequence(JointPruneQuantize("1/4", 3, per="row", group=2)),
        as_sequence(JointPruneQuantize("1/2", 4, per="row", group=2)),
        as_sequence(JointPruneQuantize("1/2", 3, per="row")),
    ],
    ids=str,
)
def test_a_false_optimum_is_caught(done: Sequence) -> None:
    technique = Modest("1/2", 3, per="row", group=2, done=done)
    with pytest.raises(AssertionError, match="optimum is false"):
        check_encoding(technique, [(2, 4)], 300, kernel=lambda _, layer: done.kernel(layer), minimise=False)


def test_a_promise_for_changed_inputs_is_checked_on_them() -> None:
    with pytest.raises(AssertionError, match=r"never_increases={'output_l2'} is false"):
        check_encoding(Boasting(rank=1, residual=True), shapes=[(1, 2)], max_examples=1500, minimise=False)


# Changes of basis that do more, or less, than they say


@dataclass(frozen=True)
class Bent(SmoothQuant):
    """SmoothQuant with an ``encode`` that can be changed."""

    change: Callable[[LayerState, LayerState], LayerState] = lambda before, after: after
    says: bool = True

    def promises(self) -> Declared:
        return replace(super().promises(), changes_basis=self.says)

    def kernel(self) -> Kernel:
        return SmoothQuant().kernel()

    def encode(self, layer: LayerState) -> LayerState:
        return self.change(layer, super().encode(layer))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda before, after: after, False),
        (lambda before, after: shifted(after), True),
        (lambda before, after: replace(after, weight=before.weight), True),
        (lambda before, after: replace(after, format=replace(after.format, transform=None)), True),
        (lambda before, after: replace(after, reference=after.reference * 2), True),
        (lambda before, after: replace(after, format=replace(after.format, factors=None)), True),
    ],
)
def test_a_change_of_more_than_the_basis_is_caught(
    change: Callable[[LayerState, LayerState], LayerState], says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "compare", lambda *_: None)  # by the promises, not by the kernel
    with pytest.raises(
        AssertionError, match=r"changes_basis=(True|False) is false|never_increases|keeps|zeros|fit the form"
    ):
        check_encoding(Bent(change=change, says=says), shapes=[(1, 2), (2, 2)], max_examples=200, minimise=False)


@dataclass(frozen=True)
class Overrated(Hadamard):
    """A rotation that claims that something survives it which does not."""

    survives: str = "mask"

    def promises(self) -> Declared:
        true = super().promises()
        return replace(true, keeps=true.keeps | {self.survives})

    def kernel(self) -> Kernel:
        return Hadamard(4).kernel()


@pytest.mark.parametrize("survives", ["mask", "n:m", "grid", "shape", "factors"])
def test_what_a_rotation_breaks_is_no_promise(survives: str) -> None:
    with pytest.raises(AssertionError, match=rf"keeps=\{{'{survives}'\}} is false"):
        check_encoding(Overrated(4, survives), shapes=[(2, 4)], max_examples=300, minimise=False)


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


def without_factor_grid(technique: Technique, layer: LayerState) -> LayerState:
    after = technique.kernel()(technique, layer)
    factors = after.format.factors and replace(after.format.factors, right_grid=None)
    return replace(after, format=replace(after.format, factors=factors))


def in_place(technique: Technique) -> Kernel:
    def run(_: Technique, layer: LayerState) -> LayerState:
        after = technique.kernel()(technique, layer)
        layer.weight.copy_(after.weight)
        return after

    return run


def without_factors(layer: LayerState) -> LayerState:
    return replace(layer, format=replace(layer.format, factors=None))


def without_mask(layer: LayerState) -> LayerState:
    return replace(layer, format=replace(layer.format, mask=None, pattern=None))


def factors_left(technique: Technique) -> Kernel:
    """The kernel with the low-rank term as it was."""

    def run(_: Technique, layer: LayerState) -> LayerState:
        after = technique.kernel()(technique, layer)
        return replace(after, format=replace(after.format, factors=layer.format.factors))

    return run


def undecided(technique: LearnedMask) -> Kernel:
    """The kernel with one seed at the first of two calls for a layer and another at the second."""
    seeds = itertools.cycle((0, 1))

    def run(_: Technique, layer: LayerState) -> LayerState:
        return technique.kernel()(replace(technique, seed=next(seeds)), layer)

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
G, N = GradientDistill(iterations=2), PruneNeurons(Fraction(1, 2))
J = JointPruneQuantize("1/2", 3, per="row")
T = QuantizationAwareTraining(3, iterations=3)


WRONG: list[tuple[Technique, Kernel]] = [
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
    (NF4(2), other(NF4(None))),
    (NF4(None), other(FP4(None))),
    (NF4(2, scales="double"), other(NF4(2))),
    (FP4(2), other(FP4(2, rounding="half_up"))),
    (FP4(2), other(MX("mxfp4", 2))),
    (FP8(), other(FP8("e5m2"))),
    (FP8(), other(FP8(per="row"))),
    (MX("mxfp4", 2), other(MX("mxfp4", 4))),
    (MX("mxfp4", 2), other(MX("mxfp6_e2m3", 2))),
    (MX("mxint8", 2), without("grid", MX("mxint8", 2))),
    (BlockFloatingPoint(3, 2), other(BlockFloatingPoint(3, 2, rounding="half_up"))),
    (BlockFloatingPoint(3, 2), other(AbsMax(bits=3, group=2))),
    (ClippedAbsMax(3), other(AbsMax(bits=3))),
    (ClippedAbsMax(3, ratios=4), other(ClippedAbsMax(3, ratios=1))),
    (ClippedAbsMax(3, group=2), other(ClippedAbsMax(3))),
    (FP8Inputs(), other(FP8Inputs("e5m2"))),
    (FP8Inputs(), other(FP8Inputs(per="tensor"))),
    (ApplyMask(), lambda _, layer: layer),
    (ApplyMask(), without("mask", ApplyMask())),
    (Magnitude("1/2", of="dense"), other(Magnitude("1/2"))),
    (RIA("1/2"), other(Wanda("1/2"))),
    (RIA("1/2"), other(RIA("1/2", power=Fraction(1)))),
    (RIA("1/2"), other(RIA("1/2", per="row"))),
    (Taylor("1/2"), other(RIA("1/2"))),
    (Taylor("1/2"), lambda technique, layer: technique.kernel()(technique, without_factors(layer))),
    (Taylor("1/2", group="row"), other(PruneRows("1/2", score="activation"))),
    (Taylor("1/2", group="column"), other(Taylor("1/2", group="row"))),
    (PruneRows("1/2"), other(PruneRows("1/2", score="l2"))),
    (PruneRows("1/2"), other(PruneColumns("1/2"))),
    (PruneRows("1/2"), other(PruneRows("1/2", ties="all"))),
    (PruneColumns("1/2", score="l2", ties="all"), other(PruneColumns("1/2", score="l2"))),
    (Taylor("1/2"), other(Taylor("1/2", ties="all"))),
    (PruneHeads("1/2"), other(PruneHeads("1/2", ties="all"))),
    (PruneRows("1/2"), without("cut", PruneRows("1/2"))),
    (PruneRows("1/2"), without("rank", PruneRows("1/2"))),
    (PruneColumns("1/2"), other(PruneColumns("1/2", size=2))),
    (PruneColumns("1/2"), factors_left(PruneColumns("1/2"))),
    (PruneRows("1/2"), factors_left(PruneRows("1/2"))),
    (PruneColumns("1/2"), in_place(PruneColumns("1/2"))),
    (GradualMagnitude("1/2"), other(Magnitude("1/4"))),
    (GradualMagnitude("1/2"), without("grid", P)),
    (LearnedMask("1/2"), lambda _, layer: layer),
    (LearnedMask("1/2"), other(Magnitude("7/10"))),
    (LearnedMask("1/2"), other(Magnitude("1/4"))),
    (LearnedMask("1/2", pattern="2:4"), other(Magnitude("1/2"))),
    (LearnedMask("1/2"), other(AbsMax(bits=3))),
    (LearnedMask("1/2"), without("mask", Magnitude("1/2"))),
    (LearnedMask("1/2"), without("factors", Magnitude("1/2"))),
    (LearnedMask("1/2"), in_place(Magnitude("1/2"))),
    (LearnedMask("1/2"), undecided(LearnedMask("1/2", iterations=5))),
    (T, other(AbsMax(bits=4))),
    (T, other(AbsMax(bits=2))),
    (T, other(AbsMax(bits=3, group=2))),
    (T, other(AbsMax(bits=3, per="channel"))),
    (T, without("mask", T)),
    (T, without("factors", T)),
    (T, in_place(T)),
    (T, lambda _, layer: layer),
    (T, lambda technique, layer: technique.kernel()(technique, without_mask(layer))),
    (T, lambda technique, layer: replace(technique.kernel()(technique, layer), reference_inputs=None)),
    (D, lambda _, layer: layer),
    (D, one_sweep),
    (D, without("factors", D)),
    (R, other(TruncatedSVD(rank=2, residual=True))),
    (R, without("rank", R)),
    (TruncatedSVD(rank=1), other(TruncatedSVD(rank=2))),
    (N, other(PruneNeurons(Fraction(1, 2), score="l1"))),
    (N, without("cut", N)),
    (N, without("mask", N)),
    (N, without("factors", N)),
    (N, other(Magnitude("1/2", per="row"))),
    (PruneHeads(Fraction(1, 4)), other(PruneHeads(Fraction(1, 2)))),
    (DistillLogits(2), without("mask", DistillLogits(2))),
    (DistillLogits(2), without("grid", DistillLogits(2))),
    (DistillLogits(2), lambda technique, layer: replace(layer, weight=layer.weight + 1)),
    (DistillHidden(2), in_place(DistillHidden(2))),
    (DistillHidden(2), lambda technique, layer: technique.kernel()(technique, replace(layer, format=Format()))),
    (G, other(GradientDistill(iterations=1))),
    (G, other(GradientDistill(iterations=2, rate=Fraction(3, 2)))),
    (G, lambda technique, layer: technique.kernel()(technique, replace(layer, format=Format()))),
    (G, lambda technique, layer: technique.kernel()(technique, replace(layer, reference_inputs=None))),
    (LoftQ(bits=3, rank=1, rounds=2), other(LoftQ(bits=3, rank=1, rounds=1))),
    (LoftQ(bits=3, rank=1), other(LoftQ(bits=3, rank=1, group=2))),
    (LoftQ(bits=3, rank=1), other(LoftQ(bits=3, rank=2))),
    (J, lambda _, layer: (Magnitude("1/2", per="row") >> AbsMax(bits=3)).kernel(layer)),
    (J, other(JointPruneQuantize("1/2", 3))),
    (J, other(JointPruneQuantize("1/2", 3, per="row", ratios="1/2"))),
    (J, other(JointPruneQuantize("1/2", 3, per="row", rounding="half_up"))),
    (J, without("mask", J)),
    (J, without("grid", J)),
    (BlockMeans(2), other(BlockMeans(1))),
    (BlockMeans(1), lambda _, layer: layer),
    (DistillFactors(2), other(DistillFactors(1))),
    (DistillFactors(), lambda _, layer: layer),
    (
        DistillFactors(),
        lambda technique, layer: technique.kernel()(technique, replace(layer, reference_inputs=None)),
    ),
    (LoSparse(1, "1/3"), other(LoSparse(1, "2/3"))),
    (LoSparse(1, "1/2", size=2), other(LoSparse(1, "1/2"))),
    (LoSparse(1, "1/3"), without("factors", LoSparse(1, "1/3"))),
    (LoRA(1, 3), other(LoRA(1, 2))),
    (LoRA(1, 1), other(LoRA(1, 1, seed=1))),
    (LoRA(1, 1, merged=True, masked=True), other(LoRA(1, 1, merged=True))),
    (LPLR(rank=2, bits=3), other(LPLR(rank=2, bits=3, seed=1))),
    (LPLR(rank=2, bits=3), other(LPLR(rank=2, bits=3, right_bits=2))),
    (LPLR(rank=2, bits=3), other(LPLR(rank=2, bits=3, sketch="signs"))),
    (LPLR(rank=2, bits=3), without("rank", LPLR(rank=2, bits=3))),
    (LPLR(rank=2, bits=3), without_factor_grid),
    (TruncatedSVD(rank=1, metric="output"), other(TruncatedSVD(rank=1))),
    (TruncatedSVD(rank=1, residual=True, metric="output"), other(R)),
    (GPTQ(bits=3), other(AbsMax(bits=3))),
    (GPTQ(bits=3), other(GPTQ(bits=3, damping="1/50"))),
    (GPTQ(bits=3), other(GPTQ(bits=3, order="left_to_right"))),
    (GPTQ(bits=3, group=2), other(GPTQ(bits=3, group=2, static_groups=False))),
    (GPTQ(bits=3, mask="kept"), other(GPTQ(bits=3))),
    (GPTQ(bits=3), other(OBQ(bits=3))),
    (SparseGPT("1/2", block=2), other(SparseGPT("1/2", block=4))),
    (SparseGPT("1/2", block=2), other(SparseGPT("1/2", block=2, mask="kept"))),
    (SparseGPT("1/2", block=2, bits=3), other(SparseGPT("1/2", block=2))),
    (SparseGPT("1/2", pattern="1:2"), other(SparseGPT("1/2", block=2))),
    (OBS("1/2"), other(SparseGPT("1/2"))),
    (OBS("1/2"), other(OBS("1/2", pattern="1:2"))),
    (OBS("1/2"), other(OBS("1/2", damping="1/50"))),
    (OBS("1/2"), without("mask", OBS("1/2"))),
    (OBQ(bits=3), other(OBQ(bits=4))),
    (OBQ(bits=3), without("grid", OBQ(bits=3))),
    (OBQ(bits=3), other(GPTQ(bits=3))),
    (SmoothQuant(), other(SmoothQuant("1/4"))),
    (SmoothQuant(), other(SmoothQuant(scales="power_of_two"))),
    (SmoothQuant(), lambda _, layer: layer),
    (SmoothQuant(), without("transform", SmoothQuant())),
    (SmoothQuant(scales="power_of_two"), other(SmoothQuant())),
    (AWQ(("1/2", 0, 1), 3, 2), other(AWQ((0, 1), 3, 2))),
    (AWQ(("1/2", 0, 1), 3, 2), other(AWQ(("1/2", 0, 1), 3, None))),
    (AWQ(("1/2", 0, 1), 3, 2), other(AWQ(("1/2", 0, 1), 2, 2))),
    (Hadamard(), other(Hadamard(2))),
    (Hadamard(), lambda _, layer: layer),
    (JSQ("1/2", 3), other(JSQ("1/2", 3, lam=0))),
    (JSQ("1/2", 3), other(JSQ("1/2", 3, lam="5/2"))),
    (JSQ("1/2", 3), other(JSQ("1/2", 3, norm="max"))),
    (JSQ("1/2", 3, norm="l2"), other(JSQ("1/2", 3))),
    (JSQ("1/2", 3), other(JSQ("1/2", 3, per="tensor"))),
    (JSQ("1/2", 3), other(JSQ("1/2", 3, group=2))),
    (JSQ("1/2", 3), without("mask", JSQ("1/2", 3))),
]
KEYS = [[type(technique), kernel.__qualname__] for technique, kernel in WRONG]
FIRST = {next(place for place, keys in enumerate(KEYS) if key in keys) for key in itertools.chain(*KEYS)}
"""With every change: the first wrong kernel of each technique, and the first of each way to be wrong."""


@pytest.mark.parametrize(("technique", "kernel"), marked(WRONG, FIRST))
def test_a_wrong_kernel_is_caught(technique: Technique, kernel: Kernel) -> None:
    with pytest.raises(AssertionError, match="kernel"):
        check_encoding(technique, shapes=[(2, 4), (3, 6)], max_examples=2000, kernel=kernel, minimise=False)


@dataclass(frozen=True)
class Forgetful(GPTQ):
    """GPTQ that promises what it does not keep."""

    lie: Declared | None = None

    def promises(self) -> Declared:
        return self.lie or super().promises()

    def kernel(self) -> Kernel:
        return GPTQ(bits=3).kernel()


@pytest.mark.parametrize(
    "lie",
    [
        *(Declared(keeps=frozenset({name})) for name in ("mask", "n:m", "grid", "rank", "shape")),
        *(Declared(restores=frozenset({"mask"})), Declared(no_op_on_dense=True), Declared(holds_reference=True)),
        *(Declared(never_increases=frozenset({loss})) for loss in ("output_l2", "weight_l2")),
    ],
)
def test_what_gptq_does_not_keep_is_caught(lie: Declared) -> None:
    with pytest.raises(AssertionError, match=r"promise .* is false"):
        check_encoding(Forgetful(bits=3, lie=lie), shapes=[(1, 2), (2, 2), (2, 4)], max_examples=300, minimise=False)


def test_a_kernel_in_float32_is_within_no_tolerance() -> None:
    """The tolerance is for float64: narrower arithmetic shows."""

    def narrow(technique: Any, layer: LayerState) -> LayerState:
        after = technique.kernel()(technique, replace(layer, weight=layer.weight.float()))
        return replace(after, weight=after.weight.to(torch.bfloat16).to(layer.weight.dtype))

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


@pytest.mark.parametrize(
    ("technique", "wrong"),
    [
        (RemoveBlocks(count=1), RemoveBlocks(count=2)),
        (RemoveBlocks(count=2), RemoveBlocks(count=2, score="angular")),
        (RemoveBlocks(count=2, score="angular"), RemoveBlocks(count=1, score="angular")),
    ],
    ids=str,
)
def test_a_wrong_kernel_for_stacks_is_caught(technique: Technique, wrong: Technique) -> None:
    with pytest.raises(AssertionError, match="kernel"):
        check_encoding(technique, shapes=[(6, 2), (8, 2)], max_examples=200, kernel=other(wrong), minimise=False)


@dataclass(frozen=True)
class Closed(DistillLogits):
    """Leaves its outcome open, and promises that it does not."""

    def promises(self) -> Declared:
        return replace(super().promises(), deterministic=True)

    def kernel(self) -> Kernel:
        return DistillLogits(2).kernel()


def test_an_open_outcome_is_not_deterministic() -> None:
    with pytest.raises(AssertionError, match="deterministic"):
        check_encoding(Closed(2), shapes=[(1, 2)], max_examples=60, minimise=False)
