"""Rules that prove a claim for every shape. One rule a module, each with its formal statement.

A rule takes a claim and a :class:`Session` of its own, and returns a :class:`Proof`, or a :class:`Refusal` that says
what is missing. It reads what techniques declare and their steps, never their names: these occur in reasons alone. Its
argument is in docs/proofs/, its attack in tests/proving.
"""

from __future__ import annotations

from collections.abc import Callable

from compcomp.proving.proof import Rule
from compcomp.proving.rules.best_selection import best_selection, best_selection_at
from compcomp.proving.rules.composed import composed_by
from compcomp.proving.rules.exchange import exchange
from compcomp.proving.rules.fits import fits_scheme
from compcomp.proving.rules.kept import invariant_is_kept
from compcomp.proving.rules.last_step import from_every_state, last_step_improves
from compcomp.proving.rules.normal import same_state
from compcomp.proving.rules.optimum import joint_optimum
from compcomp.proving.rules.orthogonal import orthogonality
from compcomp.proving.rules.reference import at_reference
from compcomp.proving.rules.same import same_states
from compcomp.proving.rules.zero_selection import zero_selection

DOMINANCE = (
    same_state,
    last_step_improves,
    at_reference,
    exchange,
    same_states,
    zero_selection,
    joint_optimum,
    best_selection,
)
"""The rules that prove dominance, from the dense layer."""

composed = composed_by(DOMINANCE, frozenset({same_state, last_step_improves, at_reference}))

ANY_BASIS: frozenset[Rule] = frozenset(
    {from_every_state, same_state, last_step_improves, at_reference, invariant_is_kept, fits_scheme, composed}
)
"""The rules that may be used where techniques change the basis of the inputs, as argued in :mod:`.basis`."""

RULES: tuple[Rule, ...] = (
    from_every_state,
    same_state,
    last_step_improves,
    at_reference,
    invariant_is_kept,
    fits_scheme,
    exchange,
    same_states,
    zero_selection,
    orthogonality,
    composed,
    joint_optimum,
    best_selection,
)

AT_SHAPE: tuple[Callable[[tuple[int, int]], Rule], ...] = (best_selection_at,)
"""Rules for layers of one shape (out, in), asked where no rule proves the claim for every shape."""
