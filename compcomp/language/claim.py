"""What can be claimed of sequences, and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from math import lcm
from typing import Any

from compcomp.errors import InputError
from compcomp.language.assumption import Assumption, Kind, assumption, contract
from compcomp.language.conditions import INPUT_FACTS, Condition, Given, check, conditions
from compcomp.language.loss import Loss, loss_named
from compcomp.language.parameters import number
from compcomp.language.scheme import Scheme
from compcomp.language.technique import Sequence, Technique, as_sequence, unknowns
from compcomp.layers.state import INVARIANTS
from compcomp.terms import Term

LARGEST_SIDE = 1024
LARGEST_BLOCK = 4096


EACH_KIND = ", for each kind of layer"
"""How the reason of a proof ends that was found for each part of a claim (:meth:`Claim.parts`)."""


@dataclass(frozen=True)
class Claim:
    """A statement about every dense layer in a scope and every choice the techniques leave free.

    kind "dominates": ``left`` loses no more than ``right``. kind "equal": both give the same state (weight,
    mask, grid, low-rank product and inputs). kind "keeps": what ``invariant`` names survives to the end of ``left``.
    kind "orthogonal": ``left >> right`` loses no more, in the norm, than ``left`` and ``right`` alone together, plus
    ``slack`` grid steps for every weight that is dropped [harma2025].
    kind "fits": ``left`` ends in the format that ``scheme`` asks for.
    ``given``: it speaks only of the layers on which all of these conditions hold.
    """

    kind: str
    left: Sequence
    right: Sequence = field(default_factory=Sequence)
    loss: Loss | None = None
    invariant: str | None = None
    given: tuple[Condition, ...] = ()
    slack: Fraction = Fraction(0)
    scheme: Scheme | None = None

    def __post_init__(self) -> None:
        if self.given:
            check(self)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        if self.kind == "orthogonal":
            return (self.left >> self.right, self.left, self.right)
        return (self.left,) if self.kind in ("keeps", "fits") else (self.left, self.right)

    def instances(self) -> list[Claim]:
        """The claim at values for each parameter that it leaves open (Any); itself where there is none."""
        techniques = [t for sequence in self.sequences for t in sequence]
        tried = {name: type(t).examples[name] for t in techniques for name in unknowns(t)}
        if not tried:
            return [self]
        combinations = product(*tried.values())
        return [
            replace(self, left=self.left.at(values), right=self.right.at(values))
            for values in (dict(zip(tried, chosen, strict=True)) for chosen in combinations)
        ]

    def parts(self) -> dict[str, Claim]:
        """The claim as each kind of layer sees it that shares units with others, by what goes there.

        Empty where it speaks of one layer: where no technique has parts (:meth:`Technique.parts`), or where all have
        the same, and the layer is the matrix that stands for all that share the units. A technique that acts on other
        units does nothing to these layers.
        """
        kinds = [t.parts() for sequence in self.sequences for t in sequence]
        names = dict.fromkeys(name for kind in kinds for name in kind)
        if all(kind.keys() == names.keys() for kind in kinds):
            return {}

        def seen(sequence: Sequence, name: str) -> Sequence:
            found = (t.parts().get(name) if t.parts() else t for t in sequence)
            return Sequence(tuple(t for t in found if t is not None))

        return {name: replace(self, left=seen(self.left, name), right=seen(self.right, name)) for name in names}

    @staticmethod
    def of_part(reason: str, name: str, part: Claim) -> str:
        """The reason of a refutation, with the part that it is of."""
        return f"{reason}, for {name}: {part}"

    @property
    def coupling(self) -> tuple[Assumption, ...]:
        """What is taken for granted of the techniques that share units, where the claim has parts."""
        shared = dict.fromkeys(t for sequence in self.sequences for t in sequence if t.parts()) if self.parts() else {}
        return tuple(
            assumption(
                Kind.WHOLE_MODEL,
                technique,
                ", ".join(f"on {name} as {part}" for name, part in technique.parts().items())
                + ", but that all of its layers choose which go",
            )
            for technique in shared
        )

    @property
    def of_techniques(self) -> tuple[Assumption, ...]:
        """What a proof takes for granted of techniques that act on a whole model, and of encodings beside steps."""
        found: dict[Assumption, None] = {}
        for technique in (t for sequence in self.sequences for t in sequence):
            if technique.whole_model:
                about = "the layer is what its encoding says that it stands for"
                found[assumption(Kind.WHOLE_MODEL, technique, about)] = None
            if type(technique).encode is not Technique.encode and technique.steps():
                found[contract(technique, "does what its steps say and no more")] = None
        return tuple(found)

    @property
    def needs_inputs(self) -> bool:
        """Whether the claim speaks of layers together with their inputs."""
        parts = [self.loss, self.scheme, *self.sequences, *self.given]
        return any(part.needs_inputs for part in parts if part is not None)

    @property
    def unit(self) -> int:
        """It speaks of layers whose number of columns is a multiple of this."""
        units = [t.unit for sequence in self.sequences for t in sequence]
        return lcm(*units, *([] if self.scheme is None else [self.scheme.unit]))

    @property
    def row_unit(self) -> int:
        """It speaks of layers whose number of rows is a multiple of this."""
        return lcm(*(t.row_unit for sequence in self.sequences for t in sequence))

    def check(self, shape: tuple[int, int]) -> None:
        """Raise InputError when it does not speak of layers of this shape (out, in)."""
        for technique in {id(t): t for sequence in self.sequences for t in sequence}.values():
            technique.check(shape)
        for partition in () if self.scheme is None else self.scheme.partitions:
            partition.check(shape, str(self.scheme))

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it speaks of layers of this shape (out, in)."""
        try:
            self.check(shape)
        except InputError:
            return False
        return True

    @property
    def is_deterministic(self) -> bool:
        """Whether its techniques leave no free choice."""
        return all(sequence.is_deterministic for sequence in self.sequences)

    @property
    def changes_inputs(self) -> bool:
        """Whether a technique of the claim changes the layer's inputs."""
        return any(sequence.changes_inputs for sequence in self.sequences)

    @property
    def changes_basis(self) -> bool:
        """Whether a technique of the claim changes the basis of the layer's inputs."""
        return any(sequence.changes_basis for sequence in self.sequences)

    def assumes(self, fact: str) -> bool:
        """Whether a condition of the claim lets a rule take this fact (:data:`compcomp.language.conditions.FACTS`).

        Conditions on inputs speak of the dense ones: where a technique changes the inputs, no rule takes a fact from
        them.
        """
        if fact in INPUT_FACTS and self.changes_inputs:
            return False
        return any(fact in condition.assumes for condition in self.given)

    @property
    def part(self) -> Callable[[Term, Term, Term], Term] | None:
        """What one weight loses: from its reference, its value and the squared norm of its input feature.

        None where the loss does not add over weights under the claim's conditions.
        """
        return None if self.loss is None else self.loss.part(diagonal=self.assumes("diagonal Gram"))

    def __str__(self) -> str:
        given = f" given {', '.join(map(str, self.given))}" if self.given else ""
        if self.kind == "keeps":
            return f"{self.left} keeps {self.invariant}{given}"
        if self.kind == "fits":
            return f"{self.left} fits {self.scheme}{given}"
        if self.kind == "orthogonal":
            within = f" within {self.slack}" if self.slack else ""
            return f"{self.left} is orthogonal to {self.right}{within}{given}"
        return f"{self.left} {'equals' if self.kind == 'equal' else 'dominates'} {self.right}{given}"


def dominates(
    left: Technique | Sequence, right: Technique | Sequence, loss: str = "weight_l2", *, given: Given = ()
) -> Claim:
    """The claim that ``left`` never loses more than ``right``, on the layers on which the conditions hold.

    given: conditions or their names, such as ``["no_ties", "diagonal_gram"]``.
    """
    return Claim("dominates", as_sequence(left), as_sequence(right), loss_named(loss), given=conditions(given))


def equal(left: Technique | Sequence, right: Technique | Sequence, *, given: Given = ()) -> Claim:
    """The claim that both sequences always give the same state, on the layers on which the conditions hold."""
    return Claim("equal", as_sequence(left), as_sequence(right), given=conditions(given))


def keeps(sequence: Technique | Sequence, invariant: str, *, given: Given = ()) -> Claim:
    """The claim that an invariant established along the sequence holds at its end, where the conditions hold."""
    if invariant not in INVARIANTS:
        raise InputError(f"invariant {invariant!r}", ", ".join(INVARIANTS), "claim")
    return Claim("keeps", as_sequence(sequence), invariant=invariant, given=conditions(given))


def fits(sequence: Technique | Sequence, scheme: str | Scheme, *, given: Given = ()) -> Claim:
    """The claim that a sequence always ends in the format it promises, where the conditions hold.

    scheme: words such as "W4 2:4" (see :class:`compcomp.language.scheme.Scheme`).
    """
    return Claim("fits", as_sequence(sequence), scheme=Scheme.of(scheme), given=conditions(given))


NORMS = ("weight_l1", "weight_l2", "output_l2")
"""The losses whose norms claims of orthogonality are about."""


def orthogonal(
    first: Technique | Sequence,
    second: Technique | Sequence,
    loss: str = "weight_l1",
    *,
    slack: Any = 0,
    given: Given = (),
) -> Claim:
    """The claim that ``first >> second`` adds no error beyond the sum of both alone [harma2025].

    It speaks of norms: of the square root of weight_l2 and output_l2. slack: grid steps of error allowed for every
    weight that is dropped (weight_l1 only).
    """
    if loss not in NORMS:
        raise InputError(f"loss {loss!r}", ", ".join(NORMS), "orthogonal")
    more = number(slack, "orthogonal.slack", "a number such as 1/2, at least 0")
    if more < 0 or (more and loss != "weight_l1"):
        raise InputError(f"slack {more} under {loss}", "at least 0, and weight_l1", "orthogonal")
    left, right = as_sequence(first), as_sequence(second)
    return Claim("orthogonal", left, right, loss_named(loss), given=conditions(given), slack=more)


@dataclass(frozen=True)
class Scope:
    """Which layers a claim speaks of.

    kind "any": every shape the techniques fit. kind "shape": ``rows`` x ``columns`` (out x in). kind
    "block": one block of ``columns`` weights inside which every technique acts.
    """

    kind: str
    rows: int = 1
    columns: int = 0

    @classmethod
    def of(cls, given: Any) -> Scope:
        """From ``"any"``, ``"2x4"``, ``"block:32"``, ``(2, 4)``, ``("block", 32)`` or a Scope."""
        if isinstance(given, Scope):
            return given
        if isinstance(given, str):
            text = given.strip().lower()
            if text in ("any", "any shape"):
                return cls("any")
            if match := re.fullmatch(r"(\d{1,6})x(\d{1,6})", text):
                return cls._shape(int(match[1]), int(match[2]), given)
            if match := re.fullmatch(r"block:(\d{1,6})", text):
                return cls._block(int(match[1]), given)
        if isinstance(given, tuple) and len(given) == 2 and type(given[1]) is int:
            if given[0] == "block":
                return cls._block(given[1], given)
            if type(given[0]) is int:
                return cls._shape(given[0], given[1], given)
        raise _bad_scope(given)

    @classmethod
    def _shape(cls, rows: int, columns: int, given: Any) -> Scope:
        if not (1 <= rows <= LARGEST_SIDE and 1 <= columns <= LARGEST_SIDE):
            raise _bad_scope(given)
        return cls("shape", rows, columns)

    @classmethod
    def _block(cls, size: int, given: Any) -> Scope:
        if not 1 <= size <= LARGEST_BLOCK:
            raise _bad_scope(given)
        return cls("block", 1, size)

    @property
    def shape(self) -> tuple[int, int] | None:
        """(out, in) of the layers that have to be looked at; None for any shape."""
        return None if self.kind == "any" else (self.rows, self.columns)

    def describe(self) -> str:
        """The scope in words."""
        if self.kind == "any":
            return "any shape"
        return f"block of {self.columns}" if self.kind == "block" else f"shape {self.rows} x {self.columns}"

    def __str__(self) -> str:
        if self.kind == "any":
            return "any"
        return f"block:{self.columns}" if self.kind == "block" else f"{self.rows}x{self.columns}"


def _bad_scope(given: Any) -> InputError:
    allowed = f"any, 2x4 (out x in, up to {LARGEST_SIDE}) or block:32 (up to {LARGEST_BLOCK})"
    return InputError(f"scope {str(given)[:40]!r}", allowed, "scope")
