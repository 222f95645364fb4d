"""Find techniques that change nothing, from the state before them and their promises about such states."""

from __future__ import annotations

from dataclasses import dataclass, field

from compcomp.errors import InputError
from compcomp.language.assumption import Assumption, contract
from compcomp.language.identity import same
from compcomp.language.samples import sets_up
from compcomp.language.steps import CodebookMap, GridMap, Selection
from compcomp.language.technique import Sequence, Technique, unknowns

# Rule (no op). Let s be the state before T in H1 >> ... >> Hk >> T >> R. T may be left out if it declares that it
# returns an equal state, with the very factors, from every state of a kind (`no_op`), and s is of that kind:
#   always       any state;
#   on a grid    s records a grid. A map sets one up; a selection leaves the format's grid alone. So does a technique
#                that declares `changes_inputs` or `leaves_weight`. One that declares to keep a grid does so where the
#                weights lie on it: after a map, or after a map with 0 on its grid and selections. Of other techniques
#                without steps one run from the dense state shows whether a grid is recorded at the end, unless one of
#                them declares `format_varies`;
#   masked       the format of s records no rank, and every weight that its mask drops is zero. There is no mask at
#                first. A mask stays true to the weights where a technique declares to keep it, or leaves the weight
#                alone. It is so again after one that declares to restore it, and after one that finds no mask, as what
#                a technique sets up holds after it. One run from the dense state shows which fields are recorded
#                where, under the same premises as for a grid;
#   without factors   s has no low-rank term. The dense state has none, and neither steps add one, nor techniques that
#                declare to keep "factors" or `changes_inputs`;
#   plain        the format of s records nothing but a low-rank term and a transform. That of the dense state does not,
#                and a plain format stays plain where a technique declares `changes_inputs`, `changes_basis` or
#                `leaves_weight`;
#   plain dense  s is plain and at the reference (rule rest).
# T may be left out as well if it declares `idempotent` and s is what the same technique T returned: between the two
# stands nothing but what has been left out, or moved ahead by rule inputs.
#
# Rule (involution). Let T declare `involution`, and let the state before T >> T have a plain format: then the two
# return an equal state, with the very factors, and both may be left out.
#
# Whether T leaves anything free does not matter: the declarations are about every choice.


@dataclass
class Known:
    """Facts about the state that a sequence has led to.

    Args:
        dense: the sequence started from the dense state.
        at_reference: the effective weight equals the reference, and the inputs are the dense ones.
        plain: the format records nothing but a low-rank term and a transform.
        grid: "lies" if the weights lie on the grid that the format records, "recorded" if it records one, "" if that is
            not known.
        bare: there is no low-rank term.
        zero: 0 is a value of that grid.
        last: the technique that returned the state.
    """

    dense: bool
    at_reference: bool = field(init=False)
    plain: bool = field(init=False)
    bare: bool = field(init=False)
    grid: str = ""
    zero: bool = False
    last: Technique | None = None
    _done: list[Technique] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at_reference = self.plain = self.bare = self.dense

    def no_op(self, technique: Technique) -> Assumption | None:
        """Return the contract by which the technique changes nothing here, or None."""
        promises = technique.promises()
        if "always" in promises.no_op:
            return contract(technique, "changes nothing")
        if "plain" in promises.no_op and self.plain:
            return contract(technique, "changes nothing of a layer with a plain format")
        if "plain dense" in promises.no_op and self.at_reference and self.plain:
            return contract(technique, "changes nothing on the dense layer")
        if "without factors" in promises.no_op and self.bare:
            return contract(technique, "changes nothing of a layer without a low-rank term")
        if "masked" in promises.no_op and self._masked():
            return contract(technique, "changes nothing where all that the mask drops is zero")
        if "on a grid" in promises.no_op and (self.grid or self._sampled()):
            return contract(technique, "changes nothing of a layer on a grid")
        if promises.idempotent and self.last is not None and same(self.last, technique):
            return again(technique)
        return None

    def undone(self, technique: Technique) -> Assumption | None:
        """Return the contract by which the technique undoes its own use right before, or None."""
        if self.plain and technique.promises().involution and self.last is not None and same(self.last, technique):
            return contract(technique, "undoes itself on a plain format")
        return None

    def follow(self, technique: Technique, *, ahead: bool = False) -> None:
        """Update the facts after a technique. ``ahead``: it was moved ahead of the last one."""
        promises = technique.promises()
        self._done.append(technique)
        self.last = self.last if ahead else technique
        self.at_reference = self.at_reference and promises.holds_reference and not promises.changes_inputs
        untouched = promises.changes_inputs or promises.leaves_weight
        self.plain = self.plain and (untouched or promises.changes_basis)
        self.bare = self.bare and (bool(technique.steps()) or promises.changes_inputs or "factors" in promises.keeps)
        if technique.steps():
            for step in technique.steps():
                if not isinstance(step, Selection):
                    self.grid = "lies"
                    self.zero = isinstance(step, GridMap) or (isinstance(step, CodebookMap) and 0 in step.codes)
                elif self.grid and not self.zero:
                    self.grid = "recorded"
        elif not untouched:
            self.grid = self.grid if self.grid == "lies" and "grid" in promises.keeps else ""

    def forget(self) -> None:
        """Record that the last technique was undone, so that the one before it is not known."""
        self._done = [technique for technique in self._done if technique is not self.last]
        self.last = None

    def _sampled(self) -> bool:
        """Return True if a grid is recorded at the end. Any run would do to see it."""
        recorded = self._recorded(len(self._done))
        return recorded is not None and "grid" in recorded

    def _recorded(self, count: int) -> frozenset[str] | None:
        """Return what one run from the dense state records after so many techniques, None if it does not say."""
        done = self._done[:count]
        if not self.dense or any(t.promises().format_varies or unknowns(t) for t in done):
            return None
        try:
            return sets_up(Sequence(tuple(done))) if done else frozenset()
        except InputError:
            return None

    def _masked(self) -> bool:
        """Return True if no rank is recorded, and all that a mask drops is zero."""
        if self.plain:
            return True
        last = self._recorded(len(self._done))
        if last is None or "rank" in last:
            return False
        holds = True
        for place, technique in enumerate(self._done):
            promises = technique.promises()
            if promises.changes_inputs or promises.leaves_weight or (holds and "mask" in promises.keeps):
                continue
            recorded = self._recorded(place)
            holds = "mask" in promises.restores or (recorded is not None and "mask" not in recorded)
        return holds


def again(technique: Technique) -> Assumption:
    """Return the contract of a technique that is idempotent."""
    return contract(technique, "changes nothing of its own result")
