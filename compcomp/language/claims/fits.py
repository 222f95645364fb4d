"""Define the claim ``A fits W4 2:4``: a sequence ends in the format that a scheme asks for."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, ClassVar

from compcomp.algebra.grids import off_grid
from compcomp.algebra.low_rank import rank_exceeds
from compcomp.language.claims.claim import Claim, holds_some
from compcomp.language.claims.entries import more_than, off_its_grid
from compcomp.language.conditions import Condition, Given, Run, conditions
from compcomp.language.scheme import Scheme
from compcomp.language.size import DENSE, value_bits
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.layers.walk import apart
from compcomp.terms import If, Sum, Term


@dataclass(frozen=True)
class Fits(Claim):
    """State that ``left`` ends in the format that ``scheme`` asks for."""

    scheme: Scheme

    kind: ClassVar[str] = "fits"
    verb: ClassVar[str] = "fits"
    scales: ClassVar[bool] = True
    example: ClassVar[str] = "W4 2:4"
    any_ties: ClassVar[bool] = True

    @classmethod
    def read(
        cls, left: Sequence, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
    ) -> Claim:
        return fits(left, after, given=given)

    @property
    def object(self) -> str:
        return str(self.scheme)

    @property
    def compares_inputs(self) -> bool:
        return self.scheme.needs_inputs

    @property
    def sees_tokens(self) -> bool:
        return self.scheme.needs_inputs

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return self.scheme.partitions

    @property
    def adds(self) -> bool:
        return self.scheme.rank is None

    def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
        return holds_some([term for terms in misfits(self.scheme, runs[0][-1], tolerance).values() for term in terms])

    def reason(self, runs: Items[Run]) -> str:
        wrong = [part for part, terms in misfits(self.scheme, runs[0][-1]).items() if any(map(bool, terms))]
        return f"what does not fit {self.scheme} at the end: {', '.join(wrong)}"


def misfits(scheme: Scheme, end: LayerState, tolerance: float = 0) -> dict[str, list[Term]]:
    """Return truth-valued terms, one of which is true if the final layer does not fit the scheme.

    Keys name the requirements of the scheme.

    Args:
        scheme: the scheme that the layer must fit.
        end: the state at the end of a run.
        tolerance: relative slack for floats; 0 is exact.
    """
    found: dict[str, list[Term]] = {}
    form, shape = end.format, (end.weight.shape[0], end.weight.shape[1])
    if scheme.weights < DENSE:
        wide = form.grid is None or value_bits(form.grid) > scheme.weights
        found["grid"] = [True] if wide or form.grid is None else off_its_grid(form.grid, end.weight, tolerance)
    if scheme.pattern is not None:
        found["pattern"] = more_than(*scheme.pattern, end.weight, tolerance)
    if scheme.sparsity:
        for group in scheme.share_of.groups(shape):
            left = Sum(If(apart(end.weight[index], 0, tolerance), 1, 0) for index in group)
            found.setdefault("sparsity", []).append(left > len(group) - int(len(group) * scheme.sparsity))
    if scheme.rank is not None:
        found["rank"] = [rank_exceeds(end.weight, scheme.rank)]
    found["low-rank term"] = [form.factors is not None and form.factors.rank > scheme.branch_rank]
    if scheme.inputs < DENSE:
        assert end.inputs is not None
        inputs = end.inputs if form.transform is None else form.transform.inputs(end.inputs)
        found["inputs"] = [off_grid(token, scheme.inputs, tolerance) for token in inputs.T]
    return found


def fits(sequence: Technique | Sequence, scheme: str | Scheme, *, given: Given = ()) -> Fits:
    """Return the claim that a sequence always ends in the format that a scheme asks for.

    Args:
        sequence: a technique or sequence.
        scheme: the format, such as "W4 2:4" (see :class:`compcomp.language.scheme.Scheme`).
        given: conditions or their names. The claim speaks only of layers on which all of them hold.

    Returns:
        The claim.

    Raises:
        InputError: the scheme cannot be parsed, or a condition is not known.
    """
    return Fits(as_sequence(sequence), Scheme.of(scheme), given=conditions(given))
