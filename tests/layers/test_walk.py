"""The table has every field of a state, and one entry is all that a further field needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import z3

from compcomp.language.claim import same_state
from compcomp.language.kernel_result import wrong_result
from compcomp.language.size import DENSE, layer_bits
from compcomp.language.technique import Declared, Technique
from compcomp.layers import walk
from compcomp.layers.basis import Rotation, Scaling, Transform
from compcomp.layers.state import Cut, Factors, Format, Grid, LayerState, Magnitudes
from compcomp.layers.walk import Field
from compcomp.models.components import pack
from compcomp.models.devices import move
from compcomp.models.states import digest
from compcomp.proving.meaning import differences, fails
from compcomp.terms import Array, Or
from compcomp.testing import check_encoding
from compcomp.testing.agreement import check_same
from compcomp.testing.properties import equal_states
from compcomp.testing.readings import floats, tensors


def exact(*rows: list[int]) -> Array:
    found = np.empty((len(rows), len(rows[0])), dtype=object)
    for index in np.ndindex(*found.shape):
        found[index] = Fraction(rows[index[0]][index[1]])
    return found


def grid(shape: tuple[int, int]) -> Grid:
    return Grid(exact(*[[1] * shape[1]] * shape[0]), 7, 2, exact(*[[-3] * shape[1]] * shape[0]))


def everything() -> LayerState:
    """A layer of 2 x 4 with something in every field."""
    factors = Factors(exact([1], [2]), exact([1, 0, 2, 1]), grid((2, 1)), grid((1, 4)))
    cut = Cut(np.array([True, False], dtype=object), np.array([True] * 4, dtype=object))
    scales = np.array([Fraction(k) for k in (1, 2, 3, 4)], dtype=object)
    form = Format(
        mask=np.array([[True, False] * 2] * 2, dtype=object),
        grid=grid((2, 4)),
        factors=factors,
        rank=1,
        pattern=((2, 4),),
        cut=cut,
        transform=Transform((Scaling(scales), Rotation(4))),
    )
    inputs = exact([1, 0, 2], [0, 1, 1], [2, 2, 0], [1, 1, 1])
    layer = LayerState.dense(exact([1, 2, 3, 4], [0, 1, 0, 2]), inputs)
    sizes = np.array([Fraction(1)] * 4, dtype=object)
    return replace(layer, format=form, reference_inputs=inputs, magnitudes=Magnitudes(sizes, sizes))


# The table is whole


def paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Every path to a field that holds no further ones, by the annotations of the classes."""
    for name, annotation in get_type_hints(kind).items():
        parts = [part for part in (Format, Grid, Factors, Cut, Magnitudes) if part in (annotation, *_of(annotation))]
        if parts:
            yield from paths(parts[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _of(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def test_the_table_has_every_field_of_a_state_but_its_choices() -> None:
    assert sorted(field.path for field in walk.FIELDS) == sorted({*paths(LayerState)} - {"choices"})
    assert len({field.name for field in walk.FIELDS}) == len(walk.FIELDS)
    state = everything()
    assert [field.path for field in walk.FIELDS if field.of(state) is None] == ["format.grid.codes"] + [
        f"format.factors.{side}_grid.codes" for side in ("left", "right")
    ]


def test_shapes_and_kinds_are_as_the_table_says() -> None:
    sides = {"out": 2, "in": 4, "rank": 1, "tokens": 3}
    for field, array in walk.arrays(everything()):
        assert array.shape == tuple(sides[side] for side in field.shape), field.path
        assert all(isinstance(x, bool) == (field.kind == "truths") for x in array.ravel()), field.path


# A field that is there changes what it says it does


def changed(state: LayerState, field: Field) -> LayerState:
    """The state with another value in this field alone."""
    value = field.of(state)
    if field.kind == "truths":
        value = np.array([not x for x in value.ravel()], dtype=object).reshape(value.shape)
    elif field.kind == "numbers":
        value = value + 1
    elif field.kind == "basis":
        value = Transform((Rotation(4),))
    else:
        value = {"pattern": ((1, 4),), "zero on the grid": False}.get(field.name, 5)
        value = False if isinstance(field.of(state), bool) else value
        value = (Fraction(0), Fraction(1)) if field.name.endswith("codes") else value
    return at(state, field.path.split("."), value)


def at(holder: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(holder, **{name: at(getattr(holder, name), rest, value) if rest else value})


@pytest.mark.parametrize("field", walk.FIELDS, ids=lambda field: field.path)
def test_states_differ_in_a_field_that_counts(field: Field) -> None:
    state = everything()
    other = changed(state, field)
    found = [name for name, terms in walk.differences(state, other).items() if any(terms)]
    if field.equal in ("", "often"):
        assert found == []
    elif field.equal == "product":
        assert found == [walk.PRODUCT.name]
    else:
        # with the basis the low-rank product is another one, as the layer computes with it
        assert field.name in found and set(found) <= {field.name, walk.PRODUCT.name}
    assert equal_states(state, other) == (not found)
    assert not walk.alike_but(state, other)
    assert walk.alike_but(state, other, field.name)
    assert any(line.startswith(f"{field.name} = ") for line in walk.lines(state)) == (field.of(state) is not None)


def test_a_map_reaches_every_array_and_leaves_the_rest() -> None:
    state = everything()
    mapped = walk.map(lambda array, other: ("seen", array is other), state, state)
    for field in walk.FIELDS:
        if field.is_array:
            assert field.of(mapped) == ("seen", True), field.path
        elif field.kind == "data":
            assert field.of(mapped) == field.of(state)
    assert mapped.format.transform is not None
    assert mapped.format.transform.parts == (Scaling(("seen", True)), Rotation(4))


# One more field


@dataclass(frozen=True)
class Biased(Format):
    """A format with one field more: what is added to the outputs."""

    bias: Any = None


BIAS = Field("format.bias", "output bias", "numbers", ("out",), "as it is", stored="apart")


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry in the table: all that the library knows of the field."""
    monkeypatch.setattr(walk, "FIELDS", (*walk.FIELDS, BIAS))


def biased(*numbers: int) -> LayerState:
    bias = np.array([Fraction(x) for x in numbers], dtype=object)
    return replace(LayerState.dense(exact([1, 2, 3, 4], [0, 1, 0, 2])), format=Biased(bias=bias))


def test_a_field_more_is_mapped(one_more: None) -> None:
    both = tensors(biased(1, 2), "cpu")
    assert torch.equal(both.format.bias, torch.tensor([1.0, 2.0], dtype=torch.float64))  # type: ignore[attr-defined]
    assert floats(both).format.bias.tolist() == [1.0, 2.0]  # type: ignore[attr-defined]
    assert move(both, torch.device("meta")).format.bias.is_meta


def test_a_field_more_is_compared(one_more: None) -> None:
    claim = same_state(Identity(), Identity())
    assert not fails(claim, [[biased(1, 2)], [biased(1, 2)]])
    assert fails(claim, [[biased(1, 2)], [biased(1, 3)]])
    assert fails(claim, [[biased(1, 2)], [LayerState.dense(biased(1, 2).weight)]])
    found = walk.differences(biased(1, 2), biased(1, 3))
    assert [name for name, terms in found.items() if any(terms)] == ["output bias"]
    x = z3.Real("x")
    symbolic = replace(biased(1, 2), format=Biased(bias=np.array([Fraction(1), x], dtype=object)))
    solver = z3.Solver()
    solver.add(Or(*differences(biased(1, 2), symbolic)))
    assert solver.check(x == 2) == z3.unsat and solver.check(x == 3) == z3.sat
    assert not equal_states(biased(1, 2), biased(1, 3)) and equal_states(biased(1, 2), biased(1, 2))
    with pytest.raises(TypeError, match="float"):
        replace(biased(), format=Biased(bias=np.array([1.5, 2.0], dtype=object))).require_exact()


def test_a_field_more_is_shown(one_more: None) -> None:
    assert "output bias = [['1', '2']]" in walk.lines(biased(1, 2))


def test_a_field_more_is_stored(one_more: None) -> None:
    state, other = (tensors(biased(1, k), "cpu") for k in (2, 3))
    assert pack(state, torch.float32)["output_bias"].tolist() == [1.0, 2.0]
    assert digest(state) != digest(other)
    assert layer_bits(state.format, (2, 4)) == layer_bits(Format(), (2, 4)) + 2 * DENSE


def test_a_field_more_is_asked_of_kernels(one_more: None) -> None:
    state = tensors(biased(1, 2), "cpu")
    assert wrong_result(state, state) is None
    for bias, wrong in ((torch.zeros(3), "output bias of shape"), ([1, 2], "output bias is a list")):
        found = wrong_result(state, replace(state, format=Biased(bias=bias)))
        assert found is not None and wrong in found[0]


@dataclass(frozen=True)
class Identity(Technique):
    """Nothing is done to the weight; the largest weight of a row is its bias."""

    declared = Declared(format_varies=True)
    off = Fraction(0)

    def encode(self, layer: LayerState) -> LayerState:
        bias = np.array([row[0] for row in layer.weight], dtype=object)
        return replace(layer, format=_with(layer.format, bias))


def _with(form: Format, bias: Any) -> Format:
    return Biased(**{f.name: getattr(form, f.name) for f in fields(Format)}, bias=bias)


def kernel_of(off: float) -> Any:
    return lambda _, layer: replace(layer, format=_with(layer.format, layer.weight[:, 0] + off))


def test_a_field_more_is_held_to_conformance(one_more: None) -> None:
    shapes = [(2, 3)]
    with pytest.raises(AssertionError, match="output bias of the torch kernel differs"):
        check_encoding(Identity(), shapes, 4, kernel=kernel_of(0.5), minimise=False)
    state = floats(tensors(biased(1, 2), "cpu"))
    check_same(Identity(), "torch kernel", biased(1, 2), biased(1, 2), state)
    with pytest.raises(AssertionError, match="output bias"):
        check_same(Identity(), "torch kernel", biased(1, 2), biased(1, 3), state)


def test_without_its_entry_nobody_sees_it() -> None:
    assert not any(any(terms) for terms in walk.differences(biased(1, 2), biased(1, 3)).values())
