"""A value stands for an open parameter only where it is one of those that Any stands for, in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope, keeps
from compcomp.language.parameters import ANY
from compcomp.language.samples import conventions, representatives
from compcomp.language.steps import GridMap, Selection, Step
from compcomp.language.technique import Declared, Technique
from compcomp.language.verdict import Status
from compcomp.layers.partition import Partition
from compcomp.ordering.ask import Asker
from compcomp.ordering.reuse import follows
from compcomp.ordering.store import Store
from compcomp.proving.prove import prove
from compcomp.proving.rules.likeness import stands_for
from compcomp.techniques import AbsMax, Magnitude, SparseGPT
from compcomp.terms import Abs, Max
from tests.ordering.fakes import verdict

ANYWHERE = Scope.of("any")
VALUES: tuple[Any, ...] = (None, True, False, "none", "half_even", 2, 5, 0.5, Fraction(1, 7), Fraction(4))


def open_ones() -> Iterator[tuple[Technique, str]]:
    for kind in Technique.known().values():
        for technique in [*representatives(kind), *conventions(kind)[:40]]:
            for name in kind.examples:
                try:
                    yield replace(technique, **{name: ANY}), name
                except InputError:
                    continue


def test_of_every_open_parameter_of_the_catalogue_numbers_alone() -> None:
    seen = 0
    for technique, name in open_ones():
        for value in (*type(technique).examples[name], *VALUES):
            try:
                other: Any = replace(technique, **{name: value})
            except InputError:
                continue
            is_number = type(getattr(other, name)) in (int, Fraction)
            assert stands_for(technique, other) is is_number, (technique, other)
            seen += 1
    assert seen > 200


def pairs() -> Iterator[tuple[Claim, Claim]]:
    """Claims that differ in bits=Any for bits=None alone."""
    sparse = SparseGPT(sparsity="1/2", mask="kept")
    for before in ((), (AbsMax(4),), (Magnitude("1/2"),)):
        for invariant in ("grid", "mask"):
            one, other = (replace(sparse, bits=bits) for bits in (ANY, None))
            first: Any = before[0] >> one if before else one
            second: Any = before[0] >> other if before else other
            yield keeps(first, invariant), keeps(second, invariant)


@pytest.mark.parametrize(("general", "special"), list(pairs()), ids=str)
@pytest.mark.parametrize("status", [Status.PROVED, Status.REFUTED])
def test_neither_answers_for_the_other(general: Claim, special: Claim, status: Status, tmp_path: Path) -> None:
    for source, asked in ((general, special), (special, general)):
        known = verdict(source, status)
        if status is Status.REFUTED:
            known = prove(source, stages=("search",), search_seconds=0.2)
            if not known.refuted:
                continue
        assert follows(known, asked, ANYWHERE) is None
        store = Store(tmp_path / f"{source.kind}{len(str(source))}.db")
        store.put(known)
        assert Asker(store=store).recall(asked, ANYWHERE) is None
        store.close()


HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Kind(Technique):
    """An open text: what one says of "one" and "two" is not said of "three"."""

    kind: Any
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"kind": ("one", "two")}

    def steps(self) -> tuple[Step, ...]:
        return (Selection(_score, Partition.tensor(), Fraction(3, 4) if self.kind == "three" else HALF, "first"),)


@dataclass(frozen=True)
class Flag(Technique):
    flag: Any
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"flag": (0, 1)}

    def steps(self) -> tuple[Step, ...]:
        return (GridMap(Abs, 7, "half_even", Partition.tensor()),)


@dataclass(frozen=True)
class Wide(Technique):
    """Promises of Any what it does not keep for many bits, and rounds otherwise there."""

    bits: Any
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (2, 3)}

    def promises(self) -> Declared:
        few = self.bits is ANY or self.bits < 8
        return Declared(keeps=frozenset({"factors", "mask"} if few else {"factors"}), deterministic=few)

    def steps(self) -> tuple[Step, ...]:
        if self.bits is ANY:
            return (GridMap(Abs, ANY, "half_even", Partition.tensor()),)
        return (GridMap(Abs if self.bits < 6 else _twice, 2**self.bits, "half_even", Partition.tensor()),)


def _score(element: Any) -> Any:
    return Abs(element.weight)


def _twice(weight: Any) -> Any:
    return Max([2 * Abs(weight), Abs(weight)])


@pytest.mark.parametrize(
    ("technique", "other", "stands"),
    [
        (Kind(ANY), Kind("one"), True),
        (Kind(ANY), Kind("three"), False),
        (Kind(ANY), Kind(1), False),
        (Flag(ANY), Flag(1), True),
        (Flag(ANY), Flag(True), False),
        (Flag(ANY), Flag(None), False),
        (Wide(ANY), Wide(4), True),
        (Wide(ANY), Wide(7), False),
        (Wide(ANY), Wide(9), False),
        (Wide(ANY), Wide(4.0), False),
        (Wide(ANY), Wide(ANY), True),
        (Wide(4), Wide(ANY), False),
    ],
)
def test_texts_flags_and_promises_of_ones_own(technique: Technique, other: Technique, stands: bool) -> None:
    assert stands_for(technique, other) is stands
    asked, source = keeps(other, "mask"), verdict(keeps(technique, "mask"), Status.PROVED)
    assert (follows(source, asked, ANYWHERE) is not None) is stands


@dataclass(frozen=True)
class Promising(Technique):
    """Promises of Any what it keeps for no value."""

    bits: Any
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (2, 3)}

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"mask"} if self.bits is ANY else {"factors"}))

    def encode(self, layer: Any) -> Any:
        return replace(layer, weight=layer.weight + 1)


def test_no_rule_takes_a_promise_of_any_that_no_value_keeps() -> None:
    claim = keeps(Magnitude("1/2") >> Promising(ANY), "mask")
    assert not prove(claim, stages=("rule",), second=None, explain=False).proved
    assert prove(claim, second=None).refuted


def test_every_field_of_what_is_promised_is_looked_at() -> None:
    """A promise that is added later has to be sorted: is it stronger where it is said, or weaker?"""
    from compcomp.proving.rules import likeness

    sorted_ones = {
        "keeps",
        "restores",
        "never_increases",
        "zeros",
        "no_op",
        "changes_inputs",
        "changes_basis",
        "optimum",
    }
    sorted_ones |= {"input_bits", *likeness.STRONGER, *likeness.WEAKER}
    assert {f.name for f in fields(Declared)} == sorted_ones
