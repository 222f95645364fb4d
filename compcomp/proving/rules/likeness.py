"""What rules take for one thing has to be one: equal techniques, equal steps, and all numbers that are Any."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from itertools import combinations
from typing import Any

from compcomp.language.claim import Claim
from compcomp.language.parameters import Unknown
from compcomp.language.steps import Step
from compcomp.language.technique import Technique, unknowns
from compcomp.proving.functions import of_step

# Rules compare techniques and steps by their equality, which a class of its own may define to leave something out
# (compare=False). So any two that say they are equal have to agree in every field, and their functions in what they
# say.
#
# All shares that are Any count as one number, and so do all levels of one kind of map. So at every instance of the
# claim the shares that were Any have to be one number, and the levels, and nothing else of a step may have changed.
# Each parameter needs two examples at least: where parameters of two names stand for what counts as one number, some
# instance then has them differ.


def dependable(claim: Claim) -> bool:
    """Whether rules may rely on it. Where not, none is asked."""
    techniques = [t for sequence in claim.sequences for t in sequence]
    steps = [(step, of_step(step)) for technique in techniques for step in technique.steps()]
    try:
        return _alike(techniques, steps) and _one_number(claim, techniques)
    except (TypeError, ValueError):  # no hash, or no truth value of an equality: nothing is known
        return False


def _alike(techniques: list[Technique], steps: list[tuple[Step, Hashable]]) -> bool:
    said: dict[Step, Hashable] = {}
    if any(said.setdefault(step, key) != key for step, key in steps):
        return False
    return all(_same_fields(one, other) for one, other in combinations(techniques, 2))


def _same_fields(one: Technique, other: Technique) -> bool:
    if one is other or not bool(one == other):
        return True
    if type(one) is not type(other) or not is_dataclass(one):
        return False
    return all(bool(getattr(one, f.name) == getattr(other, f.name)) for f in fields(one))


def _one_number(claim: Claim, techniques: list[Technique]) -> bool:
    open_ = {name: set(type(t).examples[name]) for t in techniques for name in unknowns(t)}
    if any(len(examples) < 2 for examples in open_.values()):
        return False
    for instance in claim.instances() if open_ else ():
        numbers: dict[object, set[Any]] = {}
        closed = [t for sequence in instance.sequences for t in sequence]
        for technique, other in zip(techniques, closed, strict=True):
            parts, values = list(_parts(technique)), list(_parts(other))
            if len(parts) != len(values):
                return False
            for part, value in zip(parts, values, strict=True):
                if not _fills(part, value, numbers):
                    return False
        if any(len(found) > 1 for found in numbers.values()):
            return False
    return True


def _parts(technique: Technique) -> Iterator[Step | Fraction | Unknown]:
    yield from technique.steps()
    optimum = technique.promises().optimum
    if optimum is not None:
        yield from (optimum.grid, optimum.share)


def _fills(part: Any, value: Any, numbers: dict[object, set[Any]]) -> bool:
    """Whether the part of an instance is that of the claim, but for numbers in place of Any, which are noted."""
    if isinstance(part, Unknown):
        numbers.setdefault("share", set()).add(value)
        return True
    names = [name for name in ("share", "levels") if isinstance(getattr(part, name, None), Unknown)]
    if type(part) is not type(value):
        return False
    for name in names:
        numbers.setdefault(name if name == "share" else type(part), set()).add(getattr(value, name))
    filled = replace(part, **{name: getattr(value, name) for name in names}) if names else part
    return bool(filled == value)
