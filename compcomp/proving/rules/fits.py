"""Formats that a sequence ends in on every layer: any shape, word by word of a scheme."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from fractions import Fraction

from compcomp.language.claim import Claim, Scope
from compcomp.language.layer import Format
from compcomp.language.parameters import Unknown
from compcomp.language.partition import Partition
from compcomp.language.scheme import Scheme
from compcomp.language.size import DENSE, value_bits
from compcomp.language.steps import GridMap, RangeMap, Selection
from compcomp.language.technique import Technique, unknowns
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.rules.kept import grid_kept, others_kept
from compcomp.proving.sample import formats_along
from compcomp.proving.session import Session
from compcomp.proving.solver import Solver

# Rule (fits). A sequence S fits a scheme if it does what each of its words asks for.
#
# Formats. Which fields of a format are set depends on the techniques alone, and so do the numbers in it (levels,
# patterns, ranks): of a step they are parameters of it, of another technique it is part of its contract, unless it
# declares `format_varies`. So one run on a small layer shows them; it shows nothing of a sequence with open parameters
# but which fields are set, and nothing at all where a technique declares `format_varies`.
#
# W b      Let T be the last technique that sets up a grid, of at most 2^b values, and let that grid be kept to the end
#          (rule kept): every weight is one of its values. Where T is no map, that its weights lie on the grid it sets
#          up is part of its contract; a later technique of steps then keeps it if all are selections and 0 is a value
#          in every group, any other one if it declares so (of a grid without 0 only where there is no mask).
# zeros    Let technique T of S hold a selection: in every group of its partition R at least int(|R| s) weights are
#          zero after it, s its share. If every later step keeps zeros, and every later technique of no steps keeps the
#          mask or is followed by one that restores it (rules kept and restored, with T for the first technique that
#          sets up a mask, and of its mask only what it drops itself), they are zero at the end. A technique of no steps
#          that sets up an n:m pattern of its own leaves in every group of m at least m - n zeros (its contract).
#   n:m    follows from zeros in blocks of k that leave at most c of k: if k divides m and c m / k <= n, as the
#          blocks tile every group of m; or if m divides k and c <= n, as every group of m lies inside a block.
#   s in P follows from zeros in R = P with a share of at least s, as int(|P| s) grows with s; or if R refines P, in
#          blocks of k of which int(k s') >= k s are zero: |P| is a multiple of k, so at least |P| s are zero in P.
# r k      Let the format at the end say that the rank is at most k, and let the rank be kept since the first technique
#          of those after which it says some rank all along.
# + r k    The low-rank term has as many factor columns as the format at the end says. Where the format has none there
#          is none.
# A b      Let the last technique that changes the inputs declare `input_bits` of at most b; all later ones leave the
#          inputs alone.


def fits_scheme(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """Every word of the scheme is proved on its own."""
    if claim.kind != "fits" or claim.scheme is None:
        return None
    techniques = claim.left.techniques
    formats = formats_along(claim, Scope("any"))
    if formats is None or any(t.promises().format_varies for t in techniques):
        return None
    session = Session(solver, time.monotonic() + deadline)
    run = _Run(techniques, formats, any(unknowns(t) for t in techniques), session)
    contracts: list[str] = []
    for word in (_grid, _pattern, _sparsity, _rank, _beside, _inputs):
        found = word(claim.scheme, run)
        if found is None:
            return None
        contracts += found
    return Proof("fits", "any shape", (EXACT, *dict.fromkeys(contracts)), tuple(session.queries))


@dataclass
class _Run:
    """A sequence and the formats along it. ``open``: some parameter is Any, so numbers in them are examples."""

    techniques: Items[Technique]
    formats: Items[Format]
    open: bool
    session: Session

    @property
    def end(self) -> Format:
        return self.formats[-1]

    def numbers(self) -> list[str]:
        """The contracts on which the numbers in the formats rest."""
        others = (t for t in self.techniques if not t.steps())
        return [f"the format that {t} leaves does not depend on the weights (its contract)" for t in others]

    def zeros(self) -> Iterator[tuple[Partition, Fraction, list[str]]]:
        """Groups, the share of each that is zero at the end at the least, and the contracts on which that rests."""
        for k, technique in enumerate(self.techniques):
            found = list(self._dropped(k, technique))
            contracts = others_kept(self.techniques, k + 1, "mask", self.session) if found else None
            if contracts is not None:
                yield from ((partition, share, [*contracts, *more]) for partition, share, more in found)

    def _dropped(self, k: int, technique: Technique) -> Iterator[tuple[Partition, Fraction, list[str]]]:
        for step in technique.steps():
            if isinstance(step, Selection) and isinstance(step.share, Fraction):
                yield step.partition, step.share, []
        if technique.steps() or self.open or self.formats[k + 1].mask is None:
            return
        for n, m in set(self.formats[k + 1].pattern or ()) - set(self.formats[k].pattern or ()):
            contract = f"{technique} leaves at most {n} of every {m} consecutive weights of a row (its contract)"
            yield Partition.blocks(m), Fraction(m - n, m), [contract, *self.numbers()]


def _grid(scheme: Scheme, run: _Run) -> list[str] | None:
    if scheme.weights == DENSE:
        return []
    grids = [form.grid for form in run.formats]
    sets = [k for k in range(len(run.techniques)) if grids[k + 1] is not None and grids[k + 1] is not grids[k]]
    grid = grids[-1]
    if grid is None or not sets or value_bits(grid) > scheme.weights:
        return None
    source = run.techniques[sets[-1]]
    if source.steps():
        last = source.steps()[-1]
        known = isinstance(last, GridMap | RangeMap) and not isinstance(last.levels, Unknown)
        return grid_kept(run.techniques, run.formats, run.session) if known else None
    if run.open:
        return None
    contracts = [f"{source} leaves every weight on the grid it sets up (its contract)", *run.numbers()]
    for k in range(sets[-1], len(run.techniques)):
        technique = run.techniques[k]
        if not grid.zero and run.formats[k + 1].mask is not None:
            return None
        if k == sets[-1]:
            continue
        if technique.steps():
            if not grid.zero or not all(isinstance(step, Selection) for step in technique.steps()):
                return None
        elif "grid" in technique.promises().keeps:
            contracts.append(f"{technique} keeps the grid (its contract)")
        else:
            return None
    return contracts


def _pattern(scheme: Scheme, run: _Run) -> list[str] | None:
    if scheme.pattern is None:
        return []
    n, m = scheme.pattern
    if n == m:
        return []
    for partition, share, contracts in run.zeros():
        if (size := partition.size) is None:
            continue
        left = size - int(size * share)
        if (m % size == 0 and left * (m // size) <= n) or (size % m == 0 and left <= n):
            return contracts
    return None


def _sparsity(scheme: Scheme, run: _Run) -> list[str] | None:
    if not scheme.sparsity:
        return []
    for partition, share, contracts in run.zeros():
        if partition == scheme.share_of and share >= scheme.sparsity:
            return contracts
        size = partition.size
        if size is not None and partition.refines(scheme.share_of) and int(size * share) >= size * scheme.sparsity:
            return contracts
    return None


def _rank(scheme: Scheme, run: _Run) -> list[str] | None:
    if scheme.rank is None:
        return []
    if run.open or run.end.rank is None or run.end.rank > scheme.rank:
        return None
    since = len(run.techniques)
    while run.formats[since - 1].rank is not None:
        since -= 1
    contracts = others_kept(run.techniques, since, "rank", run.session)
    return None if contracts is None else [*contracts, *run.numbers()]


def _beside(scheme: Scheme, run: _Run) -> list[str] | None:
    factors = run.end.factors
    if factors is None:
        return []
    return None if run.open or factors.rank > scheme.beside else run.numbers()


def _inputs(scheme: Scheme, run: _Run) -> list[str] | None:
    if scheme.inputs == DENSE:
        return []
    changing = [t for t in run.techniques if t.promises().changes_inputs]
    bits = changing[-1].promises().input_bits if changing else None
    if bits is None or bits > scheme.inputs:
        return None
    return [f"{changing[-1]} leaves the inputs of every token on a grid of {bits} bits (its contract)"]
