"""Measure one layer of a checkpoint in one pass over its rows, after a look at a few of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

import numpy as np

from compcomp.formats.numbers import Array
from compcomp.formats.stored import Block, Claim, Layer
from compcomp.inspecting.grids import EVIDENCE, Fit, Found, Kind, fitted, guessed, kinds, misfits
from compcomp.inspecting.rank import SKETCH, RankSketch
from compcomp.record import Record

PATTERNS = ((1, 4), (2, 4), (2, 8), (4, 8))
"""The N:M patterns whose shares are always counted."""
SAMPLED = 16
"""Rows by which a layer's grid is guessed."""
NAMED = 20
"""The most positions of broken groups and of weights off the grid that are kept for a layer."""
SEARCHED = 200
"""The most groups off the grid in which single weights are looked for."""


@dataclass(frozen=True, eq=False)
class Grid(Record):
    """Describe the grid of a layer.

    Args:
        kind: ``narrow`` (levels -(h-1) to h-1 for h = 2^(bits-1)), ``full levels`` (-h to h-1), ``signed`` (groups
            whose levels end at -h, and others that end at h), ``zero point``, ``minimum``, or a codebook.
        bits: the bits of a level.
        group: consecutive weights of a row that share a step; 0 if the file shares steps in another way.
        levels: the least and the largest level.
        lowest_share: the share of groups that use the level -h.
        exact: True if all weights are levels times one number without rounding; the file's own levels always are.
        rounding: the dtype whose rounding explains the rest.
        groups: the groups of the layer.
        off: groups that are off the grid.
        weights_off: single weights found off it, in at most :data:`SEARCHED` of these groups.
        first: row and column of the first ones.
        stored: True if the file says so, False if found in floats.
    """

    kind: str
    bits: int
    group: int
    levels: tuple[int, int] | None
    lowest_share: float | None
    exact: bool
    rounding: str | None
    groups: int
    off: int = 0
    weights_off: int = 0
    first: tuple[tuple[int, int], ...] = ()
    stored: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the grid as data."""
        return {**vars(self), "levels": self.levels and list(self.levels), "first": [list(at) for at in self.first]}

    def __str__(self) -> str:
        size = "" if not self.group else f"g{self.group}"
        return f"W{self.bits}{size} {self.kind}" + (f", {self.off} groups off" if self.off else "")


@dataclass(frozen=True, eq=False)
class Measured(Record):
    """Hold what was measured of a layer (out x in).

    Args:
        name: the layer's name.
        shape: (out, in).
        format: the format in the file.
        dtype: the dtype of its floats, None if it is stored on a grid.
        nbytes: the bytes of its tensors.
        sparsity: the share of weights that are zero. None here and below: the format is not read.
        patterns: of each N:M pattern the share of groups that meet it.
        pattern: the pattern that the layer is expected, claimed or found to have, as (n, m).
        broken: its groups that do not meet it.
        first_broken: row and first column of the first ones.
        grid: the grid, None if there is none.
        rank: the rank of the weight.
        rank_is_least: True if the rank may be larger.
        branch_rank: the rank of a low-rank branch that is stored apart.
        dead_rows: rows that are zero.
        dead_columns: columns that are zero.
        not_finite: weights that are infinite or NaN.
        problems: where claims and tensors differ.
    """

    name: str
    shape: tuple[int, int]
    format: str
    dtype: str | None
    nbytes: int
    sparsity: float | None = None
    patterns: dict[str, float] = field(default_factory=dict)
    pattern: tuple[int, int] | None = None
    broken: int = 0
    first_broken: tuple[tuple[int, int], ...] = ()
    grid: Grid | None = None
    rank: int | None = None
    rank_is_least: bool = False
    branch_rank: int = 0
    dead_rows: int | None = None
    dead_columns: int | None = None
    not_finite: int = 0
    problems: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for each weight."""
        return 8 * self.nbytes / max(1, self.shape[0] * self.shape[1])

    @property
    def groups(self) -> int:
        """The number of groups of the pattern."""
        return 0 if self.pattern is None else self.shape[0] * self.shape[1] // self.pattern[1]

    @property
    def low_rank(self) -> bool:
        """True if the rank is known to be less than the shape allows."""
        return self.rank is not None and not self.rank_is_least and 0 < self.rank < min(self.shape)

    @property
    def is_dense(self) -> bool:
        """True if nothing was done to the layer that can be seen: no grid, pattern, zeros or low rank."""
        plain = self.grid is None and self.pattern is None and not self.low_rank and self.format == "dense"
        return plain and self.sparsity is not None and self.sparsity < 0.05

    def to_json(self) -> dict[str, Any]:
        """Return the layer as data."""
        own = dict(vars(self))
        own |= {"shape": list(self.shape), "grid": self.grid and self.grid.to_json(), "problems": list(self.problems)}
        own["pattern"] = None if self.pattern is None else "{}:{}".format(*self.pattern)
        own["first_broken"] = [list(at) for at in self.first_broken]
        return own | {"bits_per_weight": self.bits_per_weight, "dense": self.is_dense, "groups": self.groups}


@dataclass
class _Pattern:
    """Count the groups of one N:M pattern."""

    n: int
    m: int
    groups: int = 0
    broken: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)

    def add(self, start: int, counts: Array) -> None:
        over = counts > self.n
        self.groups += counts.size
        here = int(np.count_nonzero(over))
        self.broken += here
        if here and len(self.first) < NAMED:
            rows, groups = np.nonzero(over)
            left = NAMED - len(self.first)
            self.first += [
                (start + int(row), int(group) * self.m) for row, group in zip(rows[:left], groups[:left], strict=True)
            ]

    @property
    def share(self) -> float:
        return 1 - self.broken / max(1, self.groups)

    def intended(self, density: float) -> bool:
        """Return True if more groups meet the pattern than halfway between chance and all."""
        chance = sum(comb(self.m, k) * density**k * (1 - density) ** (self.m - k) for k in range(self.n + 1))
        return self.groups > 0 and density < 1 and self.share >= (1 + chance) / 2


class _Levels:
    """Gather the least and largest levels of groups."""

    def __init__(self, bits: int) -> None:
        self.half = 1 << (bits - 1)
        self.low = self.high = 0
        self.groups = self.lowest = 0

    def add(self, low: Array, high: Array) -> None:
        if len(low):
            self.low, self.high = min(self.low, int(low.min())), max(self.high, int(high.max()))
            self.groups += len(low)
            self.lowest += int(((low <= -self.half) | (high >= self.half)).sum())

    def kind(self) -> str:
        if self.high >= self.half:
            return "signed"
        return "full levels" if self.low <= -self.half else "narrow"

    @property
    def share(self) -> float:
        return self.lowest / max(1, self.groups)


class _OnGrid:
    """Check the groups of a layer of floats against the grid that a sample of rows lies on."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.tops = self._tops()
        self.levels = _Levels(found.kind.bits)
        self.exact, self.groups, self.off, self.weights_off = True, 0, 0, 0
        self.first: list[tuple[int, int]] = []

    def _tops(self) -> tuple[int, ...]:
        """Return all levels of largest weights, those of the sample first."""
        known = self.found.tops
        return (*known, *(top for top in reversed(self.found.kind.tops()) if top not in known))

    def _fit(self, groups: Array) -> Fit:
        """Return the fit of groups. A grid that looked symmetric in the sample may turn out to have zero points."""
        found = self.found
        fit = fitted(groups, found.kind, found.dtype, self.tops)
        wider = Kind("zero point", found.kind.bits)
        if found.kind.name == "integers" and wider in kinds(found.dtype) and not fit.fits.all():
            rest = fitted(groups[~fit.fits], wider, found.dtype)
            if rest.fits.mean() > 0.5 and rest.evidence[rest.fits].max() > EVIDENCE:
                self.found = replace(found, kind=wider)
                self.tops = self._tops()
                return fitted(groups, wider, found.dtype, self.tops)
        return fit

    def add(self, block: Block) -> None:
        width = block.values.shape[1]
        groups = block.values.astype(np.float64).reshape(-1, self.found.group)
        fit = self._fit(groups)
        found = self.found
        self.groups += len(groups)
        self.levels.add(fit.low[fit.fits], fit.high[fit.fits])
        self.exact &= bool(fit.exact[fit.fits].all())
        for index in np.flatnonzero(~fit.fits):
            self.off += 1
            if self.off > SEARCHED:
                continue
            at = np.flatnonzero(misfits(groups[index], found))
            self.weights_off += len(at)
            start = int(index) * found.group
            for place in at[: NAMED - len(self.first)]:
                row, column = divmod(start + int(place), width)
                self.first.append((block.start + row, column))

    def grid(self) -> Grid:
        kind, levels = self.found.kind, self.levels
        name = levels.kind() if kind.name == "integers" else kind.name
        ends = None if kind.name in ("FP4", "NF4") else (levels.low, levels.high)
        share = levels.share if kind.name == "integers" else None
        return Grid(
            name,
            kind.bits,
            self.found.group,
            ends,
            share,
            self.exact,
            None if self.exact else self.found.dtype,
            self.groups,
            self.off,
            self.weights_off,
            tuple(self.first),
        )


class _AsStored:
    """Gather the levels of a layer that is stored on a grid."""

    def __init__(self, layer: Layer) -> None:
        assert layer.grid is not None
        self.grid_of, self.shape = layer.grid, layer.shape
        self.levels: _Levels | None = None

    def add(self, block: Block) -> None:
        if block.levels is None:
            return
        if self.levels is None:
            self.levels = _Levels(self.grid_of.bits)
        group = self.grid_of.group or self.shape[1]
        found = block.levels.reshape(-1, group)
        self.levels.add(found.min(axis=1), found.max(axis=1))

    def grid(self) -> Grid:
        own, levels = self.grid_of, self.levels
        name = own.kind
        if name == "integers":
            name = "levels not read" if levels is None else levels.kind()
        share = levels.share if levels is not None and own.kind == "integers" else None
        ends = None if levels is None else (levels.low, levels.high)
        groups = self.shape[0] * self.shape[1] // (own.group or self.shape[1])
        return Grid(name, own.bits, own.group, ends, share, True, None, groups, stored=True)


def measured(layer: Layer, pattern: tuple[int, int] | None = None, rank: int | None = None) -> Measured:
    """Measure a layer.

    Args:
        layer: the layer.
        pattern: an N:M pattern that it is expected to have.
        rank: a rank that it is expected to have at most.
    """
    claim = layer.claim or Claim("")
    if layer.read is None:
        grid = None if layer.grid is None else _AsStored(layer).grid()
        return Measured(layer.name, layer.shape, layer.format, layer.dtype, layer.nbytes, grid=grid)
    rows, width = layer.shape
    wanted = dict.fromkeys((*([pattern] if pattern else ()), *([claim.pattern] if claim.pattern else ()), *PATTERNS))
    patterns = [_Pattern(n, m) for n, m in wanted if width % m == 0]
    sketch = RankSketch(layer.shape, layer.dtype, max(SKETCH, (rank or 0) + 8, (claim.rank or 0) + 8))
    on_grid = _grid_of(layer, claim)
    zeros = dead_rows = not_finite = 0
    alive = np.zeros(width, bool)
    for block in layer.blocks():
        finite = np.isfinite(block.values)
        if not finite.all():
            not_finite += int(finite.size - np.count_nonzero(finite))
            block = Block(block.start, np.where(finite, block.values, 0).astype(block.values.dtype), block.levels)
        used = block.values != 0
        zeros += used.size - int(np.count_nonzero(used))
        alive |= used.any(axis=0)
        dead_rows += int((~used.any(axis=1)).sum())
        for size in {each.m for each in patterns}:
            counts = used.view(np.uint8).reshape(len(used), -1, size).sum(axis=2, dtype=np.uint16)
            for each in patterns:
                if each.m == size:
                    each.add(block.start, counts)
        sketch.add(block.values.astype(np.float32, copy=False))
        if on_grid is not None:
            on_grid.add(block)
    sparsity = zeros / (rows * width)
    chosen = next((each for each in patterns if (each.n, each.m) in (pattern, claim.pattern)), None)
    chosen = chosen or next((each for each in patterns if zeros and each.intended(1 - sparsity)), None)
    found = sketch.rank()
    result = Measured(
        layer.name,
        layer.shape,
        layer.format,
        layer.dtype,
        layer.nbytes,
        sparsity,
        {f"{each.n}:{each.m}": each.share for each in patterns},
        None if chosen is None else (chosen.n, chosen.m),
        0 if chosen is None else chosen.broken,
        () if chosen is None else tuple(chosen.first),
        None if on_grid is None else on_grid.grid(),
        found,
        found == sketch.most < min(layer.shape),
        layer.branch_rank,
        dead_rows,
        int((~alive).sum()),
        not_finite,
    )
    return _against(result, claim)


def _grid_of(layer: Layer, claim: Claim) -> _OnGrid | _AsStored | None:
    if layer.grid is not None:
        return _AsStored(layer)
    if layer.dtype is None or layer.dtype == "F64":
        return None
    assert layer.read is not None
    count = min(SAMPLED, layer.shape[0])
    picked = [int(row) for row in np.linspace(0, layer.shape[0] - 1, count)]
    rows = np.concatenate([layer.read(row, row + 1).values for row in picked]).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return None
    group = claim.group if claim.group and claim.group > 0 else layer.shape[1]
    found = guessed(rows, _rounded_to(rows, layer.dtype), [group])
    return None if found is None else _OnGrid(found)


def _rounded_to(rows: Array, dtype: str) -> str:
    """Return the dtype that weights have been rounded to: bfloat16 or float16 if all of them are, in float32."""
    if dtype != "F32":
        return dtype
    bits = rows.astype(np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        return "F16" if bool((rows.astype(np.float16) == rows).all()) else dtype


def _against(found: Measured, claim: Claim) -> Measured:
    """Return the same with what the claim gets wrong."""
    problems, grid = [], found.grid
    if claim.bits is not None and found.sparsity != 1:
        if grid is None:
            problems.append(f"{claim.source} claims {claim.bits} bits, and the weights lie on no grid that was found")
        elif claim.bits < grid.bits:
            problems.append(f"{claim.source} claims {claim.bits} bits, and the grid has {grid.bits}")
        elif grid.off:
            problems.append(f"{claim.source} claims {claim.bits} bits, and {grid.off} groups are off the grid")
    if claim.group is not None and grid is not None and grid.group:
        size = found.shape[1] if claim.group < 1 else claim.group
        if grid.group != size if grid.stored else grid.group % size:
            problems.append(f"{claim.source} claims groups of {size}, and they have {grid.group} weights")
    if claim.pattern is not None and found.pattern == claim.pattern and found.broken:
        text = "{}:{}".format(*claim.pattern)
        problems.append(f"{claim.source} claims {text}, and {found.broken} of {found.groups} groups are not")
    least = found.branch_rank if found.format == "LoRA" else found.rank
    if claim.rank is not None and least is not None and least > claim.rank:
        problems.append(f"{claim.source} claims rank {claim.rank}, and it is {least}")
    return Measured(**{**vars(found), "problems": tuple(problems)})


def broken_groups(layer: Layer, pattern: tuple[int, int]) -> Iterator[tuple[int, Array]]:
    """Yield the first row and the flags (rows x groups) of the groups that do not meet the pattern, block by block."""
    n, m = pattern
    for block in layer.blocks():
        used = (block.values != 0).reshape(len(block.values), -1, m)
        yield block.start, used.sum(axis=2) > n
