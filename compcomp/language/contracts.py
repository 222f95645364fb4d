"""Contracts: what a technique promises for every layer. Proofs rest on them, so a false one is a wrong theorem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from compcomp.errors import InputError
from compcomp.language.steps import Optimum

NO_OP = ("always", "on a grid", "plain", "plain dense")
"""When a technique may change nothing. "on a grid": the format records a grid. "plain": the format records no mask,
pattern, grid, rank or cut (it may record a low-rank term and a transform). "plain dense": the format is plain, the
effective weight equals the reference, and the inputs are the dense ones."""

HINTS = frozenset({"landmarks", "trivial_side"})
"""What :class:`Declared` held once and is now said by ``Technique.hints()``."""


@dataclass(frozen=True)
class Contract:
    """What is known about a field of :class:`Declared`.

    law: what holds for every layer and every choice if it is declared, in one line.
    rules: the rules that rely on it, by the names of their modules, each with a page of its own in docs/proofs/.
    weaker: declaring it promises less.
    """

    name: str
    law: str
    rules: tuple[str, ...]
    weaker: bool = False


def _law(law: str, *rules: str, weaker: bool = False) -> dict[str, Any]:
    return {"law": law, "rules": rules, "weaker": weaker}


@dataclass(frozen=True)
class Declared:
    """The contracts of a technique, for every layer and every choice. Each is tested by ``check_encoding``.

    :func:`contracts` gives the law of each field and the rules that rely on it. What hints at where to search is in
    :class:`compcomp.language.hints.Hints` instead.

    Three contracts need no field, and every technique makes them. What it sets up holds after it ("fits"): weights that
    its mask drops are zero, a pattern is one of its mask, its mask drops what it removes, and in removed rows and
    columns the low-rank term is zero too; the weights have the recorded rank and lie on the recorded grid (if the grid
    does not contain 0, only unpruned weights must lie on it). Its steps, where it has any, are all that it does. It
    maps equal states to equal states, where of a low-rank term only the product counts (but see `sees_factors`).

    keeps: out of :data:`compcomp.layers.state.INVARIANTS` and "factors". "mask", for any weights: the mask after it
        drops all that the mask before it drops. "grid", if the grid does not contain 0: of the unpruned weights.
        "factors": the low-rank term is what it was, none where there was none.
    restores: "mask": every weight that the mask before it drops is zero, and the mask after it drops it as well.
    never_increases: names of losses, of the layer in the basis that is there.
    rests: an equal state is the same weight, mask, grid and inputs, and a low-rank term of the same product.
    changes_inputs: weight, reference and format stay as they are. A technique that does not declare it leaves the
        inputs alone.
    homogeneous: the layer is its weight and its reference.
    zeros: whatever the format says of them. "weights": a weight that is zero is zero after it. "rows": where a row of
        the weight and that of the low-rank term are zero, both are after it. "columns": the same of columns.
    changes_basis: weight and format change with the transform, and a plain format (:data:`NO_OP`) stays plain. A
        technique that does not declare it leaves the transform alone, and is shown the layer in the basis that is
        there.
    input_bits: one of the multiples is 0, and the inputs are those in the basis that is there. None: not known.
    optimum: the weights that it admits for the weight that the technique finds.
    no_op: out of :data:`NO_OP`. An equal state, with the same factors, whatever is left free; so for the next two.
    idempotent: of a technique for the whole model, on every layer of a model.
    """

    keeps: frozenset[str] = field(
        default=frozenset(),
        metadata=_law(
            "an invariant of these that holds before it holds after it", "kept", "no_op", "normal", "optimum"
        ),
    )
    restores: frozenset[str] = field(
        default=frozenset(),
        metadata=_law("an invariant of these holds after it whatever the weights were before", "kept"),
    )
    never_increases: frozenset[str] = field(
        default=frozenset(),
        metadata=_law("these losses are no larger after it than before it, on dense inputs", "last_step", "optimum"),
    )
    any_inputs: bool = field(
        default=False,
        metadata=_law("what it never increases it does not increase on changed inputs either", "last_step"),
    )
    rests: bool = field(
        default=False,
        metadata=_law("changes nothing where the effective weight equals the reference on dense inputs", "normal"),
    )
    holds_reference: bool = field(
        default=False,
        metadata=_law("leaves the effective weight and the inputs alone where they equal the reference", "no_op"),
    )
    leaves_weight: bool = field(
        default=False,
        metadata=_law("adds to the low-rank branch, and changes nothing else", "no_op", "normal"),
    )
    changes_inputs: bool = field(
        default=False,
        metadata=_law(
            "acts on the inputs alone, and what it makes of them depends on them alone",
            *("inputs", "exchange", "fits", "no_op", "normal"),
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
            *("fits", "no_op", "zero_selection"),
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
    """The contracts that a technique can declare, by name."""
    return {found.name: _read(found) for found in fields(Declared)}


def _read(declared: Field[Any]) -> Contract:
    return Contract(declared.name, **declared.metadata)
