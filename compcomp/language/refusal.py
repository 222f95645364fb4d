"""Define refusals, the reasons why rules do not prove claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.language.query import Query

Matrix = tuple[tuple[Fraction, ...], ...]

MOST_VALUES = 8
"""The number of values of a counterexample that one line shows."""


class Reached(IntEnum):
    """Rank how far a rule came before it gave up: a later stage is more informative."""

    OTHER_CLAIM = 0
    """The rule is about other kinds of claims."""
    STRUCTURE = 1
    """The techniques do not have the structure that the rule is about."""
    FACT = 2
    """The structure fits. A technique lacks a contract, or a fact about one step is not proved."""
    LEMMA = 3
    """Everything but a main lemma of the rule holds."""


@dataclass(frozen=True)
class Refusal:
    """Record why one rule does not prove one claim.

    Args:
        reason: one line that names the technique, parameter or lemma.
        rule: the name of the rule, as in docs/proofs/.
        reached: how far the rule came.
        lemma: the question whose answer differs from the one that the rule needs.
        values: a counterexample to the lemma, as names and exact numbers. The lemma speaks of what is proved about the
            steps, so there may be no layer with these values. If ``layer`` is given, they are those of its exact runs,
            and ``A(b)`` is what the first sequence leaves of b.
        layer: a dense weight (out x in) on which exact runs of the sequences show that the lemma fails, if one is
            known.
        inputs: the calibration inputs (in x tokens) of that layer, for a claim that speaks of them.
        advice: suggestions, such as a condition, another convention or a smaller scope.
    """

    reason: str
    rule: str = ""
    reached: Reached = Reached.STRUCTURE
    lemma: Query | None = None
    values: tuple[tuple[str, str], ...] = ()
    layer: Matrix | None = None
    inputs: Matrix | None = None
    advice: tuple[str, ...] = ()

    @property
    def about_other_claims(self) -> bool:
        """True if the rule is about other kinds of claims, so that the refusal is no near miss."""
        return self.reached is Reached.OTHER_CLAIM

    def __str__(self) -> str:
        shown = ", ".join(f"{name} = {value}" for name, value in self.values[:MOST_VALUES])
        layer = "" if self.layer is None else f", on the layer {_shown(self.layer)}"
        inputs = "" if self.inputs is None else f" with inputs {_shown(self.inputs)}"
        return f"rule {self.rule}: {self.reason}" + (f" for {shown}" if shown else "") + layer + inputs

    def to_json(self) -> dict[str, Any]:
        """Return the refusal as plain data. The lemma includes its SMT-LIB text."""
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
            "layer": _to_json(self.layer),
            "inputs": _to_json(self.inputs),
            "advice": list(self.advice),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Refusal:
        """Return the refusal that :meth:`to_json` wrote.

        Raises:
            InputError, KeyError, TypeError or ValueError: on anything else.
        """
        names = {reached.name.lower().replace("_", " "): reached for reached in Reached}
        if data["reached"] not in names:
            raise InputError(f"reached {data['reached']!r}"[:80], ", ".join(names), "Refusal")
        lemma = data["lemma"]
        return cls(
            reason=data["reason"],
            rule=data["rule"],
            reached=names[data["reached"]],
            lemma=None if lemma is None else Query(**lemma),
            values=tuple((str(name), str(value)) for name, value in data["values"].items()),
            layer=_from_json(data["layer"]),
            inputs=_from_json(data.get("inputs")),
            advice=tuple(data["advice"]),
        )


def _shown(matrix: Matrix) -> str:
    """The rows of a matrix in parentheses."""
    return ", ".join(f"({', '.join(map(str, row))})" for row in matrix)


def _to_json(matrix: Matrix | None) -> list[list[str]] | None:
    return None if matrix is None else [[str(x) for x in row] for row in matrix]


def _from_json(rows: Any) -> Matrix | None:
    return None if rows is None else tuple(tuple(Fraction(x) for x in row) for row in rows)


@dataclass(frozen=True)
class RuleAnswer:
    """Record the answer of one rule to a claim.

    Args:
        rule: the name of the rule, as in docs/proofs/.
        needs: the requirements of the rule, in one line.
        refusal: the requirement that is missing, or None if the rule proves the claim.
        part: the kind of layer that was asked about, for a claim about layers that share units.
        reach: the layers for which it proves the claim.
    """

    rule: str
    needs: str
    refusal: Refusal | None
    part: str = ""
    reach: str = ""

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """The requirements and the missing requirement, as pairs of a title and a text."""
        if self.refusal is None:
            return ("needs", self.needs), ("proves", f"the claim ({self.reach})")
        if self.refusal.about_other_claims:
            return ("needs", self.needs), ("no rule for it", self.refusal.reason)
        missing = str(self.refusal).partition(": ")[2]
        advice = " or ".join(self.refusal.advice)
        return ("needs", self.needs), ("missing", missing), *([("try", advice)] if advice else [])

    def __str__(self) -> str:
        return "\n".join([self.rule, *(f"  {title}: {text}" for title, text in self.lines)])

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain data, which ``--json`` prints."""
        return {
            "rule": self.rule,
            "needs": self.needs,
            "part": self.part,
            "proves": self.refusal is None,
            "reach": self.reach,
            "refusal": None if self.refusal is None else self.refusal.to_json(),
        }
