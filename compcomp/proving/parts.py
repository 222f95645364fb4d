"""Decide a claim about layers that share units, such as neurons, for each kind of these layers on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compcomp.language.claim import EACH_KIND, Claim, Scope
from compcomp.language.identity import same
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.technique import Technique
from compcomp.language.verdict import Grade, Status, Verdict

# The layers that share units decide together which units go. So a technique does not do to one of these layers what
# its part does (Technique.parts). The promises of the part, which are about any rows or columns, hold for both.
#
# Proofs. A rule reads the promises of the part, which has no steps: its proof holds whichever units go. A formula at
# one shape does not, because it has the part's own scores: that stage is left out. Where sequences are compared, a rule
# may take equal states before the technique for equal states after it. They are equal, as its choice follows from the
# states of all layers, provided that those are equal too: so the techniques up to the last one that shares the units
# have to be the same in all sequences. The claim holds in a model if it does in each kind of layer.
#
# Refutations. There is a model in which the technique does just what the part does to this layer: that is part of the
# contract. So a layer that refutes a part refutes the claim.

GRADES = list(Grade)


def of_parts(claim: Claim, scope: Scope, decide: Callable[[Claim], Verdict]) -> Verdict:
    """Return the verdict on a claim with parts from those on the parts: proved if all are, refuted if one is."""
    found: dict[str, Verdict] = {}
    for name, part in claim.parts().items():
        verdict = found[name] = decide(part)
        if verdict.refuted:
            assert verdict.witness is not None
            reason = Claim.of_part(verdict.reason, name, part)
            witness = replace(verdict.witness, reason=reason)
            return _of(claim, scope, found, verdict, witness=witness, reason=reason, assumptions=claim.coupling)
    informative = [verdict for verdict in found.values() if verdict.status is not Status.VACUOUS]
    if not informative:
        return _of(claim, scope, found, verdict)
    if all(verdict.proved for verdict in informative):
        if not (_same_before(claim) and _by_promises(claim)):
            reason = "other techniques come before units go, and which go depends on other layers"
            missing = Refusal(reason, "parts", Reached.FACT)
            unknown = {"status": Status.UNKNOWN, "cause": str(missing), "tried": (missing,)}
            return _of(claim, scope, found, informative[0], reason="", grade=None, **unknown)
        return _of(
            *(claim, scope, found, informative[0]),
            reason=" and ".join(dict.fromkeys(v.reason for v in informative)) + EACH_KIND,
            assumptions=tuple(dict.fromkeys([*(one for v in informative for one in v.assumptions), *claim.coupling])),
            grade=max((v.grade for v in informative if v.grade is not None), key=GRADES.index, default=None),
            notes=tuple(dict.fromkeys(note for v in informative for note in v.notes)),
            needed=None if not claim.given else tuple(dict.fromkeys(n for v in informative for n in v.needed or ())),
            local_rewrite=False,
        )
    name, worst = next((n, v) for n, v in found.items() if v in informative and not v.proved)
    return _of(claim, scope, found, worst, cause=f"{worst.cause}, for {name}")


def _of(claim: Claim, scope: Scope, found: dict[str, Verdict], verdict: Verdict, **fields: object) -> Verdict:
    """Return a verdict on the claim, with all queries that were asked for its parts."""
    queries = tuple(dict.fromkeys(query for v in found.values() for query in v.queries))
    seconds = round(sum(v.work.get("seconds", 0.0) for v in found.values()), 3)
    work = {"rlimit": float(sum(query.rlimit for query in queries)), "seconds": seconds}
    return replace(verdict, **{"claim": claim, "scope": scope, "queries": queries, "work": work, **fields})  # type: ignore[arg-type]


def _same_before(claim: Claim) -> bool:
    """Return True if the techniques up to the last that drops shared units are the same in all sequences.

    This is compared for each kind of layer that shares units.
    """
    for name in claim.parts():
        begins: list[tuple[Technique, ...]] = []
        for sequence in claim.sequences if len(claim.sequences) > 1 else ():
            seen = tuple(t for t in sequence if not t.parts() or name in t.parts())
            drops = [k for k, technique in enumerate(seen) if technique.parts()]
            begins += [seen[: drops[-1] + 1]] if drops else []
        longest = max(begins, key=len, default=())
        if not all(same(one, other) for begin in begins for one, other in zip(begin, longest, strict=False)):
            return False
    return True


def _by_promises(claim: Claim) -> bool:
    """Return True if the parts have no steps. Rules would read from steps facts about one layer's own choice alone."""
    parts = (part for sequence in claim.sequences for t in sequence for part in t.parts().values())
    return not any(part.steps() for part in parts)
