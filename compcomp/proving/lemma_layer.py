"""Find a layer on which a lemma about one or two weights fails, and check it with the exact encodings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import isqrt

import numpy as np

from compcomp.errors import InputError, NotExactError
from compcomp.language.claim import Claim
from compcomp.language.refusal import Matrix, Refusal
from compcomp.proving.meaning import conditions_hold
from compcomp.proving.replay import Suspect, exact_runs

MOST_LARGEST, MOST_ZEROS = 2, 6
"""Most weights of a row that the lemma does not name: of the largest magnitude, and zero."""
STEPS = {1: 60, 2: 12}
"""Steps into which the scale is cut to look for other values, by the number of weights that a lemma names."""
LONGEST_NORM = 10**4
"""The largest p q of a squared norm p / q that is written as a sum of squares."""
SEEDS = (0, 2, 4)
"""Seeds of the choices that techniques leave free."""


@dataclass(frozen=True)
class Weight:
    """One weight that a lemma names: its dense value, the squared norm of its input, and what both sequences do."""

    dense: Fraction
    norm2: Fraction
    dropped: tuple[bool, bool]
    values: tuple[Fraction, Fraction]


@dataclass(frozen=True)
class Row:
    """A layer of one row. ``places``: of the weights that a lemma names. ``unseen``: of those whose input is 0."""

    weights: tuple[Fraction, ...]
    places: Mapping[str, int]
    unseen: frozenset[int]


Named = Mapping[str, Weight]
Part = Callable[[Weight, Fraction], Fraction]
"""The loss of one weight that ends at a value."""


def _kept(w: Named, loss: Part) -> bool:
    b = w["b"]
    return not any(b.dropped) and loss(b, b.values[0]) > loss(b, b.values[1])


def _alone(w: Named, loss: Part) -> bool:
    b = w["b"]
    return b.dropped == (False, True) and loss(b, b.values[0]) > loss(b, Fraction(0))


def _pair(w: Named, loss: Part) -> bool:
    a, b = w["a"], w["b"]
    left = loss(a, Fraction(0)) + loss(b, b.values[0])
    return _no_pair(w, loss) and left > loss(a, a.values[1]) + loss(b, Fraction(0))


def _same_value(w: Named, loss: Part) -> bool:
    b = w["b"]
    return not any(b.dropped) and b.values[0] != b.values[1]


def _no_pair(w: Named, loss: Part) -> bool:
    return w["a"].dropped == (True, False) and w["b"].dropped == (False, True)


FAILS: dict[str, Callable[[Named, Part], bool]] = {
    "kept": _kept,
    "alone": _alone,
    "pair": _pair,
    "same value": _same_value,
    "no pair": _no_pair,
}
"""When each lemma of the rules exchange and same fails for weights of one row."""


def with_layer(claim: Claim, refusal: Refusal, until: float) -> Refusal:
    """Add a layer of one row on which the lemma fails, and what the sequences make of the weights that it names.

    The row has the weights that the lemma names, a weight of the scale's magnitude where none of them has it, and
    zeros. Where the values of the lemma do not show on it, as they need only agree with what is proved of the steps,
    others of that scale are tried. A layer counts only if the exact encodings run both sequences on it, the claim's
    conditions hold, and the lemma fails for what these runs do to the named weights.

    Args:
        refusal: with the values of a counterexample.
        until: when to give up, on the clock of ``time.monotonic``.

    Returns:
        The refusal as it was where no such layer was found.
    """
    lemma = refusal.lemma
    if lemma is None or lemma.name not in FAILS or len(claim.sequences) != 2:
        return refusal
    try:
        known = {name: Fraction(value) for name, value in refusal.values}
    except ValueError:  # an algebraic number
        return refusal
    names = ["a", "b"] if lemma.name in ("pair", "no pair") else ["b"]
    if not {*names} <= {*known}:
        return refusal
    norms = {name: known.get(f"h_{name}", known.get("h", Fraction(1))) for name in names}
    sees_norms = claim.needs_inputs and not claim.assumes("equal norms")
    for row in _rows({name: known[name] for name in names}, _scale(known), norms=sees_norms):
        if time.monotonic() > until:
            break
        unseen = dict.fromkeys(row.unseen, Fraction(0))
        suspect = _suspect(claim, row.weights, {**unseen, **{row.places[name]: norm for name, norm in norms.items()}})
        if suspect is None:
            continue
        found = _checked(claim, suspect, row.places, FAILS[lemma.name])
        if found is not None:
            return replace(
                refusal,
                values=_values(found, known, row.weights),
                layer=(row.weights,),
                inputs=None if suspect.inputs is None else _matrix(suspect),
            )
    return refusal


def _scale(known: Mapping[str, Fraction]) -> Fraction:
    """The largest scale among the values of a lemma, or the largest weight where it has none."""
    scales = [value for name, value in known.items() if name.startswith("scale")]
    return max(scales) if scales else max(abs(known[name]) for name in ("a", "b") if name in known) or Fraction(1)


def _rows(values: dict[str, Fraction], scale: Fraction, *, norms: bool) -> Iterator[Row]:
    """Rows with the named weights, the shortest first: with the lemma's own values, then with others of their scale."""
    names = list(values)
    signs = [-1 if values[name] < 0 else 1 for name in names]
    steps = STEPS[len(names)]
    others = [
        [sign * scale * k / steps for sign, k in zip(signs, chosen, strict=True)]
        for chosen in product(range(1, steps + 1), repeat=len(names))
    ]
    # A weight without an input may be dropped although it is the largest, and the scale then changes.
    hidden = [[], [2 * scale]] if norms else [[]]
    remainders = sorted(
        ([scale] * largest + [Fraction(0)] * zeros, unseen)
        for largest, zeros, unseen in product(range(MOST_LARGEST + 1), range(MOST_ZEROS + 1), hidden)
    )
    remainders.sort(key=lambda rest: sum(map(len, rest)))
    for candidates in ([list(values.values())], others):
        for (rest, unseen), named in product(remainders, candidates):
            if scale in rest or max(map(abs, named)) >= scale:
                places = {name: k for k, name in enumerate(names)}
                size, unused = len(names) + len(rest), range(len(unseen))
                yield Row((*named, *rest, *unseen), places, frozenset(size + k for k in unused))
                last = {name: size + len(unseen) - 1 - k for name, k in places.items()}
                yield Row((*unseen, *rest, *named[::-1]), last, frozenset(unused))


def _suspect(claim: Claim, row: tuple[Fraction, ...], norms: Mapping[int, Fraction]) -> Suspect | None:
    """The layer of one row, with inputs of these squared norms; None where the claim does not speak of its shape."""
    if not claim.fits((1, len(row))):
        return None
    weight = np.array([row], dtype=object)
    if not claim.needs_inputs:
        return Suspect(weight, None)
    others = max((*norms.values(), Fraction(1)))
    entries = [_squares(norms.get(k, others)) for k in range(len(row))]
    if not all(entries):
        return None
    inputs = np.full((len(row), sum(map(len, entries))), Fraction(0), dtype=object)
    token = 0
    for k, own in enumerate(entries):  # each feature has tokens of its own, so the Gram matrix is diagonal
        inputs[k, token : token + len(own)] = own
        token += len(own)
    return Suspect(weight, inputs)


def _squares(norm2: Fraction) -> list[Fraction]:
    """At most four rational numbers whose squares add up to a number >= 0; none where it is too long or negative."""
    p, q = norm2.numerator, norm2.denominator
    if not 0 <= p * q <= LONGEST_NORM:
        return []
    for x in range(isqrt(p * q), -1, -1):
        for y in range(min(x, isqrt(p * q - x * x)), -1, -1):
            for z in range(min(y, isqrt(p * q - x * x - y * y)), -1, -1):
                left = p * q - x * x - y * y - z * z
                if isqrt(left) ** 2 == left:
                    return [Fraction(n, q) for n in (x, y, z, isqrt(left)) if n] or [Fraction(0)]
    return []


def _checked(
    claim: Claim, suspect: Suspect, places: Mapping[str, int], fails: Callable[[Named, Part], bool]
) -> dict[str, Weight] | None:
    """Return the values of the named weights in exact runs on which the lemma fails and all conditions hold."""
    for seed in (None,) if claim.is_deterministic else SEEDS:
        try:
            runs = exact_runs(claim, replace(suspect, seed=seed))
            if not conditions_hold(claim, runs):
                continue
        except (NotExactError, InputError, ArithmeticError, TypeError):
            return None
        ends, gram = [run[-1] for run in runs], runs[0][0].gram
        named = {}
        for name, k in places.items():
            masks = [end.format.mask for end in ends]
            one, other = (mask is not None and not mask[0, k] for mask in masks)
            first, second = (Fraction(end.effective()[0, k]) for end in ends)
            norm2 = Fraction(1 if gram is None else gram[k, k])
            named[name] = Weight(Fraction(suspect.weight[0, k]), norm2, (one, other), (first, second))
        if fails(named, lambda w, value: Fraction(claim.part(w.dense, value, w.norm2)) if claim.part else Fraction(0)):
            return named
    return None


def _values(named: Named, known: Mapping[str, Fraction], row: tuple[Fraction, ...]) -> tuple[tuple[str, str], ...]:
    """The values of a lemma as they are on a layer: ``A(b)`` is what the first sequence leaves of b."""
    weights = [(name, weight.dense) for name, weight in sorted(named.items())]
    others = [(name, value) for name, value in known.items() if name.startswith("h")]
    if known.get("scale") == max(map(abs, row)):
        others.insert(0, ("scale", known["scale"]))
    results = [
        (f"{side}({name})", weight.values[k])
        for (k, side), (name, weight) in product(enumerate("AB"), sorted(named.items()))
    ]
    return tuple((name, str(value)) for name, value in (*weights, *others, *results))


def _matrix(suspect: Suspect) -> Matrix:
    assert suspect.inputs is not None
    return tuple(tuple(Fraction(x) for x in row) for row in suspect.inputs)
