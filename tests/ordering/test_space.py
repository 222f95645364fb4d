"""Which orders there are, against all permutations."""

from __future__ import annotations

import random
from itertools import pairwise, permutations, product

import pytest

from compcomp.errors import InputError
from compcomp.ordering.space import Prefix, Slot, Space, one_of, optional
from compcomp.techniques import AbsMax

TECHNIQUES = [AbsMax(bits=bits) for bits in range(2, 9)]
A, B, C, D = TECHNIQUES[:4]


def expected(space: Space, given: list[Slot]) -> set[Prefix]:
    """Every permutation of every filling of the slots that no pair forbids."""
    found = set()
    choices = [[*slot.alternatives, *([None] if slot.optional else [])] for slot in given]
    for filling in product(*choices):
        for order in permutations([space.techniques.index(t) for t in filling if t is not None]):
            if not any(order.index(a) > order.index(b) for a, b in space.before if a in order and b in order):
                found.add(order)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_orders_and_counts_are_those_of_all_permutations(seed: int) -> None:
    chance = random.Random(seed)
    free, given = list(TECHNIQUES), list[Slot]()
    for _ in range(chance.randint(1, 4)):
        if given and chance.random() < 0.25:
            given.append(chance.choice(given))  # a technique that may occur twice
            continue
        slot = one_of(*[free.pop() for _ in range(chance.choice([1, 1, 2]))])
        given.append(optional(slot) if chance.random() < 0.3 else slot)
    once = [slot for slot in given if given.count(slot) == 1]
    members = [t for slot in once for t in slot.alternatives]
    chance.shuffle(members)
    before = [(a, b) for a, b in pairwise(members) if chance.random() < 0.4]
    space = Space(given, before)
    orders = expected(space, given)
    assert set(space.orders()) == orders and space.total == len(orders)
    assert len(list(space.orders())) == len(orders), "each once"
    prefixes = {order[:k] for order in orders for k in range(1, len(order) + 1)}
    assert space.full_tree == len(prefixes)
    for order in orders:
        assert space.prefix(space.order(order).techniques) == order


def test_pairs_follow_from_each_other() -> None:
    space = Space([A, B, C], before=[(A, B), (B, C)])
    assert list(space.orders()) == [(0, 1, 2)]
    assert list(Space([A, optional(B), C], before=[(A, B), (B, C)]).orders()) == [(0, 1, 2), (0, 2)]


@pytest.mark.parametrize(
    ("given", "before", "message"),
    [
        ([A, one_of(A, B)], [], "two different slots"),
        ([A, B], [(A, B), (B, A)], "circle"),
        ([A, B], [(A, C)], "AbsMax"),
        ([A, B], [(A, B, C)], "pairs"),
        (["A"], [], "technique"),
    ],
)
def test_what_makes_no_sense_is_said(given: list[object], before: list[tuple[object, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Space(given, before)  # type: ignore[arg-type]


def test_one_of_nothing() -> None:
    with pytest.raises(InputError, match="one or more"):
        one_of()
