"""What a proof takes for granted, as data: code asks its kind and whether it restricts layers, people read its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from compcomp.errors import InputError


class Kind(StrEnum):
    """What an assumption is of."""

    EXACT = "exact arithmetic"
    CONTRACT = "contract"
    """What a technique promises of every layer."""
    WITHOUT_LOSS = "without loss of generality"
    """A step of the proof: a symmetry that is proved."""
    BLOCKS = "independent blocks"
    """A step of the proof: the layer is the union of blocks in which all happens."""
    INSIDE_BLOCK = "inside the block"
    DENSE_INPUTS = "dense inputs"
    SAME_BASIS = "same basis"
    CONDITION = "condition"
    """A condition of the claim."""
    WHOLE_MODEL = "whole model"
    OTHER = "other"
    """Anything else: it counts as restricting, as nothing is known of it."""


OF_EVERY_LAYER = frozenset({Kind.EXACT, Kind.CONTRACT, Kind.WITHOUT_LOSS, Kind.BLOCKS})
"""The kinds that restrict no layer. A kind that is added restricts, until it is named here."""

SYMMETRIES = {
    "signs": "w >= 0 (sign symmetry, proved)",
    "scale": "the largest magnitude is 1 (homogeneity, proved)",
    "order": "sorted (permutation symmetry, proved; ties taken adversely)",
}
"""What may be assumed without loss of generality, by the reduction that proves it."""

TEXTS = {
    Kind.EXACT: "exact arithmetic (reals, not floats)",
    Kind.CONTRACT: "{technique} {about} (its contract)",
    Kind.WITHOUT_LOSS: "without loss of generality {about}",
    Kind.BLOCKS: "the layer splits into independent blocks of {about} (every step acts inside one)",
    Kind.INSIDE_BLOCK: "every technique acts inside the block: a selection or scale over the tensor means the block",
    Kind.DENSE_INPUTS: "where this is used inside a longer sequence, nothing in that changes the inputs",
    Kind.SAME_BASIS: "where this is used inside a longer sequence, nothing in that changes the basis of the inputs",
    Kind.WHOLE_MODEL: "{technique} acts on the whole model: {about}",
}
"""The texts of the kinds of which the data says it all."""
_ONE_OF_A_KIND = (Kind.EXACT, Kind.INSIDE_BLOCK, Kind.DENSE_INPUTS, Kind.SAME_BASIS)


@dataclass(frozen=True)
class Assumption:
    """One assumption of a proof. Two are equal where all but their texts are: the text is for people alone.

    Args:
        kind: what it is of.
        text: one line, for people.
        technique: the text of the technique whose contract it is, None where it is of no technique.
        restricts: whether it may fail on some layers. A proof covers only layers on which it is known to hold.
        about: what tells it from others of its kind and technique: the promise, the condition as a claim writes it,
            the size of the blocks. Where there may be several and it is left out, the text that it is made with.

    Raises:
        InputError: a kind that is not known, or one that restricts layers said to restrict none.
    """

    kind: Kind
    text: str = field(compare=False)
    technique: str | None = None
    restricts: bool = True
    about: str = ""

    def __post_init__(self) -> None:
        if self.kind not in tuple(Kind):
            raise InputError(f"kind {self.kind!r}"[:80], ", ".join(Kind), "Assumption")
        given = {"text": self.text, "technique": self.technique or "", "about": self.about}
        for name, value in given.items():
            if not isinstance(value, str):
                raise InputError(f"{name}={value!r}"[:80], "a text", "Assumption")
        if self.restricts not in ((True, False) if self.kind in OF_EVERY_LAYER else (True,)):
            allowed = f"True, or False where the kind is one of {', '.join(sorted(OF_EVERY_LAYER))}"
            raise InputError(f"restricts={self.restricts!r} of kind {self.kind}"[:80], allowed, "Assumption")
        object.__setattr__(self, "kind", Kind(self.kind))
        if not self.about and self.kind not in _ONE_OF_A_KIND:
            object.__setattr__(self, "about", self.text)

    def __str__(self) -> str:
        return self.text

    def __contains__(self, words: str) -> bool:
        """Whether the text holds these words: for people's scripts, no decision is made on it."""
        return words in self.text

    def to_json(self) -> dict[str, Any]:
        """All but the text, as plain data."""
        return {
            "kind": str(self.kind),
            "technique": self.technique,
            "restricts": self.restricts,
            "about": self.about,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], text: str) -> Assumption:
        """The assumption that :meth:`to_json` wrote. Raises InputError or KeyError on anything else."""
        return cls(data["kind"], text, data["technique"], data["restricts"], data["about"])


def assumption(kind: Kind, technique: object = None, about: str = "") -> Assumption:
    """An assumption of a kind whose text says no more than the technique, and what it is about."""
    name = None if technique is None else str(technique)
    text = TEXTS[kind].format(technique=name, about=about)
    return Assumption(kind, text, name, kind not in OF_EVERY_LAYER, about)


def contract(technique: object, does: str) -> Assumption:
    """What a technique promises: that it ``does`` this on every layer."""
    return assumption(Kind.CONTRACT, technique, does)


def assumptions(given: object, where: str) -> tuple[Assumption, ...]:
    """A tuple of assumptions as given. A text is one of which nothing is known: it restricts. Else InputError."""
    if not isinstance(given, tuple | list):
        raise InputError(f"assumptions={given!r}"[:80], "a tuple of Assumption", where)
    if odd := [one for one in given if not isinstance(one, Assumption | str)]:
        raise InputError(f"{odd[0]!r} among the assumptions"[:80], "an Assumption", where)
    return tuple(Assumption(Kind.OTHER, one) if isinstance(one, str) else one for one in given)
