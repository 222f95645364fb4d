"""Define contracts, the properties that a technique declares for every layer.

Proofs depend on contracts, so a false contract leads to a false theorem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from compcomp.errors import InputError
from compcomp.language.steps import Optimum

NO_OP = ("always", "on a grid", "masked", "without factors", "plain", "plain dense")
"""Circumstances in which a technique may be a no-op.

- "always": every state.
- "on a grid": the format records a grid.
- "masked": every weight that the format's mask drops is zero, or there is no mask, and the format records no rank.
- "without factors": the format records no low-rank term.
- "plain": the format records no mask, pattern, grid, rank or cut. It may record a low-rank term and a transform.
- "plain dense": the format is plain, the effective weight equals the reference, and the inputs are the dense ones.
"""

HINTS = frozenset({"landmarks", "trivial_side"})
"""Former fields of :class:`Declared`, which ``Technique.hints()`` now returns."""


@dataclass(frozen=True)
class Contract:
    """Describe a field of :class:`Declared`.

    Args:
        name: the name of the field.
        law: the statement, in one line, that holds for every layer and every free choice if the field is declared.
        rules: the rules that use the contract, by the names of their modules. docs/proofs/ has a page for each.
        weaker: True if declaring the field promises less than leaving it out.
    """

    name: str
    law: str
    rules: tuple[str, ...]
    weaker: bool = False


def _law(law: str, *rules: str, weaker: bool = False) -> dict[str, Any]:
    return {"law": law, "rules": rules, "weaker": weaker}


@dataclass(frozen=True)
class Declared:
    """Declare the contracts of a technique, for every layer and every free choice.

    ``check_encoding`` tests each of them. :func:`contracts` gives the law of each field and the rules that use it; the
    list below adds details to these laws. Hints for the search are in :class:`compcomp.language.hints.Hints` instead.

    Three contracts need no field, because every technique makes them.

    1. The format that it sets up holds after it ("fits"). Weights that its mask drops are zero. A recorded pattern is a
       pattern of its mask. Its mask drops the rows and columns that its cut removes, and the low-rank term is zero
       there too. The weights have the recorded rank and lie on the recorded grid. If the grid does not contain 0, only
       unpruned weights must lie on it.
    2. If it has steps, it does nothing besides them.
    3. It maps equal states to equal states. Low-rank terms count as equal if their products are (but see
       `sees_factors`).

    Args:
        keeps: names from :data:`compcomp.layers.state.INVARIANTS`, and "factors". For "mask" the weights do not matter:
            The mask after it drops every weight that the mask before it drops. For "grid", if the grid does not
            contain 0, only the unpruned weights count. For "factors" the low-rank term does not change; if there was
            none, there is none.
        restores: "mask": every weight that the mask before it drops is zero after it, and the mask after it drops that
            weight too.
        never_increases: names of losses, of the layer in its current basis.
        no_op_on_dense: to change nothing means here that weight, mask, grid, inputs and the product of the low-rank
            term are the same after it.
        changes_inputs: weight, reference and format do not change. A technique that does not declare it does not change
            the inputs.
        homogeneous: the layer here is its weight and its reference.
        zeros: it holds whatever the format records of these zeros. For "weights", a weight that is zero is zero after
            it. For "rows", if a row of the weight and the same row of the low-rank term are zero, both are zero after
            it. For "columns", the same holds for columns.
        changes_basis: weight and format change with the transform, and a plain format (:data:`NO_OP`) stays plain. A
            technique that does not declare it does not change the transform, and receives the layer in its current
            basis.
        input_bits: one of the multiples is 0, and the inputs are those in the current basis. None: not known.
        optimum: the weights that it admits, given the weight that the technique is applied to.
        no_op: names from :data:`NO_OP`. The state after it is equal, with the same factors, for every free choice. The
            same holds for the next two fields.
        idempotent: for a technique that acts on the whole model, it holds on every layer of a model.
    """

    keeps: frozenset[str] = field(
        default=frozenset(),
        metadata=_law(
            "an invariant of these that holds before it holds after it",
            *("kept", "best_selection", "no_op", "normal", "optimum"),
        ),
    )
    restores: frozenset[str] = field(
        default=frozenset(),
        metadata=_law("an invariant of these holds after it whatever the weights were before", "kept", "no_op"),
    )
    never_increases: frozenset[str] = field(
        default=frozenset(),
        metadata=_law(
            "these losses are no larger after it than before it, on dense inputs",
            *("last_step", "best_selection", "optimum"),
        ),
    )
    any_inputs: bool = field(
        default=False,
        metadata=_law("what it never increases it does not increase on changed inputs either", "last_step"),
    )
    no_op_on_dense: bool = field(
        default=False,
        metadata=_law(
            "changes nothing where the effective weight equals the reference on dense inputs", "normal", "reference"
        ),
    )
    holds_reference: bool = field(
        default=False,
        metadata=_law(
            "leaves the effective weight and the inputs alone where they equal the reference", "no_op", "reference"
        ),
    )
    leaves_weight: bool = field(
        default=False,
        metadata=_law("adds to the low-rank branch, and changes nothing else", "no_op", "normal"),
    )
    changes_inputs: bool = field(
        default=False,
        metadata=_law(
            "acts on the inputs alone, and what it makes of them depends on them alone",
            *("inputs", "exchange", "fits", "no_op", "normal", "reference"),
        ),
    )
    homogeneous: bool = field(
        default=True, metadata=_law("homogeneous: scaling the layer by t > 0 scales its result by t", "reuse")
    )
    deterministic: bool = field(
        default=True,
        metadata=_law(
            "deterministic: its conventions leave nothing free, so equal inputs give equal results",
            *("normal", "orthogonal"),
        ),
    )
    changes_basis: bool = field(
        default=False,
        metadata=_law(
            "changes the basis of the inputs alone: effective weight, inputs and every loss stay",
            *("basis", "fits", "last_step", "no_op", "normal"),
        ),
    )
    scales_inputs: bool = field(
        default=False,
        metadata=_law(
            "divides every input feature by some t > 0, and multiplies its column of weight and low-rank term by t",
            "scaling",
        ),
    )
    optimum: Optimum | None = field(
        default=None,
        metadata=_law("leaves one of the weights that this admits, and none of them loses less", "optimum", "fits"),
    )
    zeros: frozenset[str] = field(default=frozenset(), metadata=_law("zero weights, rows or columns stay zero", "kept"))
    removes_rows: bool = field(
        default=False, metadata=_law("removes rows as its cut says, and of weights drops these alone", "kept")
    )
    removes_columns: bool = field(
        default=False, metadata=_law("removes columns as its cut says, and of weights drops these alone", "kept")
    )
    input_bits: int | None = field(
        default=None,
        metadata=_law("each token's inputs are among 2^input_bits neighbouring multiples of a step of its own", "fits"),
    )
    format_varies: bool = field(
        default=False,
        metadata=_law(
            "numbers in its format (levels, pattern, ranks) depend on weights, inputs or shape",
            *("fits", "best_selection", "no_op", "zero_selection"),
            weaker=True,
        ),
    )
    sees_factors: bool = field(
        default=False,
        metadata=_law(
            "what it makes of a layer depends on more of the low-rank term than its product", "normal", weaker=True
        ),
    )

    no_op: frozenset[str] = field(default=frozenset(), metadata=_law("changes nothing in these circumstances", "no_op"))
    idempotent: bool = field(
        default=False, metadata=_law("changes nothing of a state that it returned", "no_op", "normal")
    )
    involution: bool = field(
        default=False, metadata=_law("applied twice in a row changes nothing where the format is plain", "no_op")
    )

    def __new__(cls, *given: object, **named: object) -> Declared:
        if moved := sorted(HINTS & named.keys()):
            raise InputError(f"Declared({moved[0]}=...)", f"def hints(self): return Hints({moved[0]}=...)", "contracts")
        return super().__new__(cls)


def contracts() -> Mapping[str, Contract]:
    """Return the contracts that a technique can declare, by name."""
    return {found.name: _read(found) for found in fields(Declared)}


def _read(declared: Field[Any]) -> Contract:
    return Contract(declared.name, **declared.metadata)
