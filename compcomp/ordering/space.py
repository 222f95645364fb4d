"""The space of orders: slots to fill, optional slots, and pairs of techniques with a fixed relative order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from compcomp.errors import InputError
from compcomp.language.identity import same
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence

Prefix = tuple[int, ...]
"""An order, or its beginning: positions in :attr:`Space.techniques`."""
Used = tuple[tuple[int, ...], frozenset[int]]
"""How many of each slot are filled, and which techniques of the ``before`` pairs are already applied."""


GRANULARITIES = ("model", "layer")
"""One order for all layers, or one for each layer if that is better."""

T = TypeVar("T")
_OTHER = "techniques that their texts tell apart: what they differ in as a parameter that text can hold"


def distinct(items: Iterable[T]) -> tuple[T, ...]:
    """Return each item once. Items are compared by :mod:`compcomp.language.identity`, not by their own ``==``."""
    found: list[T] = []
    for item in items:
        if not any(same(item, other) for other in found):
            found.append(item)
    return tuple(found)


@dataclass(frozen=True)
class Slot:
    """Hold one place to fill by one of some alternative techniques. If ``optional``, it may also stay empty."""

    alternatives: tuple[Technique, ...]
    optional: bool = False

    def __str__(self) -> str:
        shown = " or ".join(map(str, self.alternatives))
        return f"optional {shown}" if self.optional else shown


def optional(technique: Technique | Slot) -> Slot:
    """Return a slot for a technique (or for alternatives) that an order may leave out."""
    return Slot(_slot(technique).alternatives, optional=True)


def one_of(*techniques: Technique) -> Slot:
    """Return a slot of alternatives, of which an order takes exactly one."""
    alternatives = distinct(t for technique in techniques for t in _slot(technique).alternatives)
    if not alternatives:
        raise InputError("no techniques", "one or more techniques", "one_of")
    return Slot(alternatives)


def _slot(given: Any) -> Slot:
    if isinstance(given, Slot):
        return given
    if isinstance(given, Technique):
        return Slot((given,))
    raise InputError(repr(given)[:80], "a technique, optional(technique) or one_of(technique, ...)", "techniques")


def pairs_of(given: Any) -> tuple[tuple[Technique, Technique], ...]:
    """Read ``before``: an iterable of tuples or lists of two techniques. Raise InputError for anything else."""
    allowed = "pairs of techniques, such as [(P, Q)]"
    if isinstance(given, str | bytes | Mapping | Technique | Slot | Order) or not isinstance(given, Iterable):
        raise InputError(str(given)[:80], allowed, "before")
    found = []
    for pair in given:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(t, Technique) for t in pair):
            shown = f"({', '.join(map(str, pair))})" if isinstance(pair, tuple | list) else str(pair)
            raise InputError(shown[:80], allowed, "before")
        found.append((pair[0], pair[1]))
    return tuple(found)


class Space:
    """Enumerate and count the orders of some slots.

    Every slot is filled once, or may stay empty if it is optional. A technique that fills two equal slots may occur
    twice.

    Args:
        given: Techniques and slots.
        before: Pairs of techniques. In each, the first comes before the second if both occur.

    Raises:
        InputError: Two techniques have one text, one is in two different slots, or ``before`` contains a cycle.
    """

    def __init__(self, given: Iterable[Technique | Slot], before: Iterable[tuple[Technique, Technique]] = ()) -> None:
        slots = [_slot(one) for one in given]
        self.slots: tuple[Slot, ...] = distinct(slots)
        self.counts = tuple(sum(same(one, slot) for one in slots) for slot in self.slots)
        self.length = len(slots)
        self.techniques: tuple[Technique, ...] = distinct(t for s in self.slots for t in s.alternatives)
        self._check_texts()
        places = [
            [k for k, slot in enumerate(self.slots) if any(same(t, other) for other in slot.alternatives)]
            for t in self.techniques
        ]
        for technique, homes in zip(self.techniques, places, strict=True):
            if len(homes) > 1:
                raise InputError(f"{technique} in two different slots", "each technique in one slot", "techniques")
        self.home = tuple(homes[0] for homes in places)
        self.before = self._before(before)
        self.bound = frozenset(i for pair in self.before for i in pair)

    def _place(self, technique: Any) -> int | None:
        """Return the position of a technique, None if it is not one of these."""
        return next((k for k, known in enumerate(self.techniques) if same(known, technique)), None)

    def placed(self, technique: Technique) -> int:
        """Return the position of one of these techniques."""
        place = self._place(technique)
        assert place is not None
        return place

    def _check_texts(self) -> None:
        """Raise InputError if two techniques have the same text, since texts identify orders."""
        texts = [str(technique) for technique in self.techniques]
        for text in texts:
            if texts.count(text) > 1:
                raise InputError(f"two different techniques that are both written {text}"[:200], _OTHER, "techniques")

    def _before(self, given: Iterable[tuple[Technique, Technique]]) -> frozenset[tuple[int, int]]:
        pairs = set()
        for pair in pairs_of(given):
            for one in pair:
                if self._place(one) is None:
                    raise InputError(str(one)[:80], ", ".join(map(str, self.techniques)), "before")
            first, second = (self.placed(one) for one in pair)
            pairs.add((first, second))
        more = True
        while more:  # transitive closure
            longer = {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs
            pairs |= longer
            more = bool(longer)
        if any(a == b for a, b in pairs):
            raise InputError("a circle of techniques that come before each other", "no circle", "before")
        return frozenset(pairs)

    @property
    def alike(self) -> bool:
        """True if every order has the same techniques. Sizes then differ at most by the zeros of masks."""
        return all(not slot.optional and len(slot.alternatives) == 1 for slot in self.slots)

    # ------------------------------------------------------------------------------------ prefixes

    def order(self, prefix: Prefix) -> Order:
        """Return the techniques of a prefix, in its order."""
        return Order(tuple(self.techniques[i] for i in prefix))

    def text(self, prefix: Prefix) -> str:
        """Return the text form of a prefix. The empty prefix is "identity"."""
        return str(self.order(prefix))

    def read(self, text: str) -> Order:
        """Read an order. If the text names these techniques, they are used; otherwise the text is parsed."""
        known = {str(technique): technique for technique in self.techniques}
        parts = [part.strip() for part in text.split(">>")]
        if all(part in known for part in parts):
            return Order(tuple(known[part] for part in parts))
        return parse_sequence(text)

    @property
    def start(self) -> Used:
        """The slots that the empty prefix has used: none."""
        return (0,) * len(self.slots), frozenset()

    def after(self, used: Used, step: int) -> Used:
        """Return the used slots after one more technique."""
        filled, applied = used
        home = self.home[step]
        now = (*filled[:home], filled[home] + 1, *filled[home + 1 :])
        return now, applied | {step} if step in self.bound else applied

    def used(self, prefix: Prefix) -> Used:
        """Return the slots that a prefix has used."""
        used = self.start
        for i in prefix:
            used = self.after(used, i)
        return used

    def next_steps(self, prefix: Prefix) -> list[int]:
        """Return the techniques that may follow a prefix."""
        return self.steps_after(self.used(prefix))

    def steps_after(self, used: Used) -> list[int]:
        """Return the techniques that may follow such that every mandatory slot can still be filled."""
        open_ = [i for i, home in enumerate(self.home) if used[0][home] < self.counts[home] and not self._late(used, i)]
        return [i for i in open_ if self._fillable(self.after(used, i))] if self.before else open_

    def _late(self, used: Used, step: int) -> bool:
        """Return True if a technique that has to come after this one is already applied."""
        return any((step, other) in self.before for other in used[1])

    def _fillable(self, used: Used) -> bool:
        """Return True if every mandatory slot can still be filled. The pairs have no cycle, so this check suffices."""
        return all(
            slot.optional or filled == count or not all(self._late(used, self.placed(t)) for t in slot.alternatives)
            for slot, filled, count in zip(self.slots, used[0], self.counts, strict=True)
        )

    def complete(self, used: Used) -> bool:
        """Return True if every mandatory slot is filled."""
        return all(
            slot.optional or filled == count
            for slot, filled, count in zip(self.slots, used[0], self.counts, strict=True)
        )

    def prefix(self, techniques: Sequence[Technique]) -> Prefix | None:
        """Return the positions of these techniques, None if they are no prefix of an order."""
        found: list[int] = []
        for technique in techniques:
            position = next((i for i in self.next_steps(tuple(found)) if same(self.techniques[i], technique)), None)
            if position is None:
                return None
            found.append(position)
        return tuple(found)

    def orders(self) -> Iterator[Prefix]:
        """Yield every complete order."""
        stack: list[Prefix] = [()]
        while stack:
            prefix = stack.pop()
            if self.complete(self.used(prefix)):
                yield prefix
            stack.extend((*prefix, i) for i in reversed(self.next_steps(prefix)))

    # ------------------------------------------------------------------------------------ counts

    @property
    def total(self) -> int:
        """The number of different orders."""
        return self._counted[0]

    @property
    def full_tree(self) -> int:
        """The number of technique applications in the full prefix tree, which is the number of non-empty prefixes."""
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[int, int]:
        """The numbers of orders and of non-empty prefixes, counted by the slots that they have used."""
        level: dict[Used, int] = {self.start: 1}
        total = nodes = 0
        while level:
            longer: dict[Used, int] = {}
            for used, ways in level.items():
                total += ways if self.complete(used) else 0
                for i in self.steps_after(used):
                    after = self.after(used, i)
                    longer[after] = longer.get(after, 0) + ways
            nodes += sum(longer.values())
            level = longer
        return total, nodes
