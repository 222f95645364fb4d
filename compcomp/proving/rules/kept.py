"""Prove that an invariant (mask, n:m pattern, shape, grid, rank) holds at the end: every later step keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import pairwise

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Keeps, Scope
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import CodebookMap, RangeMap, ScaledMap, Selection, Step
from compcomp.language.technique import Technique, unknowns
from compcomp.layers.state import Format
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.reasons import failing
from compcomp.proving.rules.facts import MapFacts, has_zero, keeps_zero, lies_on_grid
from compcomp.proving.sample import formats_along
from compcomp.proving.session import Session

# Rule (kept). Let the run of S establish the invariant, for the last time after step k. If every step after
# k keeps it, it holds at the end of S. (For the mask: every step after the first mask keeps all masks so
# far, as each accumulates into the next. So it is for removed rows and columns.) A step keeps the
#   mask   if it is a selection (a weight is left alone or set to zero), or a map with q(0) = 0 (of a range map: in
#          every group that holds a 0, as the group of a dropped weight does);
#   n:m    if it keeps zeros, under the same conditions: then no group gains a weight that is not zero. A selection that
#          drops c of every s consecutive weights establishes that at most n of m are left, for s | m where
#          (m / s) (s - c) <= n, and for m | s where s - c <= n;
#   shape  if it keeps zeros: no step touches the low-rank term;
#   grid   if it is a selection and zero is on the grid (always on k * step, on step * c where 0 is a code, asked of a
#          range map); a map sets up a grid of its own, and its values lie on it (as a scaled map maps each to itself;
#          asked of a range map);
#   rank   never: dropping or rounding weights of a matrix may raise its rank.
# A technique without steps keeps what it declares to keep: then that contract is an assumption of the verdict. For a
# grid of which zero is no value that contract speaks of kept weights only, and counts where there is no mask. That what
# such a technique sets up holds after it (Declared, "fits") is an assumption as well.
#
# Rule (patterns in masks). At most n of every m consecutive entries of a mask are true where a step sets up the pattern
# n:m (or it is the contract of the technique that does). If all masks are kept, so is the pattern.
#
# Rule (cuts in masks). A mask drops the weights of all rows and columns removed so far (the contract of the technique
# that removes them, and later masks drop no less). If all masks are kept, and no technique after the first removal
# touches the low-rank term (as no step does, and a technique that keeps "factors"), the shape is kept.
#
# Rule (zeros). A technique without steps that declares to keep zeros of weights keeps what masks drop, whatever became
# of the masks; from then on the mask may drop less than was dropped, and contracts about it say nothing.
#
# Rule (rows). Let the first mask and cut be those of a technique that declares to remove rows alone: what they drop and
# remove is rows then, of zeros in the weight and in the low-rank term. If every later technique keeps such rows (steps
# that keep zeros do, as they touch no low-rank term; others declare it), they are zero at the end. What the last of
# them drops or removes itself is zero after it by its contract; before it no other may drop or remove anything. And the
# same of columns.
#
# Rule (restored). Let T be a technique of S that declares to restore the mask: whatever the weights were, all that the
# mask M it finds drops is zero after it, and the mask it leaves drops this as well. Let every technique between the
# first mask and T accumulate, that is, the mask after it drops all that the mask before it drops, whatever the weights:
# a step does (a selection adds to the mask, a map leaves it alone); of others it is part of their contract that they
# keep, or restore, the mask. Then all masks up to T lie in M, so all that they drop is zero after T, and it is as if T
# had established the mask: if every technique after T keeps it, it holds at the end of S. Where the mask was broken
# between is of no interest.


@rule("kept", Keeps, needs="every technique after the one that establishes or restores the invariant keeps it")
def invariant_is_kept(claim: Keeps, session: Session) -> Proof | Refusal:
    """Prove that every technique after the one that establishes or restores the invariant keeps it."""
    formats = formats_along(claim, Scope("any"))
    if formats is None:
        return Refusal("there is no small layer on which the techniques show their formats")
    if all(form.get(claim.invariant) is None for form in formats):
        return Refusal(f"no technique establishes a {claim.invariant}")
    run = Run(claim.left.techniques, formats, session)
    contracts = _KEPT[claim.invariant](run)
    if isinstance(contracts, Refusal):
        return contracts
    return Proof("kept", "any shape", (EXACT, *dict.fromkeys(contracts)), tuple(session.queries))


Contracts = list[Assumption]
"""The contracts that a proof that something is kept depends on. Functions return a Refusal if there is no proof."""


@dataclass(frozen=True)
class Run:
    """A sequence with its formats, from before the first technique to after the last."""

    techniques: Items[Technique]
    formats: Items[Format]
    session: Session

    @property
    def undecided(self) -> bool:
        """Return True if a parameter is open.

        The numbers in the formats are then those of one value of it only.
        """
        return any(unknowns(technique) for technique in self.techniques)

    def after(self, first: int) -> Iterator[tuple[Technique, Format, Format]]:
        """Yield each technique from position ``first`` on, with the formats before and after it."""
        around = zip(self.techniques, pairwise(self.formats), strict=True)
        yield from [(technique, before, after) for technique, (before, after) in around][first:]

    def first(self, invariant: str) -> int:
        """Return the position of the technique that sets up the invariant first."""
        return next(k for k, form in enumerate(self.formats) if form.get(invariant) is not None) - 1

    def zeros_stay(self, steps: Items[Step]) -> bool:
        """Return True if a weight that is zero is proved to stay zero through all of these steps."""
        return all(_keeps_zeros(step, self.session) for step in steps)

    def moves_zeros(self, technique: Technique) -> Refusal:
        """Refuse because the steps of a technique are not proved to leave zeros alone."""
        return failing(f"{technique} is not proved to send 0 to 0", self.session, Reached.FACT)


def _unpromised(technique: Technique, what: str) -> Refusal:
    """Refuse because a technique without steps does not promise to keep something."""
    return Refusal(f"{technique} does not promise to keep {what}", reached=Reached.FACT)


def _keeps_zeros(step: Step, session: Session) -> bool:
    if isinstance(step, RangeMap):
        return keeps_zero(step, session)
    if isinstance(step, ScaledMap):
        return MapFacts(step, session).zero
    return isinstance(step, Selection)


# --------------------------------------------------------------------------------------------- masks


def _mask_kept(run: Run) -> Contracts | Refusal:
    return dropped_stay(run, run.first("mask"))


def dropped_stay(run: Run, first: int) -> Contracts | Refusal:
    """Prove that every weight pruned at position ``first`` is zero at the end.

    If this is the first technique with a mask, prove the same for every weight pruned at any later position.

    Returns:
        The contracts used, or a Refusal that says which technique breaks it.
    """
    contracts: Contracts = []
    source, later = run.techniques[first], run.techniques[first + 1 :]
    restores = [k for k, t in enumerate(later) if "mask" in t.promises().restores]
    if restores:
        for technique in later[: restores[-1]]:
            if not technique.steps():
                promises = technique.promises()
                if "mask" not in promises.keeps | promises.restores:
                    return _unpromised(technique, "the mask, before it is restored")
                contracts.append(contract(technique, "never loosens the mask"))
        contracts.append(contract(later[restores[-1]], "restores the mask"))
        later = later[restores[-1] + 1 :]
    elif not source.steps():
        contracts.append(contract(source, "establishes the mask"))
    elif not run.zeros_stay(_after_selecting(source.steps())):
        return run.moves_zeros(source)
    # True if the mask that a technique finds drops all that was dropped, and all that it drops is zero.
    whole = bool(restores) or run.formats[first].mask is None
    for technique, before, after in run.after(len(run.techniques) - len(later)):
        promised, adds = technique.promises(), after.mask is not before.mask
        if technique.steps():
            if not run.zeros_stay(technique.steps()):
                return run.moves_zeros(technique)
        elif whole and "mask" in promised.keeps:
            contracts.append(contract(technique, "keeps the mask" + (", and what it adds" if adds else "")))
        elif "weights" in promised.zeros:
            whole = whole and not adds
            contracts.append(contract(technique, "keeps zeros"))
        else:
            return _unpromised(technique, "the mask")
    return contracts


def zeros_stay(run: Run, first: int) -> Contracts | Refusal:
    """Prove that every weight that is zero before position ``first`` is zero at the end."""
    contracts: Contracts = []
    for technique in run.techniques[first:]:
        if technique.steps():
            if not run.zeros_stay(technique.steps()):
                return run.moves_zeros(technique)
        elif "weights" in technique.promises().zeros:
            contracts.append(contract(technique, "keeps zeros"))
        else:
            return _unpromised(technique, "zeros")
    return contracts


def _lines_kept(run: Run, invariant: str) -> Contracts | Refusal:
    """Prove that only rows, or only columns, were dropped or removed, and that such zeros stay.

    By its contract, the last technique leaves zeros at all that it drops itself.
    """
    first = run.first(invariant)
    source, form = run.techniques[first], run.formats[first + 1]
    promised = source.promises()
    if source.steps() or promised.removes_rows == promised.removes_columns or run.formats[first].mask is not None:
        return Refusal(f"{source}, which sets up the {invariant} first, does not remove rows alone or columns alone")
    lines = "rows" if promised.removes_rows else "columns"
    contracts = [contract(source, f"removes {lines} alone")]
    for technique, before, _ in run.after(first + 1):
        # Nothing but these rows has been dropped before this technique.
        if (before.mask is not None and before.mask is not form.mask) or (
            before.cut is not None and before.cut is not form.cut
        ):
            return Refusal(f"something else is dropped or removed between {source} and {technique}")
        if technique.steps():
            if not run.zeros_stay(technique.steps()):
                return run.moves_zeros(technique)
        elif lines in technique.promises().zeros:
            contracts.append(contract(technique, f"keeps {lines} of zeros"))
        else:
            return _unpromised(technique, f"{lines} of zeros")
    return contracts


def _after_selecting(steps: Items[Step]) -> Items[Step]:
    """Return the steps after the first selection, which sets up the mask."""
    return steps[next((k + 1 for k, step in enumerate(steps) if isinstance(step, Selection)), 0) :]


# ------------------------------------------------------------------------------------------ patterns


def _pattern_kept(run: Run) -> Contracts | Refusal:
    contracts = _patterns_in_masks(run)
    if not isinstance(contracts, Refusal) or run.undecided:
        return contracts
    tightest: dict[int, int] = {}
    for form in run.formats:
        for n, m in form.pattern or ():
            tightest[m] = min(n, tightest.get(m, n))
    found: Contracts = []
    for m, n in tightest.items():
        each = one_pattern(run, n, m)
        if isinstance(each, Refusal):
            return each
        found += each
    return found


def _patterns_in_masks(run: Run) -> Contracts | Refusal:
    """Prove that all masks are kept, and that each pattern is the pattern of a mask."""
    if any(form.pattern is not None and form.mask is None for form in run.formats):
        return Refusal("a pattern is set up without a mask")
    contracts = _mask_kept(run)
    if isinstance(contracts, Refusal):
        return contracts
    for technique, before, after in run.after(0):
        if not technique.steps() and set(after.pattern or ()) - set(before.pattern or ()):
            contracts.append(contract(technique, "gives its mask the n:m pattern that it sets up"))
    return contracts


def one_pattern(run: Run, n: int, m: int) -> Contracts | Refusal:
    """Prove that at most ``n`` of every ``m`` weights are not zero at the end.

    The run must leave no parameter open.
    """
    holds: Contracts | Refusal = [] if n >= m else Refusal(f"no technique establishes the pattern {n}:{m}")
    for technique, before, after in run.after(0):
        known, new = ({size: kept for kept, size in form.pattern or ()} for form in (before, after))
        if technique.steps():
            for step in technique.steps():
                if isinstance(step, Selection) and _establishes(step, n, m):
                    holds = []
                elif not isinstance(holds, Refusal) and not _keeps_zeros(step, run.session):
                    holds = run.moves_zeros(technique)
        elif not isinstance(holds, Refusal) and "weights" in technique.promises().zeros:
            holds = [*holds, contract(technique, "keeps zeros")]
        elif not isinstance(holds, Refusal) and known.get(m) == n and "n:m" in technique.promises().keeps:
            holds = [*holds, contract(technique, "keeps the n:m pattern")]
        elif new.get(m) == n and known.get(m, m) > n:
            holds = [contract(technique, "establishes the n:m pattern")]
        elif not isinstance(holds, Refusal):
            holds = _unpromised(technique, f"the pattern {n}:{m}")
    return holds


def _establishes(selection: Selection, n: int, m: int) -> bool:
    """Return True if at most ``n`` of every ``m`` weights are left after the selection, whatever they were."""
    size = selection.partition.size
    if size is None:
        return False
    return leaves_at_most(size - selection.count(size), size, n, m)


def leaves_at_most(left: int, size: int, n: int, m: int) -> bool:
    """Return True if at most ``n`` of every ``m`` weights of a row are left when ``left`` of every ``size`` are."""
    return (m % size == 0 and m // size * left <= n) or (size % m == 0 and left <= n)


# ---------------------------------------------------------------------------- removed rows and columns


def _shape_kept(run: Run) -> Contracts | Refusal:
    first = run.first("shape")
    contracts = [contract(run.techniques[first], "establishes the shape")]
    for technique, before, after in run.after(first + 1):
        if technique.steps() and run.zeros_stay(technique.steps()):
            continue
        if technique.steps() or before.cut is None or "shape" not in technique.promises().keeps:
            return _cuts_in_masks(run, first)
        adds = after.cut is not before.cut
        contracts.append(contract(technique, "keeps the shape" + (", and what it adds" if adds else "")))
    return contracts


def _cuts_in_masks(run: Run, first: int) -> Contracts | Refusal:
    """Prove that all masks are kept and drop what is removed, and that the low-rank term is left alone."""
    if any(form.cut is not None and form.mask is None for form in run.formats):
        return Refusal("rows or columns are removed without a mask")
    contracts = _mask_kept(run)
    if isinstance(contracts, Refusal):
        return contracts
    for k, (technique, before, after) in enumerate(run.after(first), start=first):
        cuts = k == first or (not technique.steps() and after.cut is not None and after.cut is not before.cut)
        if cuts:
            contracts.append(contract(technique, "establishes the shape"))
            contracts.append(contract(technique, "gives its mask the shape that it sets up"))
        if k > first and not technique.steps():
            if "factors" not in technique.promises().keeps:
                return _unpromised(technique, "the low-rank term as it is")
            contracts.append(contract(technique, "leaves the low-rank term alone"))
    return contracts


# --------------------------------------------------------------------------------------------- grids


def grid_kept(run: Run) -> Contracts | Refusal:
    holds: Contracts | Refusal = Refusal("no technique sets up a grid")
    zero = False
    for technique, before, after in run.after(0):
        if technique.steps():
            for step in technique.steps():
                if isinstance(step, Selection):
                    if not zero and not isinstance(holds, Refusal):
                        holds = Refusal(f"{technique} sets weights to 0, which is on no grid", reached=Reached.FACT)
                else:
                    zero = _zero_on_its_grid(step, run.session)
                    holds = []
                    if not _lies_on_its_grid(step, run.session):
                        holds = failing(
                            f"{technique} is not proved to leave values of its grid", run.session, Reached.FACT
                        )
            continue
        if before.grid is not None and "grid" in technique.promises().keeps:
            if not isinstance(holds, Refusal):
                promise = contract(technique, "keeps the grid")
                holds = [*holds, promise] if zero or after.mask is None else _off_grid(technique)
        elif after.grid is not None and after.grid is not before.grid:
            zero = after.grid.zero
            holds = [contract(technique, "sets up a grid that its weights lie on")]
            if zero:
                holds.append(contract(technique, "has zero on its grid"))
            elif after.mask is not None:
                holds = _off_grid(technique)
        elif not isinstance(holds, Refusal):
            holds = _unpromised(technique, "the grid")
    return holds


def _off_grid(technique: Technique) -> Refusal:
    reason = f"weights that the mask drops are 0, which is on no grid that {technique} promises"
    return Refusal(reason, reached=Reached.FACT)


def _lies_on_its_grid(step: Step, session: Session) -> bool:
    """Return True if every value of the map is on its grid: the map is proved to leave its own values alone.

    For a range map, a query asks this directly.
    """
    if isinstance(step, RangeMap):
        return lies_on_grid(step, session)
    return isinstance(step, ScaledMap) and MapFacts(step, session).idempotent


def _zero_on_its_grid(step: Step, session: Session) -> bool:
    if isinstance(step, CodebookMap):
        return 0 in step.codes
    return isinstance(step, ScaledMap) or (isinstance(step, RangeMap) and has_zero(step, session))


# --------------------------------------------------------------------------------------------- ranks


def rank_kept(run: Run) -> Contracts | Refusal:
    """Prove that the rank recorded at the end holds.

    Formats record a rank from some technique on to the end. Each technique from there on must leave it true.
    """
    if run.formats[-1].rank is None:
        known = max((k for k, form in enumerate(run.formats) if form.rank is not None), default=None)
        if known is None:
            return Refusal("no technique establishes a rank")
        return Refusal(f"{run.techniques[known]} leaves weights of a rank that is not known", reached=Reached.FACT)
    first = max(k for k, form in enumerate(run.formats) if form.rank is None)
    for technique in run.techniques[first:]:
        if technique.steps():
            return Refusal(f"{technique} drops or rounds weights, which may raise the rank", reached=Reached.FACT)
    contracts = [contract(run.techniques[first], "establishes the rank")]
    for technique in run.techniques[first + 1 :]:
        does = "keeps the rank" if "rank" in technique.promises().keeps else "leaves a weight of the rank it says"
        contracts.append(contract(technique, does))
    return contracts


def _first_of(found: Contracts | Refusal, other: Callable[[], Contracts | Refusal]) -> Contracts | Refusal:
    """Return the contracts found, or else the other ones. Of two refusals, return the one that reached further."""
    if not isinstance(found, Refusal):
        return found
    second = other()
    return found if isinstance(second, Refusal) and second.reached <= found.reached else second


_KEPT: dict[str, Callable[[Run], Contracts | Refusal]] = {
    "mask": lambda run: _first_of(_mask_kept(run), lambda: _lines_kept(run, "mask")),
    "n:m": _pattern_kept,
    "shape": lambda run: _first_of(_shape_kept(run), lambda: _lines_kept(run, "shape")),
    "grid": grid_kept,
    "rank": rank_kept,
}
