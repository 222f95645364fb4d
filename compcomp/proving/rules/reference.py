"""Prove that a sequence loses nothing, because it leaves the effective weight at the dense one."""

from __future__ import annotations

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals
from compcomp.language.loss import LOSSES
from compcomp.language.refusal import Refusal
from compcomp.language.technique import Sequence
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.rules.no_op import Known
from compcomp.proving.session import Session

# Rule (reference). A state is at the reference where its effective weight equals the reference and its inputs are the
# dense ones. Let every technique of A declare that it leaves a state at the reference there (`holds_reference`), or
# that it changes nothing of such a state (`no_op_on_dense`), or change nothing where it stands (rule no op), and let
# none of the others change the inputs. Then A leaves the dense state, which is at the reference, at the reference.
#   Dominates   Every loss is 0 of a state at the reference, and is never negative. So A loses no more than any B.
#   Equals      If B leaves the dense state at the reference as well, both end with the effective weight and the inputs
#               of the dense layer.
# This holds for every choice, as the declarations do. B may do anything in a claim of dominance, also change inputs.


@rule(
    "reference",
    Dominates,
    Equals,
    needs="a left sequence, and for equality a right one too, of techniques that leave the dense layer's weight alone",
)
def at_reference(claim: Claim, session: Session) -> Proof | Refusal:
    """Prove that the left sequence loses nothing, or that neither sequence changes what the layer computes."""
    if claim.loss is not None and LOSSES.get(claim.loss.name) != claim.loss:
        return Refusal(f"{claim.loss.name} is not known to be 0 of the dense layer")
    contracts: list[Assumption] = []
    for side in claim.sides if isinstance(claim, Equals) else claim.sides[:1]:
        found = _stays(side)
        if isinstance(found, Refusal):
            return found
        contracts += found
    return Proof("reference", "any shape", (EXACT, *dict.fromkeys(contracts)), tuple(session.queries))


def _stays(sequence: Sequence) -> list[Assumption] | Refusal:
    """Return the contracts by which a sequence leaves the dense state at the reference."""
    known, contracts = Known(dense=True), list[Assumption]()
    for technique in sequence:
        if (why := known.no_op(technique)) is not None:
            contracts.append(why)
            continue
        promises = technique.promises()
        if promises.changes_inputs or not (promises.no_op_on_dense or promises.holds_reference):
            return Refusal(f"{technique} does not promise to leave a dense layer's weight and inputs alone")
        contracts.append(contract(technique, "leaves the effective weight and the inputs of the dense layer alone"))
        known.follow(technique)
    return contracts
