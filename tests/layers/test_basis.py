"""A technique never sees a transform: what it does in a changed basis is what it does to the layer as it sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from compcomp.errors import NotExactError
from compcomp.language.loss import LOSSES
from compcomp.language.technique import Technique, run, run_kernel
from compcomp.layers.basis import Rotation, Scaling, Transform, composed, unlike
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMaxInputs, Hadamard, Magnitude, SmoothQuant
from compcomp.terms import Choices
from compcomp.testing.agreement import MARGIN, compare
from compcomp.testing.properties import equal_states
from compcomp.testing.report import Coverage as Counts
from compcomp.testing.strategies import conventions, layers
from tests.helpers import layer, matrix

QUIET = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
PARTS = st.one_of(
    st.lists(st.sampled_from([Fraction(1, 2), Fraction(2), Fraction(4), Fraction(3)]), min_size=4, max_size=4).map(
        lambda scales: Scaling(np.array(scales, dtype=object))
    ),
    st.just(Rotation(4)),
)
TRANSFORMS = st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: composed(None, Transform(tuple(parts))))


def tensors(transform: Transform) -> Transform:
    return transform.map(lambda scales: torch.tensor([float(x) for x in scales], dtype=torch.float64))


@QUIET
@given(transform=TRANSFORMS, start=layers((3, 4)))
def test_a_transform_is_its_matrix(transform: Transform | None, start: LayerState) -> None:
    assume(transform is not None)
    assert transform is not None
    whole, weight = transform.matrix(4), start.weight
    assert (transform.weights_back(weight) == weight @ whole).all()
    assert (transform.weights(weight @ whole) == weight).all()
    assert (transform.inputs(start.gram) == whole @ start.gram).all()
    assert (transform.inputs_back(whole @ start.gram) == start.gram).all()
    assert (transform.gram(start.gram) == whole @ start.gram @ whole.T).all()
    assert (transform.gram_back(transform.gram(start.gram)) == start.gram).all()
    floats: Any = torch.tensor([[float(x) for x in row] for row in weight], dtype=torch.float64)
    expected = torch.tensor([[float(x) for x in row] for row in weight @ whole], dtype=torch.float64)
    torch.testing.assert_close(tensors(transform).weights_back(floats), expected)


def test_parts_that_meet_are_joined() -> None:
    two, half = Scaling(np.array([Fraction(2)] * 4)), Scaling(np.array([Fraction(1, 2)] * 4))
    joined = composed(Transform((Rotation(4), two)), Transform((half, Rotation(4))))
    assert joined is not None and len(joined.parts) == 3
    assert not any(a != b for a, b in unlike(joined, None, 4))
    assert composed(Transform((Rotation(4),)), Transform((Rotation(4),))) is None
    assert any(a != b for a, b in unlike(Transform((two,)), None, 4))


def rebased(start: LayerState, transform: Transform) -> LayerState:
    """A state of which ``start`` is the view: what techniques see of it."""
    names = ("inputs", "reference_inputs")
    back = {name: None if (x := getattr(start, name)) is None else transform.inputs_back(x) for name in names}
    return replace(
        start,
        reference=transform.weights_back(start.reference),
        gram=None if start.gram is None else transform.gram_back(start.gram),
        format=replace(start.format, transform=transform),
        **back,
    )


@dataclass(frozen=True)
class InAnyBasis(Technique):
    """The technique as the library runs it."""

    base: Technique

    def promises(self) -> Any:
        return self.base.promises()

    def encode(self, layer: LayerState) -> LayerState:
        return run(self.base, layer)


FITTING = [kind for kind in Technique.kernels if any(t.fits((3, 4)) for t in conventions(kind))]
"""All but those of a whole stack of blocks."""


@pytest.mark.parametrize("examples", [5, pytest.param(12, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", FITTING, ids=lambda kind: kind.__name__)
def test_every_technique_acts_on_the_layer_as_it_sees_it(kind: type[Technique], examples: int) -> None:
    @settings(QUIET, max_examples=examples)
    @given(data=st.data())
    def acts(data: st.DataObject) -> None:
        technique = data.draw(st.sampled_from([t for t in conventions(kind) if t.fits((3, 4))]))
        start = data.draw(layers((3, 4), gram_only=False))
        if (exact_layer := kind.fixtures.exact_layer) is not None:
            start = exact_layer(technique, start, data.draw(st.lists(st.integers(1, 3), min_size=4, max_size=4)))
        transform = data.draw(TRANSFORMS)
        assume(transform is not None)
        state = rebased(start, transform)
        assert equal_states(replace(state.working(), choices=Choices()), start)
        try:
            seen = technique.encode(replace(start, choices=Choices()))
            after = run(technique, replace(state, choices=Choices()))
        except NotExactError:
            assume(False)
        promises = technique.promises()
        assert (after.weight == seen.weight).all()
        assert (after.reference == state.reference).all()
        assert (after.effective() == transform.weights_back(seen.effective())).all()
        if promises.changes_basis:
            assert (after.effective() == state.effective()).all()
            joined = composed(transform, seen.format.transform)
            assert not any(a != b for a, b in unlike(after.format.transform, joined, 4))
        else:
            assert after.format.transform is not None and after.format.transform.parts == transform.parts
        if promises.changes_inputs:
            assert (after.inputs == transform.inputs_back(seen.inputs)).all()
            dense_inputs = state.inputs if start.reference_inputs is None else state.reference_inputs
            assert after.reference_inputs is dense_inputs
        else:
            assert after.inputs is state.inputs and after.gram is state.gram
        outputs = LOSSES["output_l2"]
        assert outputs.of(after) == outputs.of(seen)
        dead = technique.needs_magnitudes and not (start.weight.any(axis=0).all() and start.inputs.any(axis=1).all())
        unique = kind.feasible is Technique.feasible  # else the kernel need not do what the first of every choice does
        clear = seen.choices.margin > MARGIN and not dead  # zeros do not survive a rotation there and back in floats
        if unique and clear:

            def kernel(_: Technique, layer: LayerState) -> LayerState:
                return run_kernel(technique, layer)

            compare(InAnyBasis(technique), kernel, state, replace(after, choices=seen.choices), "cpu", Counts())

    acts()


def test_inputs_are_rounded_in_the_basis_that_is_there() -> None:
    """Of X = (6, 1) 2 bits leave (6, 0); with scales 2 and 1/2 they see (3, 2) and leave (3, 3)."""
    start = layer([[1, 1]], [[6], [1]])
    scaled = start.rebased(Scaling(np.array([Fraction(2), Fraction(1, 2)], dtype=object)))
    after = run(AbsMaxInputs(2), scaled)
    assert run(AbsMaxInputs(2), start).inputs.tolist() == [[6], [0]]  # type: ignore[union-attr]
    assert after.inputs.tolist() == [[6], [Fraction(3, 2)]]  # type: ignore[union-attr]
    assert after.reference_inputs is start.inputs and after.gram.tolist() == [[36, 9], [9, Fraction(9, 4)]]  # type: ignore[union-attr]


def test_a_sequence_and_its_trace_agree() -> None:
    sequence = SmoothQuant() >> Magnitude(Fraction(1, 2)) >> Hadamard() >> AbsMaxInputs(3)
    start = layer([[4, -1, 2, 2]], matrix([[1], [4], [2], [8]]).tolist())
    assert equal_states(sequence.trace(start)[-1], sequence.encode(start))
    assert len(sequence.trace(start)) == 5 and sequence.changes_basis
