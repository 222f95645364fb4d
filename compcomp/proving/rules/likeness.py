"""Check that what rules treat as the same object is the same.

Rules treat techniques and steps that compare equal, and all parameters set to ``Any``, as the same object.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields, replace
from fractions import Fraction
from itertools import combinations
from typing import Any

from compcomp.errors import InputError
from compcomp.language.claim import Claim
from compcomp.language.contracts import contracts
from compcomp.language.identity import Unidentified, identity, is_ours, same
from compcomp.language.parameters import Unknown, is_unknown
from compcomp.language.samples import sets_up
from compcomp.language.steps import Step
from compcomp.language.technique import Technique, has_fields, unknowns
from compcomp.proving.functions import of_step

# Rules compare techniques and steps, and scores and measures in them, by identity (language/identity.py) or by
# equality, from which a user's class may exclude fields (compare=False). So everything that they compare has to have
# an identity, and any two that compare equal must have one identity. Steps and promises, which a class makes anew at
# every call, have to be the same each time: they are compared before and after a rule is asked.
#
# All shares that are Any count as one number, and so do all levels of one kind of map. So at every instance of the
# claim the shares that were Any have to be one number, and the levels, and nothing else of a step may have changed.
# Each parameter needs at least two examples: where parameters of two names stand for what counts as one number, some
# instance then has them differ.
#
# What is promised of Any is promised of every value, and what is not promised of Any is used of none (stands_for).


def standing(claim: Claim) -> Hashable | None:
    """Return all that rules read of a claim's techniques, as it is now.

    Return None if equal-looking techniques differ in some field or cannot be compared, or if the values of ``Any`` are
    not one number. The prover then skips all rules.
    """
    techniques = [t for sequence in claim.sequences for t in sequence]
    steps = tuple(tuple(map(of_step, () if is_ours(t) else t.steps())) for t in techniques)
    try:
        read = (steps, *map(_declared, techniques))
        return read if _alike(techniques) and _one_number(claim, techniques) else None
    except (TypeError, ValueError, Unidentified):  # no hash, no truth value of an equality, no identity
        return None


def unreliable(claim: Claim) -> str:
    """Return why :func:`standing` is None, naming the technique that rules may not rely on."""
    techniques = [t for sequence in claim.sequences for t in sequence]
    for technique in techniques:
        try:
            _declared(technique)
            tuple(map(of_step, technique.steps()))
        except (TypeError, ValueError, Unidentified):
            return f"what {technique} does is not known to be the same each time, so no rule relies on it"
    if any(unknowns(technique) for technique in techniques):
        return "what a technique says of Any is not known to hold of each value, or the values are not one number"
    return "techniques or steps that compare equal are not known to be the same"


def dependable(claim: Claim) -> bool:
    """Return True if rules may rely on what the claim's techniques declare."""
    return standing(claim) is not None


def _declared(technique: Technique) -> Hashable:
    if is_ours(technique):
        return identity(technique)
    sees = technique.needs_inputs, technique.is_deterministic, technique.is_homogeneous
    return identity(technique), identity(technique.promises()), sees


def _alike(techniques: list[Technique]) -> bool:
    """Return True if any two things that rules compare have one identity whenever they are equal."""
    foreign = [technique for technique in techniques if not is_ours(technique)]
    parts: list[Any] = [*techniques] if foreign else []
    for technique in techniques if foreign else ():
        for step in technique.steps():
            values = [getattr(step, f.name) for f in fields(step)]
            parts += [step, *(value for value in values if callable(value))]
    for part in parts:
        identity(part)
    return all(same(one, other) or not bool(one == other) for one, other in combinations(parts, 2))


def _one_number(claim: Claim, techniques: list[Technique]) -> bool:
    open_ = {name: set(type(t).examples[name]) for t in techniques for name in unknowns(t)}
    if any(len(examples) < 2 for examples in open_.values()):
        return False
    for instance in claim.instances() if open_ else ():
        numbers: dict[object, set[Any]] = {}
        closed = [t for sequence in instance.sequences for t in sequence]
        for technique, other in zip(techniques, closed, strict=True):
            if not (_promised(technique, other) and _filled(technique, other, numbers)):
                return False
        if any(len(found) > 1 for found in numbers.values()):
            return False
    return True


def _filled(technique: Technique, other: Technique, numbers: dict[object, set[Any]]) -> bool:
    """Return True if the steps of an instance are the technique's, with numbers in place of Any.

    The numbers are added to ``numbers``.
    """
    parts, values = list(_parts(technique)), list(_parts(other))
    return len(parts) == len(values) and all(
        _fills(part, value, numbers) for part, value in zip(parts, values, strict=True)
    )


def _parts(technique: Technique) -> Iterator[Step | Fraction | Unknown]:
    yield from technique.steps()
    optimum = technique.promises().optimum
    if optimum is not None:
        yield from (optimum.grid, optimum.share)


def _fills(part: Any, value: Any, numbers: dict[object, set[Any]]) -> bool:
    """Return True if the part of an instance is the claim's, with numbers in place of Any.

    The numbers are added to ``numbers``.
    """
    if isinstance(part, Unknown):
        numbers.setdefault("share", set()).add(value)
        return True
    names = [name for name in ("share", "levels") if isinstance(getattr(part, name, None), Unknown)]
    if type(part) is not type(value):
        return False
    for name in names:
        numbers.setdefault(name if name == "share" else type(part), set()).add(getattr(value, name))
    filled = replace(part, **{name: getattr(value, name) for name in names}) if names else part
    return same(filled, value)


# ------------------------------------------------------------------------------------------ values for Any


def stands_for(technique: Technique, other: Technique) -> bool:
    """Return True if another technique is an instance of one with open parameters, so that proofs carry over.

    Its values are among those that Any stands for: numbers of the type of an example, or an example itself if the
    examples are no numbers. Nothing else differs, no promise is broken, and the same formats are set up.
    """
    names = [name for name in unknowns(technique) if not is_unknown(getattr(other, name, None))]
    try:
        values = {name: getattr(other, name) for name in names}
        if not same(technique, other) and not (
            has_fields(technique) and names and same(replace(technique, **values), other)
        ):
            return False
        if not names:
            return True
        examples = list(_examples(technique, values))
        if not all(any(_of_kind(example[name], values[name]) for example in examples) for name in names):
            return False
        if not (_promised(technique, other) and (_filled(technique, other, {}) or not _steps_are_of_any(technique))):
            return False
        return is_ours(other) or unknowns(other) != () or _sets_up_alike(technique, other)
    except (Unidentified, InputError, AttributeError, TypeError, ValueError):
        return False


def _examples(technique: Technique, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the example values of these parameters, one parameter at a time, as the class normalizes them."""
    for name in values:
        for example in type(technique).examples[name]:
            try:
                other: Any = replace(technique, **{**values, name: example})
            except (InputError, TypeError, ValueError):
                continue
            yield {**values, name: getattr(other, name)}


def _of_kind(example: Any, value: Any) -> bool:
    number = type(value) in (int, float, Fraction)
    return (number and type(example) is type(value)) or same(example, value)


def _steps_are_of_any(technique: Technique) -> bool:
    """Return True if its steps are those of its examples except for numbers.

    Otherwise no rule proves anything of them.
    """
    chosen = ({name: value} for name in unknowns(technique) for value in type(technique).examples[name])
    return all(_filled(technique, replace(technique, **one), {}) for one in chosen)


def _sets_up_alike(technique: Technique, other: Technique) -> bool:
    chosen = {name: type(technique).examples[name][0] for name in unknowns(technique)}
    return sets_up(replace(technique, **chosen)) == sets_up(other)


def _promised(technique: Technique, other: Technique) -> bool:
    """Return True if an instance keeps every promise of the open technique, and rules treat both alike."""
    said, kept = technique.promises(), other.promises()
    alike = ("changes_inputs", "changes_basis")
    if any(getattr(said, name) != getattr(kept, name) for name in alike):
        return False
    if technique.whole_model != other.whole_model or bool(technique.steps()) != bool(other.steps()):
        return False
    parts, values = technique.parts(), other.parts()
    if parts.keys() != values.keys() or not all(stands_for(part, values[name]) for name, part in parts.items()):
        return False
    if said.optimum is None or kept.optimum is None:
        if said.optimum is not None:
            return False
    elif not same(_rest(said.optimum), _rest(kept.optimum)):
        return False
    if said.input_bits not in (None, kept.input_bits):
        return False
    sets = ("keeps", "restores", "never_increases", "zeros", "no_op")
    if not all(getattr(said, name) <= getattr(kept, name) for name in sets):
        return False
    if any(getattr(said, name) and not getattr(kept, name) for name in STRONGER):
        return False
    if any(getattr(kept, name) and not getattr(said, name) for name in WEAKER):
        return False
    if other.needs_inputs and not technique.needs_inputs:
        return False
    return (other.is_deterministic or not technique.is_deterministic) and (
        other.is_homogeneous or not technique.is_homogeneous
    )


STRONGER = (
    *("any_inputs", "no_op_on_dense", "holds_reference", "leaves_weight", "removes_rows", "removes_columns"),
    *("homogeneous", "deterministic", "idempotent", "involution", "scales_inputs"),
)
"""Promises that the instance must make if the open technique makes them."""
WEAKER = tuple(name for name, contract in contracts().items() if contract.weaker)
"""Declarations that the instance may make only if the open technique does. Leaving them out is the promise."""


def _rest(optimum: Any) -> Any:
    return optimum.loss, optimum.partition, optimum.ratios
