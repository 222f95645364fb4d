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
        zero: 0 is a value of that grid.
        last: the technique that returned the state.
    """

    dense: bool
    at_reference: bool = field(init=False)
    plain: bool = field(init=False)
    grid: str = ""
    zero: bool = False
    last: Technique | None = None
    _done: list[Technique] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at_reference = self.plain = self.dense

    def no_op(self, technique: Technique) -> Assumption | None:
        """Return the contract by which the technique changes nothing here, or None."""
        promises = technique.promises()
        if "always" in promises.no_op:
            return contract(technique, "changes nothing")
        if "plain" in promises.no_op and self.plain:
            return contract(technique, "changes nothing of a layer with a plain format")
        if "plain dense" in promises.no_op and self.at_reference and self.plain:
            return contract(technique, "changes nothing on the dense layer")
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
        self.last = None

    def _sampled(self) -> bool:
        """Return True if one run from the dense state records a grid at its end. Any run would do."""
        loose = any(t.promises().format_varies or unknowns(t) for t in self._done)
        if not self.dense or not self._done or loose:
            return False
        try:
            return "grid" in sets_up(Sequence(tuple(self._done)))
        except InputError:
            return False


def again(technique: Technique) -> Assumption:
    """Return the contract of a technique that is idempotent."""
    return contract(technique, "changes nothing of its own result")
