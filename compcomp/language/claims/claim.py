"""The base class of all kinds of claim, and the registry in which text finds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields, replace
from itertools import product
from math import lcm
from typing import Any, ClassVar, Self

from compcomp.errors import InputError
from compcomp.language.assumption import Assumption, Kind, assumption, contract
from compcomp.language.conditions import INPUT_FACTS, Condition, Run, check
from compcomp.language.loss import Loss
from compcomp.language.technique import Sequence, Technique, unknowns
from compcomp.layers.partition import Partition
from compcomp.layers.state import Format
from compcomp.terms import Or, Term

EACH_KIND = ", for each kind of layer"
"""How the reason of a proof ends that was found for each part of a claim (:meth:`Claim.parts`)."""

_SIDES = ("left", "right")


class _Lossless:
    """Say of kinds of claims without a field ``loss`` that they have none."""

    loss: Loss | None = None


@dataclass(frozen=True)
class Claim(_Lossless):
    """State something of every dense layer in a scope, and of every choice that the techniques leave free.

    A kind of claim is a subclass with the fields that it needs, a :attr:`verb`, :meth:`read` and :meth:`contradicted`.
    Defining it registers it: text, stores, search, exact replay and reports then handle it. To be proved it needs a
    rule (:mod:`compcomp.proving.rules`). Everything else here has a default that is safe for any kind.

    left: the sequence that the claim is about. given: the claim speaks only of layers on which all of these conditions
    hold.
    """

    left: Sequence
    given: tuple[Condition, ...] = field(default=(), kw_only=True)

    kind: ClassVar[str] = ""
    """Its name where data speaks of kinds of claims. Two kinds never share one."""
    verb: ClassVar[str] = ""
    """The words between the sequence and the rest of its text, such as ``is orthogonal to``. None share one."""
    example: ClassVar[str] = "B"
    """A text that may follow the verb, for messages about text that cannot be read."""
    symmetric: ClassVar[bool] = False
    """Law: with its sides exchanged, the claim says the same. Safe: False."""
    scales: ClassVar[bool] = False
    """Law: scaling all weights in all states of its runs by t > 0 changes no truth. Safe: False."""
    reads_layers: ClassVar[bool] = True
    """Whether rules that prove this kind may look at layers of the scope. Law where it is False: a proof by a rule
    depends on the techniques and the claim's fields alone, so it may be remembered for every scope."""
    any_ties: ClassVar[bool] = False
    """Whether it often holds however ties are broken, so that a proof for any tie-breaking is tried first."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "verb" in cls.__dict__:
            _register(cls)

    def __post_init__(self) -> None:
        if self.given:
            check(self)

    # ------------------------------------------------------------------------------------ text and data

    @property
    def object(self) -> str:
        """The text after the verb."""
        raise NotImplementedError

    @classmethod
    def read(
        cls,
        left: Sequence,
        after: str,
        *,
        loss: str,
        given: tuple[Condition, ...],
        sequence: Callable[[str], Sequence],
    ) -> Claim:
        """Return the claim whose text has ``left`` before the verb and ``after`` behind it; InputError for bad text.

        Args:
            loss: the name of the loss, for kinds that have one: no text holds it.
            given: the conditions after ``given``.
            sequence: parses the text of a sequence.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        given = f" given {', '.join(map(str, self.given))}" if self.given else ""
        return f"{self.left} {self.verb} {self.object}{given}"

    def to_json(self) -> dict[str, Any]:
        """Return plain data from which :func:`compcomp.language.text.claim_from_json` makes the claim again."""
        return {
            "claim": str(self),
            "loss": self.loss.name if self.loss else None,
            "given": list(map(str, self.given)),
        }

    @property
    def terms(self) -> tuple[Hashable, ...]:
        """The kind, and all fields but sequences and conditions."""
        names = (f.name for f in fields(self) if f.name not in (*_SIDES, "given"))
        return (type(self), *(getattr(self, name) for name in names))

    @property
    def family(self) -> str:
        """A text that claims share if one may follow from another. More claims may share it, never fewer."""
        return " ".join([self.kind, *(str(term) for term in self.terms[1:] if not isinstance(term, Loss))])

    # ------------------------------------------------------------------------------------ meaning

    def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
        """Return whether runs of the claim's sequences contradict it, as a truth-valued term; conditions aside.

        Args:
            runs: for each of :attr:`sequences`, the states from before its first technique to after its last.
            tolerance: relative slack for floats; 0 is exact.
        """
        raise NotImplementedError

    def reason(self, runs: Items[Run]) -> str:
        """Say in words how these exact runs contradict the claim."""
        return f"it is false that {self}"

    def says_nothing(self, formats: Callable[[], Items[Format] | None]) -> str:
        """Return why the claim is empty, "" where it is not.

        Args:
            formats: gives the formats along the left sequence, or None where they are not known.
        """
        return ""

    # ------------------------------------------------------------------------------------ sequences

    @property
    def sides(self) -> tuple[Sequence, ...]:
        """The sequences in its text."""
        return (self.left,)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The sequences that are run on a layer to see whether the claim is contradicted."""
        return self.sides

    def with_sides(self, *sides: Sequence) -> Self:
        """Return the same claim about other sequences."""
        changed: dict[str, Any] = dict(zip(_SIDES, sides, strict=False))
        return replace(self, **changed)

    def swapped(self) -> Self:
        """Return the claim with its sides exchanged."""
        return self.with_sides(*reversed(self.sides))

    def instances(self) -> list[Self]:
        """The claim at values for each parameter that it leaves open (Any); itself where there is none."""
        techniques = [t for sequence in self.sequences for t in sequence]
        tried = {name: type(t).examples[name] for t in techniques for name in unknowns(t)}
        if not tried:
            return [self]
        combinations = product(*tried.values())
        return [
            self.with_sides(*(side.at(values) for side in self.sides))
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

        return {name: self.with_sides(*(seen(side, name) for side in self.sides)) for name in names}

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

    # ------------------------------------------------------------------------------------ layers

    @property
    def compares_inputs(self) -> bool:
        """Whether it depends on the inputs at the ends of its runs. Safe: True."""
        return True

    @property
    def sees_tokens(self) -> bool:
        """Whether it depends on more of the dense inputs than their Gram matrix."""
        return False

    @property
    def needs_inputs(self) -> bool:
        """Whether the claim speaks of layers together with their inputs."""
        return (
            self.sees_tokens or any(s.needs_inputs for s in self.sequences) or any(c.needs_inputs for c in self.given)
        )

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The groups of weights of which the claim itself speaks together, whatever its techniques do."""
        return ()

    @property
    def unit(self) -> int:
        """It speaks of layers whose number of columns is a multiple of this."""
        sizes = (partition.size or 1 for partition in self.partitions)
        return lcm(*(t.unit for sequence in self.sequences for t in sequence), *sizes)

    @property
    def row_unit(self) -> int:
        """It speaks of layers whose number of rows is a multiple of this."""
        return lcm(*(t.row_unit for sequence in self.sequences for t in sequence))

    def check(self, shape: tuple[int, int]) -> None:
        """Raise InputError when it does not speak of layers of this shape (out, in)."""
        for technique in {id(t): t for sequence in self.sequences for t in sequence}.values():
            technique.check(shape)
        for partition in self.partitions:
            partition.check(shape, self.object)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it speaks of layers of this shape (out, in)."""
        try:
            self.check(shape)
        except InputError:
            return False
        return True

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

        None where the claim has no loss, or one that does not add over weights under the claim's conditions.
        """
        return None if self.loss is None else self.loss.part(diagonal=self.assumes("diagonal Gram"))

    @property
    def adds(self) -> bool:
        """Whether it is about single weights, a loss that adds over them, or the groups of :attr:`partitions`.

        Safe: False. Law where it is True, for a cut of the layer into parts so that no such group reaches into two: it
        holds of the layer if it holds of each part. No truth changes if, in all states, weights flip their signs, all
        weights are scaled by t > 0, or weights of one group change places, as long as that scales all parts of the
        loss alike.
        """
        return False


@dataclass(frozen=True)
class Comparison(Claim):
    """Compare two sequences, on every layer. Base of the kinds with a sequence on either side of the verb."""

    right: Sequence

    @property
    def object(self) -> str:
        return str(self.right)

    @property
    def sides(self) -> tuple[Sequence, ...]:
        return (self.left, self.right)


def holds_some(terms: Items[Term]) -> Term:
    """Whether one of these truth-valued terms holds; False where there are none."""
    return Or(*terms) if terms else False


# ------------------------------------------------------------------------------------------------ registry

KINDS: dict[str, type[Claim]] = {}
"""Every kind of claim by its verb."""


def _register(kind: type[Claim]) -> None:
    """Make a kind known to text. A class that is defined again takes the place of the one before."""
    for other in list(KINDS.values()):
        if (other.__module__, other.__qualname__) == (kind.__module__, kind.__qualname__):
            del KINDS[other.verb]
        elif kind.verb == other.verb or kind.kind == other.kind:
            given = f"verb {kind.verb!r} and kind {kind.kind!r} of {kind.__qualname__}"
            raise InputError(given, f"others than those of {other.__qualname__}", "Claim")
    if not kind.kind or not re.fullmatch(r"[a-z]+( [a-z]+)*", kind.verb):
        raise InputError(f"verb {kind.verb!r}", "words of small letters, and a kind", kind.__qualname__)
    KINDS[kind.verb] = kind
