"""Find the grid that floats lie on: one step a group, of which every weight is a multiple but for rounding.

A weight w that was rounded to its dtype stands for the interval of numbers that round to it. A step s fits a group if
for every weight some level k has k s in that interval. The step is that of the largest weight's level, of which
all are tried. A grid counts only if random weights would lie on it in fewer than one of a million layers. Weights of
one magnitude count once there, as two grids together have few magnitudes too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compcomp.formats.numbers import E2M1, NF4, SIGNIFICANT, Array, half_ulp

SIZES = (1024, 512, 256, 192, 128, 96, 64, 48, 32, 16)
"""Group sizes that are tried after whole rows, the largest first."""
SLACK = 1 + 2**-10
"""Half a unit in the last place is taken this much larger: a level may have been rounded in float32 before."""
EVIDENCE = 20.0
"""Bits of evidence that a grid needs: chance would give it in one of 2^20 layers."""
STARTS = (16, 32, 64, 128)
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
REPEATED = 3
"""Up to this many bits, few magnitudes are evidence too."""
CODES = {"FP4": np.array(E2M1), "NF4": np.array(NF4)}
STEP_BITS = 16
TRIED = 24
"""Groups that a layer is judged by before all of it is read."""


@dataclass(frozen=True)
class Kind:
    """Name a family of grids.

    Args:
        name: ``integers``, ``zero point``, ``minimum``, or a codebook.
        bits: the bits of a level.
    """

    name: str
    bits: int

    def tops(self) -> range:
        """Return the levels that the largest weight of a group (from the minimum, if that is the offset) may have."""
        most = 1 << self.bits
        if self.name in CODES:
            return range(1, int((CODES[self.name] > 0).sum()) + 1)
        return range(1, most // 2 + 1 if self.name == "integers" else most)

    def allowed(self, low: Array, high: Array) -> Array:
        """Return which groups' least and largest levels are those of one grid of this kind."""
        most = 1 << self.bits
        if self.name == "integers":  # not both ends: of the signed grid one
            found: Array = (low >= -most // 2) & (high <= most // 2) & (high - low < most)
            return found
        return high - low < most if self.name in ("zero point", "minimum") else np.ones(len(low), bool)


@dataclass
class Fit:
    """Hold what was found of groups, one entry each.

    Args:
        fits: True if a step fits.
        top: the level of the largest weight.
        low: the least level.
        high: the largest level.
        exact: True if the weights are levels times one number without any rounding.
        evidence: bits by which chance would not give the fit.
    """

    fits: Array
    top: Array
    low: Array
    high: Array
    exact: Array
    evidence: Array

    @classmethod
    def none(cls, count: int) -> Fit:
        """Return that nothing fits."""
        zeros = np.zeros(count, np.int64)
        flags = np.zeros(count, bool)
        return cls(flags, zeros, zeros.copy(), zeros.copy(), flags.copy(), np.zeros(count))


def fitted(groups: Array, kind: Kind, dtype: str, tops: Sequence[int] | None = None) -> Fit:
    """Return how groups fit grids of a kind.

    Args:
        groups: the weights, groups x size, float64.
        kind: the kind of grid.
        dtype: the dtype that the weights were rounded to.
        tops: the levels of the largest weight in the order to try; by default all, the coarsest grid first.
    """
    found = Fit.none(len(groups))
    values, half = _centred(groups, kind, dtype)
    largest = np.abs(values).max(axis=1)
    found.fits |= largest == 0
    found.exact |= largest == 0
    todo = np.flatnonzero(largest > 0)
    places = CODES.get(kind.name)
    size = np.abs(values)
    for top in kind.tops() if tops is None else tops:
        if not len(todo):
            break
        code = _code(top, places)
        own, own_half, own_size = values[todo], half[todo], size[todo]
        step, spare = _step(own_size, own_half, largest[todo][:, None], code, own, places)
        levels, numbers = _nearest(own / step, places)
        with np.errstate(invalid="ignore"):
            off = np.abs(own - numbers * step) > own_half + np.abs(numbers) * spare
        off |= (numbers == 0) & (own_size > own_half * (kind.name == "minimum"))
        low, high = levels.min(axis=1), levels.max(axis=1)
        fits = ~off.any(axis=1) & (spare[:, 0] >= 0) & kind.allowed(low, high)
        at = todo[fits]
        if len(at):
            found.fits[at], found.top[at], found.low[at], found.high[at] = True, top, low[fits], high[fits]
            exact = own[fits] * code == numbers[fits] * largest[at][:, None]
            found.exact[at] = exact.all(axis=1) & (kind.name != "NF4")
            found.evidence[at] = _evidence(own_size[fits], own_half[fits], step[fits], kind)
        todo = todo[~fits]
    return found


def _code(top: int, places: Array | None) -> float:
    """Return the number of the largest weight's level; of a codebook the top-th largest of its positive numbers."""
    return float(top) if places is None else float(places[places > 0][-top])


def _step(
    size: Array, half: Array, largest: Array, code: float, own: Array, places: Array | None
) -> tuple[Array, Array]:
    """Return the middle of the steps that fit every group, and half of their range, which is negative if none does.

    Levels that the largest weight's rounding leaves open do not count: they are checked with the step found here.
    """
    step = largest / code
    _, numbers = _nearest(own / step, places)
    parts = np.abs(numbers)
    of_largest = np.where(size == largest, half, 0.0).max(axis=1)[:, None]
    sure = (parts > 0) & ((parts * of_largest / code + half) < 0.25 * step)
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.where(sure, (size - half) / parts, 0.0).max(axis=1)[:, None]
        most = np.where(sure, (size + half) / parts, np.inf).min(axis=1)[:, None]
    least = np.maximum(least, (largest - of_largest) / code)
    most = np.minimum(most, (largest + of_largest) / code)
    return np.maximum((least + most) / 2, np.finfo(np.float64).tiny), (most - least) / 2


def _centred(groups: Array, kind: Kind, dtype: str) -> tuple[Array, Array]:
    """Return weights, from the least of their group if the grid has an offset, and the errors of rounding."""
    half = half_ulp(groups, dtype) * SLACK
    if kind.name != "minimum":
        return groups, half
    at = groups.argmin(axis=1)[:, None]
    least = np.take_along_axis(groups, at, 1)
    return groups - least, half + np.take_along_axis(half, at, 1) + half_ulp(np.abs(groups).max(1), dtype)[:, None]


def _nearest(ratios: Array, codes: Array | None) -> tuple[Array, Array]:
    """Return the nearest levels and their numbers; of a codebook the levels are signed places."""
    if codes is None:
        levels = np.rint(ratios)
        return levels.astype(np.int64), levels
    if codes[0] < 0:  # with its negative values
        edges = (codes[1:] + codes[:-1]) / 2
        places = np.searchsorted(edges, ratios)
        return places, codes[places]
    places = np.searchsorted((codes[1:] + codes[:-1]) / 2, np.abs(ratios))
    sign = np.where(ratios < 0, -1, 1)
    return places * sign, codes[places] * sign


def _evidence(size: Array, half: Array, step: Array, kind: Kind) -> Array:
    """Return the bits by which chance would not give a fit, from the part of a step that each weight may be off."""
    order = np.argsort(size, axis=1)
    size, half = np.take_along_axis(size, order, 1), np.take_along_axis(half, order, 1)
    slip = half[:, -1:] / size[:, -1:]
    spread = 4 if kind.name in CODES else 1  # levels of a codebook lie up to a quarter as close
    bits = -np.log2(np.clip(2 * spread * (half + size * slip) / step, 2.0**-30, 1.0))
    new = np.diff(size, axis=1, prepend=0) > 0
    free = np.log2(len(kind.tops())) + bits[:, -1]  # the step was chosen, and the largest weight fits for certain
    counted: Array = np.where(new, bits, 0.0).sum(axis=1) - free
    if kind.bits <= REPEATED:
        counted = counted + 4 * ((size > 0) & ~new).sum(axis=1)
    return counted


@dataclass(frozen=True)
class Found:
    """Name the grid that a layer seems to lie on: its kind, group size, and the levels of largest weights to try."""

    kind: Kind
    group: int
    tops: tuple[int, ...]
    dtype: str


def guessed(rows: Array, dtype: str, first: Sequence[int] = ()) -> Found | None:
    """Return the grid that sampled rows lie on, or None if half of their groups lie on none.

    Of a group size the smallest number of bits that nine of ten groups fit is taken; of the group sizes the one in
    which the layer takes the fewest bits, with :data:`STEP_BITS` for each step.

    Args:
        rows: rows x in, float64.
        dtype: the dtype that the weights were rounded to.
        first: group sizes to try first.
    """
    width, best, cost = rows.shape[1], None, np.inf
    possible = _possible(rows, dtype)[::-1]
    for size in dict.fromkeys((*(s for s in first if s > 1), width, *SIZES)):
        if size > width or width % size:
            continue
        groups = rows.reshape(-1, size)
        groups = groups[np.abs(groups).max(axis=1) > 0]
        groups = groups[np.linspace(0, len(groups) - 1, min(TRIED, len(groups))).astype(int)]
        names = next((names for start, names in possible if start <= size), {kind.name for kind in kinds(dtype)})
        if len(groups) and names and (found := _kind_of(groups, dtype, names)):
            bits = found[0].bits + STEP_BITS / size
            if bits < cost:
                best, cost = Found(found[0], size, found[1], dtype), bits
    return best


def _possible(rows: Array, dtype: str) -> list[tuple[int, set[str]]]:
    """Return for some sizes which kinds the first group of a row may lie on: where its start lies on none, none."""
    few = rows[:: max(1, len(rows) // 8)]
    widest, found = {kind.name: kind for kind in kinds(dtype)}, list[tuple[int, set[str]]]()  # the last has most levels
    for size in STARTS:
        if size <= rows.shape[1]:
            starts = few[:, :size]
            names = {name for name, kind in widest.items() if fitted(starts, kind, dtype).fits.any()}
            widest = {name: widest[name] for name in names}
            found.append((size, names))
    return found


def _kind_of(groups: Array, dtype: str, possible: set[str]) -> tuple[Kind, tuple[int, ...]] | None:
    best: tuple[float, Kind, tuple[int, ...]] | None = None
    for kind in kinds(dtype):
        if best is not None and best[0] >= 0.9 and (best[0] == 1 or kind.bits > best[1].bits):
            break
        if kind.name not in possible:
            continue
        found = fitted(groups, kind, dtype)
        share = float(found.fits.mean())
        evidence = float(np.maximum(found.evidence[found.fits], 0).sum()) - len(groups)  # any of them may fit
        if (
            share >= 0.5
            and evidence >= EVIDENCE
            and (best is None or share > best[0] + (0.1 if kind.bits > best[1].bits else 0))
        ):
            order = [top for top, _ in Counter(found.top[found.fits].tolist()).most_common()]
            best = share, kind, tuple(order)
    return None if best is None else (best[1], best[2])


def kinds(dtype: str) -> list[Kind]:
    """Return the kinds to try, those with the fewest values first.

    Levels of a dtype with few significant bits are as close as its numbers from some size on: no grid is seen there.
    """
    significant = SIGNIFICANT[dtype]
    found = []
    for bits in WIDTHS:
        found.append(Kind("integers", bits))
        if bits == 4:
            found += [Kind("FP4", 4), Kind("NF4", 4)]
        if bits < significant:
            found += [Kind("zero point", bits)]
            found += [Kind("minimum", bits)] if bits + 2 < significant else []
    return [kind for kind in found if kind.bits <= significant]


def misfits(group: Array, found: Found) -> Array:
    """Return which weights of a group are off the grid that most of them lie on.

    Args:
        group: the weights of one group, float64.
        found: the layer's grid.
    """
    kind = found.kind
    values, half = _centred(group[None], kind, found.dtype)
    own, half, places = values[0], half[0], CODES.get(kind.name)
    anchors = np.unique(np.abs(own))[::-1][:4]
    best = np.ones(len(own), bool)
    for anchor in anchors[anchors > 0]:
        slip = float(half_ulp(np.array(anchor), found.dtype)) / float(anchor)
        for top in kind.tops():
            code = _code(top, places)
            step = anchor / code
            levels, numbers = _nearest(own / step, places)
            off = np.abs(own - numbers * step) > half + slip * np.abs(numbers) * step
            off |= (numbers == 0) & (np.abs(own) > half * (kind.name == "minimum"))
            if kind.name == "integers":
                off |= np.abs(levels) > 1 << (kind.bits - 1)
            if off.sum() < best.sum():
                best = off
    return best
