"""Two steps, scores, measures or techniques are one only where they agree in everything, whatever they say."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, ClassVar

import pytest

from compcomp.language.claim import Claim, dominates, equal
from compcomp.language.identity import Unidentified, identity, same, same_but
from compcomp.language.steps import CodebookMap, GridMap, Optimum, RangeMap, Selection, Step
from compcomp.language.technique import Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.proving.prove import prove
from compcomp.techniques import AbsMax
from compcomp.terms import Abs, each
from tests.amount import spread
from tests.helpers import matrix

HALF, QUARTER, ALL, ROWS = Fraction(1, 2), Fraction(1, 4), Partition.tensor(), Partition.rows()
LAYERS = [
    LayerState.dense(matrix([row[:2], row[2:]]), matrix(inputs))
    for row in itertools.islice(itertools.product((1, -2, 3, 4), repeat=4), 0, None, 5)
    for inputs in ([[3, 0], [0, 1]], [[0, 0], [1, 2]], [[1, 1], [0, 5]])
]


@dataclass(frozen=True)
class Of(Technique):
    """Some steps."""

    what: tuple[Step, ...]

    def steps(self) -> tuple[Step, ...]:
        return self.what


def of(*steps: Any) -> Of:
    return Of(steps)


def falls(claim: Claim) -> bool:
    """Whether some layer breaks the claim, in exact numbers, each side computed on its own."""
    for layer in LAYERS:
        one, other = (sequence.encode(layer) for sequence in claim.sequences)
        if claim.loss is not None:
            if claim.loss.of(one) > claim.loss.of(other):
                return True
        elif (one.weight != other.weight).any():
            return True
    return False


def is_sound(claim: Claim) -> bool:
    """Asks the rules; whether they proved. What they prove has to be true."""
    proved = prove(claim, stages=("rule",), second=None, timeout=20, explain=False).proved
    assert not (proved and falls(claim)), str(claim)
    return proved


# ------------------------------------------------------------------------------------------ every field of a step


def score(element: Any) -> Any:
    """The magnitude without inputs, the energy with them."""
    return Abs(element.weight) if element.norm2 is None else element.weight * element.weight * element.norm2


def reversed_score(element: Any) -> Any:
    return -Abs(element.weight)


def by_layer(layer: LayerState) -> Any:
    return each(lambda w: -Abs(w), layer.weight)


def twice(weight: Any) -> Any:
    return 2 * Abs(weight)


CODES, OTHERS = tuple(map(Fraction, (-1, 0, 1))), tuple(map(Fraction, (-2, 0, 1)))
GRID = GridMap(Abs, 3, "half_even", ALL)
STEPS: tuple[Any, ...] = (
    Selection(score, ALL, QUARTER, "first"),
    Selection(score, ALL, QUARTER, "first", needs_inputs=True),
    GRID,
    CodebookMap(Abs, CODES, "half_even", ALL),
    RangeMap(3, "half_even", ALL, True),
    Optimum("weight_l2", ALL, HALF, GRID, (Fraction(1),)),
)
VALUES: dict[str, tuple[Any, ...]] = {
    "score": (score, reversed_score),
    "measure": (Abs, twice),
    "partition": (ALL, ROWS, Partition.blocks(2)),
    "share": (QUARTER, HALF, Fraction(0)),
    "ties": ("first", "all", "any"),
    "needs_inputs": (False, True),
    "of_layer": (None, by_layer),
    "levels": (3, 2, 6),
    "below": (0, 1),
    "beyond": (Fraction(0), HALF, Fraction(1)),
    "rounding": ("half_even", "half_up", "half_away"),
    "codes": (CODES, OTHERS),
    "scale": ("absmax", "power_of_two"),
    "zero": (True, False),
    "loss": ("weight_l2", "weight_l1"),
    "grid": (GRID, replace(GRID, levels=1)),
    "ratios": ((Fraction(1),), (Fraction(1), HALF)),
}
"""Of each field of a step, by its name, values that differ. A field that is new needs some here."""


def changed() -> Iterator[tuple[Any, Any, str]]:
    for step in STEPS:
        for f in fields(step):
            for value in VALUES[f.name]:
                if getattr(step, f.name) != value:
                    yield step, replace(step, **{f.name: value}), f.name


CHANGED = list(changed())


@pytest.mark.parametrize(("one", "other", "name"), CHANGED, ids=lambda value: value if isinstance(value, str) else "")
def test_steps_that_differ_in_one_field_are_two(one: Any, other: Any, name: str) -> None:
    assert same(one, one) and same_but(one, other, name)
    assert not same(one, other) and not same_but(one, other) and identity(one) != identity(other)
    for f in fields(one):
        assert same_but(one, other, f.name) is (f.name == name)


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [pair for pair in CHANGED if not isinstance(pair[0], Optimum)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_rule_takes_two_steps_for_one(one: Any, other: Any, name: str) -> None:
    """Alone, after one another and around a map: whatever is proved of them is true of every layer tried."""
    p, q, r = of(one), of(other), AbsMax(3)
    for a, b in ((p, q), (q, p)):
        claims = [equal(a, b), equal(a >> b, b), equal(a >> b, a), equal(a >> r, b >> r), dominates(a, b, "output_l2")]
        claims += [dominates(a >> b, b, "weight_l1"), dominates(a >> r, r >> b, "weight_l1")]
        for claim in claims:
            is_sound(claim)


def test_a_field_that_is_added_later_is_compared() -> None:
    @dataclass(frozen=True)
    class Later:
        score: Any
        share: Fraction
        more: int = 0

    assert same_but(Later(score, HALF), Later(score, QUARTER), "share")
    assert not same_but(Later(score, HALF), Later(score, QUARTER, 1), "share")


# ------------------------------------------------------------------------------------------ odd equality


@dataclass(frozen=True)
class Hiding:
    """A frozen dataclass that leaves its number out of its equality."""

    sign: int = field(compare=False)

    def __call__(self, element: Any) -> Any:
        return self.sign * Abs(element.weight)


@dataclass(frozen=True)
class Signed:
    sign: int

    def __call__(self, element: Any) -> Any:
        return self.sign * Abs(element.weight)


@dataclass(frozen=True)
class Agreeing(Signed):
    """Equal to all of its kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Agreeing)

    def __hash__(self) -> int:
        return 1


class Plain:
    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain)

    def __hash__(self) -> int:
        return 2

    def __call__(self, element: Any) -> Any:
        return self.sign * Abs(element.weight)


@dataclass(frozen=True)
class Unlisted:
    """What it does stands in an attribute that is no field."""

    def __call__(self, element: Any) -> Any:
        return self.sign * Abs(element.weight)  # type: ignore[attr-defined]


def unlisted(sign: int) -> Unlisted:
    made = Unlisted()
    object.__setattr__(made, "sign", sign)
    return made


class Slotted:
    __slots__ = ("sign",)

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted)

    def __hash__(self) -> int:
        return 3

    def __call__(self, element: Any) -> Any:
        return self.sign * Abs(element.weight)


class Listed(tuple[int, ...]):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed)

    def __hash__(self) -> int:
        return 4

    def __call__(self, element: Any) -> Any:
        return self[0] * Abs(element.weight)


class Flipping:
    """Another score at every other call."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __call__(self, element: Any) -> Any:
        self.sign = -self.sign
        return self.sign * Abs(element.weight)


class Counting:
    calls: ClassVar[list[int]] = []

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def __call__(self, element: Any) -> Any:
        self.calls.append(1)
        return (self.sign if len(self.calls) % 3 else -self.sign) * Abs(element.weight)


def closing(sign: int) -> Callable[[Any], Any]:
    return lambda element: sign * Abs(element.weight)


def remembering(sign: int) -> Callable[[Any], Any]:
    calls = 0

    def one(element: Any) -> Any:
        nonlocal calls
        calls += 1
        return (sign if calls % 3 else -sign) * Abs(element.weight)

    return one


def drawing(sign: int) -> Callable[[Any], Any]:
    return lambda element: random.choice((sign, -sign)) * Abs(element.weight)


class Everything(type):
    """A class of classes that are all equal."""

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type)

    def __hash__(cls) -> int:
        return 5


def of_classes(sign: int) -> Any:
    class One(metaclass=Everything):
        def __call__(self, element: Any) -> Any:
            return sign * Abs(element.weight)

    return One()


SCORES = (Hiding, Signed, Agreeing, Plain, unlisted, Slotted, lambda sign: Listed((sign,)), closing, of_classes)
CHANGING = (Flipping, Counting, remembering, drawing)


@dataclass(frozen=True)
class Scored(Technique):
    score: Any
    share: Fraction

    def steps(self) -> tuple[Step, ...]:
        return (Selection(self.score, ALL, self.share, "first"),)


@dataclass(frozen=True)
class Hidden(Technique):
    """A technique that leaves its score out of its equality."""

    share: Fraction
    score: Any = field(compare=False)

    def steps(self) -> tuple[Step, ...]:
        return (Selection(self.score, ALL, self.share, "first"),)


@dataclass(frozen=True)
class Measured(Technique):
    score: Any
    share: Fraction

    def steps(self) -> tuple[Step, ...]:
        steps = int(1 / self.share)
        return (GridMap(lambda w: 2 * Abs(w) + self.score(_Weight(w)) / 2, steps, "half_even", ALL),)


@dataclass(frozen=True)
class _Weight:
    weight: Any


MAKERS: tuple[Callable[[Any, Fraction], Technique], ...] = (
    Scored,
    lambda score, share: Hidden(share, score),
    Measured,
)


@pytest.mark.parametrize(("make", "of_score"), spread(itertools.product(SCORES, MAKERS), 12))
def test_what_calls_itself_equal(make: Any, of_score: Any) -> None:
    for one, other in ((1, 1), (1, -1), (-1, 1)):
        p, q, q4 = of_score(make(one), QUARTER), of_score(make(other), HALF), of_score(make(other), QUARTER)
        for claim in (
            *(equal(p >> q, q), equal(q >> p, q), equal(p, q4), equal(p, p >> q4)),
            *(dominates(p, q4), dominates(p, q), dominates(p >> AbsMax(3), AbsMax(3) >> q4)),
        ):
            is_sound(claim)


@pytest.mark.parametrize("make", CHANGING)
def test_what_changes_while_it_is_looked_at(make: Any) -> None:
    made = make(1)
    with pytest.raises(Unidentified):
        identity(made)
    p, q = Scored(made, QUARTER), Scored(made, HALF)
    for claim in (equal(p, p), equal(p >> q, q), dominates(p >> AbsMax(3), AbsMax(3) >> p)):
        assert not prove(claim, stages=("rule",), second=None, explain=False).proved


@dataclass(frozen=True)
class Turning(Technique):
    """Its steps are others at every call."""

    turns: Any = field(default_factory=itertools.count)

    def steps(self) -> tuple[Step, ...]:
        return (Selection(score if next(self.turns) % 2 else reversed_score, ALL, HALF, "first"),)


class Turned(Technique):
    count = 0

    def steps(self) -> tuple[Step, ...]:
        type(self).count += 1
        return (Selection(score if self.count % 2 else reversed_score, ALL, HALF, "first"),)

    def __str__(self) -> str:
        return "Turned()"


@pytest.mark.parametrize("made", [Turning(), Turned()])
def test_a_technique_with_a_state(made: Technique) -> None:
    assert not prove(equal(made, made), stages=("rule",), second=None, explain=False).proved
    assert not prove(
        dominates(made >> AbsMax(3), AbsMax(3) >> made), stages=("rule",), second=None, explain=False
    ).proved


@dataclass(frozen=True)
class Usual(Signed):
    def __call__(self, element: Any) -> Any:
        return self.sign * Abs(element.weight) if self == USUAL else Abs(element.weight)


USUAL = Usual(1)


def test_code_that_looks_at_objects_of_its_own_class() -> None:
    assert same(Usual(2), Usual(2)) and same(USUAL, Usual(1)) and not same(USUAL, Usual(2))


def test_what_is_written_plainly_is_still_proved() -> None:
    """Nothing is lost of a score that is a function, a closure of numbers or a plain object without a state."""
    for made in (score, closing(1), Signed(1), Hiding(1), unlisted(1)):
        p, q = Scored(made, QUARTER), Scored(made, HALF)
        assert is_sound(equal(p >> q, q)) and is_sound(dominates(p >> AbsMax(3), AbsMax(3) >> p))
