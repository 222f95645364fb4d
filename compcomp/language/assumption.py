"""Define the assumptions of proofs as data.

Code reads the kind of an assumption, and whether it restricts layers. Its text is for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from compcomp.errors import InputError


class Kind(StrEnum):
    """Name the kinds of assumptions."""

    EXACT = "exact arithmetic"
    CONTRACT = "contract"
    """A property that a technique declares for every layer."""
    WITHOUT_LOSS = "without loss of generality"
    """A step of the proof: a symmetry that is proved."""
    BLOCKS = "independent blocks"
    """A step of the proof: the layer is the union of blocks, and every step acts inside one."""
    INSIDE_BLOCK = "inside the block"
    DENSE_INPUTS = "dense inputs"
    SAME_BASIS = "same basis"
    CONDITION = "condition"
    """A condition of the claim."""
    WHOLE_MODEL = "whole model"
    OTHER = "other"
    """Anything else. It counts as restricting layers, as nothing is known about it."""


OF_EVERY_LAYER = frozenset({Kind.EXACT, Kind.CONTRACT, Kind.WITHOUT_LOSS, Kind.BLOCKS})
"""The kinds that restrict no layer. A new kind restricts layers until it is added here."""

SYMMETRIES = {
    "signs": "w >= 0 (sign symmetry, proved)",
    "scale": "the largest magnitude is 1 (homogeneity, proved)",
    "order": "sorted (permutation symmetry, proved; ties taken adversely)",
}
"""The assumptions without loss of generality, by the reduction that proves them."""

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
"""The texts of the kinds whose text follows from the data alone."""
_ONE_OF_A_KIND = (Kind.EXACT, Kind.INSIDE_BLOCK, Kind.DENSE_INPUTS, Kind.SAME_BASIS)


@dataclass(frozen=True)
class Assumption:
    """Hold one assumption of a proof. Two assumptions are equal if all fields but their texts are.

    Args:
        kind: the kind of the assumption.
        text: one line, for people.
        technique: the text of the technique that the assumption is about, or None.
        restricts: True if it may fail on some layers. A proof covers only layers on which it is known to hold.
        about: the detail that distinguishes it from others of its kind and technique: the contract, the condition as
            a claim writes it, or the size of the blocks. If it is left out and the kind may occur several times, it is
            the text.

    Raises:
        InputError: the kind is not known, or it restricts layers although ``restricts`` is False.
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

    def __contains__(self, part: str) -> bool:
        """Return True if the text contains these characters. It is for users' scripts: no decision depends on it."""
        return part in self.text

    def to_json(self) -> dict[str, Any]:
        """Return all fields but the text, as plain data."""
        return {
            "kind": str(self.kind),
            "technique": self.technique,
            "restricts": self.restricts,
            "about": self.about,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], text: str) -> Assumption:
        """Return the assumption that :meth:`to_json` wrote.

        Args:
            data: the plain data.
            text: the text of the assumption.

        Raises:
            InputError or KeyError: the data is anything else.
        """
        return cls(data["kind"], text, data["technique"], data["restricts"], data["about"])


def assumption(kind: Kind, technique: object = None, about: str = "") -> Assumption:
    """Return an assumption whose text follows from its kind, its technique and its detail (:data:`TEXTS`).

    Args:
        kind: a kind in :data:`TEXTS`.
        technique: the technique that the assumption is about, or None.
        about: the detail that distinguishes it from others of its kind and technique.
    """
    name = None if technique is None else str(technique)
    text = TEXTS[kind].format(technique=name, about=about)
    return Assumption(kind, text, name, kind not in OF_EVERY_LAYER, about)


def contract(technique: object, does: str) -> Assumption:
    """Return the assumption that a technique satisfies a contract: it ``does`` this on every layer."""
    return assumption(Kind.CONTRACT, technique, does)


def assumptions(given: object, where: str) -> tuple[Assumption, ...]:
    """Return assumptions as a tuple. A text becomes an assumption of kind "other", which restricts layers.

    Args:
        given: a tuple or list of assumptions and texts.
        where: the place that an error names.

    Raises:
        InputError: something else is given.
    """
    if not isinstance(given, tuple | list):
        raise InputError(f"assumptions={given!r}"[:80], "a tuple of Assumption", where)
    if odd := [one for one in given if not isinstance(one, Assumption | str)]:
        raise InputError(f"{odd[0]!r} among the assumptions"[:80], "an Assumption", where)
    return tuple(Assumption(Kind.OTHER, one) if isinstance(one, str) else one for one in given)
