"""Why a rule does not prove a claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.language.query import Query

Matrix = tuple[tuple[Fraction, ...], ...]

MOST_VALUES = 6
"""Values of a counterexample that one line names."""


class Reached(IntEnum):
    """How far a rule came before it gave up: later is more telling."""

    OTHER_CLAIM = 0
    """The rule is about other kinds of claims."""
    STRUCTURE = 1
    """The techniques do not have the form that the rule is about."""
    FACT = 2
    """The form is right. A technique lacks a promise, or a fact about one step is not proved."""
    LEMMA = 3
    """Everything but a main lemma of the rule holds."""


@dataclass(frozen=True)
class Refusal:
    """Why one rule does not prove one claim.

    Args:
        reason: one line that names the technique, parameter or lemma.
        rule: the name of the rule, as in docs/proofs.md.
        reached: how far the rule came.
        lemma: the question whose answer is not the one that the rule needs.
        values: a counterexample to the lemma, as names and exact numbers. It speaks of what is proved about the steps,
            so no layer has to show it.
        layer: a dense weight (out x in) on which the lemma fails, where one is known.
        advice: what to try: a condition, another convention, a smaller scope.
    """

    reason: str
    rule: str = ""
    reached: Reached = Reached.STRUCTURE
    lemma: Query | None = None
    values: tuple[tuple[str, str], ...] = ()
    layer: Matrix | None = None
    advice: tuple[str, ...] = ()

    @property
    def about_other_claims(self) -> bool:
        """Whether the rule is about other kinds of claims, so that this is no near miss."""
        return self.reached is Reached.OTHER_CLAIM

    def __str__(self) -> str:
        shown = ", ".join(f"{name} = {value}" for name, value in self.values[:MOST_VALUES])
        return f"rule {self.rule}: {self.reason}" + (f" for {shown}" if shown else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data. The lemma comes with its SMT-LIB text."""
        lemma = self.lemma
        return {
            "rule": self.rule,
            "reason": self.reason,
            "reached": self.reached.name.lower().replace("_", " "),
            "lemma": None
            if lemma is None
            else {
                "name": lemma.name,
                "smtlib": lemma.smtlib,
                "expected": lemma.expected,
                "answer": lemma.answer,
                "solver": lemma.solver,
                "rlimit": lemma.rlimit,
            },
            "values": dict(self.values),
            "layer": None if self.layer is None else [[str(x) for x in row] for row in self.layer],
            "advice": list(self.advice),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Refusal:
        """The refusal that :meth:`to_json` wrote.

        Raises:
            InputError, KeyError, TypeError or ValueError: on anything else.
        """
        names = {reached.name.lower().replace("_", " "): reached for reached in Reached}
        if data["reached"] not in names:
            raise InputError(f"reached {data['reached']!r}"[:80], ", ".join(names), "Refusal")
        lemma, layer = data["lemma"], data["layer"]
        return cls(
            reason=data["reason"],
            rule=data["rule"],
            reached=names[data["reached"]],
            lemma=None if lemma is None else Query(**lemma),
            values=tuple((str(name), str(value)) for name, value in data["values"].items()),
            layer=None if layer is None else tuple(tuple(Fraction(x) for x in row) for row in layer),
            advice=tuple(data["advice"]),
        )
