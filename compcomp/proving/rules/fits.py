"""Prove the format that a sequence ends in on every layer: any shape, part by part of a scheme."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from math import lcm

from compcomp.language.assumption import contract
from compcomp.language.claim import Fits, Scope
from compcomp.language.parameters import Unknown
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.scheme import Scheme
from compcomp.language.size import DENSE, value_bits
from compcomp.language.steps import CodebookMap, Selection
from compcomp.language.technique import Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import Format
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.rules.kept import (
    Contracts,
    Run,
    dropped_stay,
    grid_kept,
    leaves_at_most,
    one_pattern,
    rank_kept,
    zeros_stay,
)
from compcomp.proving.sample import formats_along
from compcomp.proving.session import Session

# Rule (fits). A sequence S fits a scheme if it does what each of its parts requires.
#
# Formats. Which fields of a format are set depends on the techniques alone, and so do the numbers in it (levels,
# patterns, ranks): of a step they are parameters of it, of another technique it is part of its contract, unless it
# declares `format_varies`. So one run on a small layer shows them; it shows nothing of a sequence with open parameters
# but which fields are set, and nothing at all where a technique declares `format_varies`.
#
# W b      Let the grid at the end have at most 2^b values a group, and let it be kept (rule kept): every weight is one
#          of its values. With open parameters: let the last technique that has put another grid in place of the one
#          before be of steps, the last map among them of known levels or codes.
# zeros    Let technique T of S hold a selection: in every group of its partition R at least int(|R| s) weights are
#          zero after it, s its share. They are zero at the end if what T drops stays zero (rules kept, zeros and
#          restored, with T in place of the first technique that sets up a mask, and of its mask only what it drops
#          itself). A contract to keep the mask says something only where all that the mask drops is zero: where T
#          finds no mask, or since a technique has restored the mask. So far for the zeros of masks; those that T's
#          contract calls an optimum with (T of no steps), and any other zeros, stay zero if each later technique
#          keeps zeros of weights.
#   n:m    follows from zeros in blocks of k that leave at most c of k: if k divides m and c m / k <= n, as the
#          blocks tile every group of m; or if m divides k and c <= n, as every group of m lies inside a block. Or a
#          pattern n':m with n' <= n holds at the end (rule kept).
#   s in P follows from zeros in R = P with a share of at least s, as int(|P| s) grows with s; or if R refines P, in
#          blocks of k of which int(k s') >= k s are zero: |P| is a multiple of k, so at least |P| s are zero in P. The
#          blocks may be those of a pattern that holds at the end. Or they are rows, of which every n is a multiple of
#          the number u that divides the columns of all layers that the techniques fit, where u s' is whole: then
#          int(n s') = n s' >= n s.
# r k      Let the format at the end say that the rank is at most k, and let the rank be kept (rule kept).
# + r k    The low-rank term has as many factor columns as the format at the end says. Where the format has none there
#          is none.
# A b      Let the last technique that changes the inputs declare `input_bits` of at most b; all later ones leave the
#          inputs alone, and no later one changes their basis.


@rule("fits", Fits, needs="techniques that keep, one by one, what each part of the scheme asks for")
def fits_scheme(claim: Fits, session: Session) -> Proof | Refusal:
    """Prove each part of the scheme on its own."""
    techniques = claim.left.techniques
    formats = formats_along(claim, Scope("any"))
    if formats is None:
        return Refusal("there is no small layer on which the techniques show their formats")
    if varying := next((t for t in techniques if t.promises().format_varies), None):
        return Refusal(f"the format that {varying} leaves depends on the weights")
    run = Run(techniques, formats, session)
    contracts: Contracts = []
    for requirement in (_grid, _pattern, _sparsity, _rank, _low_rank_branch, _inputs):
        found = requirement(claim.scheme, run)
        if isinstance(found, Refusal):
            return found
        contracts += found
    return Proof("fits", "any shape", (EXACT, *dict.fromkeys(contracts)), tuple(session.queries))


def _end(run: Run) -> Format:
    return run.formats[-1]


def _numbers(run: Run) -> Contracts:
    """Return the contracts that the numbers in the formats depend on."""
    others = (t for t in run.techniques if not t.steps())
    return [contract(t, "leaves a format that does not depend on the weights") for t in others]


def _grid(scheme: Scheme, run: Run) -> Contracts | Refusal:
    if scheme.weights == DENSE:
        return []
    grid = _end(run).grid
    if grid is None:
        return Refusal(f"W{scheme.weights}: the sequence ends without a grid")
    if value_bits(grid) > scheme.weights:
        return Refusal(f"W{scheme.weights}: the grid at the end takes {value_bits(grid)} bits a weight")
    source = [t for t, before, after in run.after(0) if after.grid is not before.grid][-1]
    if run.undecided and not _known_values(source):
        return Refusal(f"W{scheme.weights}: how many values the grid of {source} has depends on an open parameter")
    contracts = grid_kept(run)
    return contracts if isinstance(contracts, Refusal) else [*contracts, *([] if source.steps() else _numbers(run))]


def _known_values(technique: Technique) -> bool:
    """Return True if it is made of steps, and the size of its grid does not depend on an open parameter."""
    maps = [step for step in technique.steps() if not isinstance(step, Selection)]
    return bool(maps) and (isinstance(maps[-1], CodebookMap) or not isinstance(maps[-1].levels, Unknown))


Zeros = tuple[Partition, Fraction, Contracts]
"""Groups, the least share of each that is zero at the end, and the contracts that this depends on."""


def zeros_at_end(run: Run) -> Iterator[Zeros]:
    for k, technique in enumerate(run.techniques):
        steps = [step for step in technique.steps() if isinstance(step, Selection)]
        shares = [(step.partition, step.share) for step in steps if isinstance(step.share, Fraction)]
        contracts = dropped_stay(run, k) if shares else Refusal("nothing is dropped")
        if not isinstance(contracts, Refusal):
            yield from ((partition, share, contracts) for partition, share in shares)
        optimum = technique.promises().optimum
        if optimum is not None and isinstance(optimum.share, Fraction):
            contracts = zeros_stay(run, k + 1)
            if not isinstance(contracts, Refusal):
                zeros = contract(technique, "leaves as many zeros as its optimum has")
                yield optimum.partition, optimum.share, [zeros, *contracts]
    if run.undecided:
        return
    for n, m in dict.fromkeys(pattern for form in run.formats for pattern in form.pattern or ()):
        contracts = one_pattern(run, n, m)
        if not isinstance(contracts, Refusal):
            yield Partition.blocks(m), Fraction(m - n, m), [*contracts, *_numbers(run)]
    # Patterns in masks that are restored, or kept with them.
    for k, (technique, before, after) in enumerate(run.after(0)):
        for n, m in set(after.pattern or ()) - set(before.pattern or ()):
            if technique.steps() or before.mask is not None or after.mask is None:
                continue
            contracts = dropped_stay(run, k)
            if not isinstance(contracts, Refusal):
                pattern = contract(technique, "gives its mask the n:m pattern that it sets up")
                yield Partition.blocks(m), Fraction(m - n, m), [pattern, *contracts, *_numbers(run)]


def _too_few(run: Run, part: str) -> Refusal:
    """Refuse because too few zeros are proved to be left.

    The reason is why zeros of the last selection do not stay.
    """
    for k in reversed(range(len(run.techniques))):
        if any(isinstance(step, Selection) for step in run.techniques[k].steps()):
            found = dropped_stay(run, k)
            if isinstance(found, Refusal):
                return replace(found, reason=f"{part}: {found.reason}")
    return Refusal(f"{part}: no technique is proved to leave that many zeros in each group")


def _pattern(scheme: Scheme, run: Run) -> Contracts | Refusal:
    if scheme.pattern is None:
        return []
    n, m = scheme.pattern
    if n == m:
        return []
    for partition, share, contracts in zeros_at_end(run):
        size = partition.size
        if size is not None and leaves_at_most(size - int(size * share), size, n, m):
            return contracts
    return _too_few(run, f"{n}:{m}")


def _sparsity(scheme: Scheme, run: Run) -> Contracts | Refusal:
    if not scheme.sparsity:
        return []
    for partition, share, contracts in zeros_at_end(run):
        if partition == scheme.share_of and share >= scheme.sparsity:
            return contracts
        size = _whole(partition, share, run)
        if size is not None and partition.refines(scheme.share_of) and int(size * share) >= size * scheme.sparsity:
            return contracts
    return _too_few(run, f"zeros in {scheme.share_of}")


def _whole(partition: Partition, share: Fraction, run: Run) -> int | None:
    """Return a number of weights that divides every group, and loses its share in each of its multiples.

    None if there is none. The techniques say which numbers divide the columns of every layer that they fit.
    """
    if partition != Partition.rows():
        return partition.size
    unit = lcm(*(technique.unit for technique in run.techniques))
    return unit if (unit * share).denominator == 1 else None


def _rank(scheme: Scheme, run: Run) -> Contracts | Refusal:
    if scheme.rank is None:
        return []
    known = _end(run).rank
    if run.undecided:
        return Refusal(f"rank {scheme.rank}: a parameter is open, and the rank may depend on it")
    if known is not None and known > scheme.rank:
        return Refusal(f"rank {scheme.rank}: the rank at the end is {known}")
    contracts = rank_kept(run)
    return contracts if isinstance(contracts, Refusal) else [*contracts, *_numbers(run)]


def _low_rank_branch(scheme: Scheme, run: Run) -> Contracts | Refusal:
    factors = _end(run).factors
    if factors is None:
        return []
    if run.undecided:
        return Refusal("a parameter is open, and the rank of the low-rank term may depend on it")
    if factors.rank > scheme.branch_rank:
        return Refusal(f"a low-rank term of rank {factors.rank} is left, more than {scheme.branch_rank}")
    return _numbers(run)


def _inputs(scheme: Scheme, run: Run) -> Contracts | Refusal:
    if scheme.inputs == DENSE:
        return []
    changing = [k for k, t in enumerate(run.techniques) if t.promises().changes_inputs]
    if not changing:
        return Refusal(f"A{scheme.inputs}: no technique quantizes the inputs")
    if later := [t for t in run.techniques[changing[-1] :] if t.promises().changes_basis]:
        return Refusal(f"A{scheme.inputs}: {later[0]} changes the basis of the inputs later")
    source = run.techniques[changing[-1]]
    bits = source.promises().input_bits
    if bits is None or bits > scheme.inputs:
        promised = "no number of bits" if bits is None else f"{bits} bits"
        return Refusal(f"A{scheme.inputs}: {source} promises {promised} for inputs", reached=Reached.FACT)
    return [contract(source, f"leaves the inputs of every token on a grid of {bits} bits")]
