"""Pairs of techniques whose order is proved under conditions only: on how much of the model the conditions hold.

What a proof covers is proved; what it does not cover is measured, never assumed. The outcome is about this model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from compcomp.language.assumption import Assumption
from compcomp.language.claim import Claim, Scope, dominates
from compcomp.language.conditions import (
    Condition,
    DiagonalGram,
    LargestKept,
    NoTies,
    OrthogonalInputs,
    ScaleUnchanged,
)
from compcomp.language.loss import Loss
from compcomp.language.technique import Technique
from compcomp.language.verdict import Verdict
from compcomp.ordering.dag import covers
from compcomp.ordering.measure import Bench
from compcomp.proving.conditions import find_condition

TECHNIQUES = 6
"""Techniques up to which conditions are looked for."""
SECONDS = 10.0
"""Seconds for finding conditions in a whole search. A claim that is not reached is not mentioned."""
CLAIM_SECONDS = 5.0
"""Seconds for one claim under one set of conditions, always the same so that a stored answer serves again."""
TEMPLATES: tuple[Condition, ...] = (NoTies(), LargestKept(), ScaleUnchanged())
OUTPUT_TEMPLATES: tuple[Condition, ...] = (*TEMPLATES, DiagonalGram(), OrthogonalInputs())

Ask = Callable[[Claim, Scope], Verdict]
Told = Callable[[int, int, str], None]


def conditional(
    pairs: Sequence[tuple[Technique, Technique]],
    loss: Loss,
    bench: Bench,
    ask: Ask,
    held: Iterable[Assumption] = (),
    told: Told = lambda done, total, text: None,
) -> tuple[list[dict[str, Any]], list[Verdict]]:
    """For each pair (A, B), both ways, whether A >> B loses no more than B >> A on this model, under conditions.

    pairs: of which neither order is proved to lose no more. ask: the prover. held: assumptions known to hold for
    every layer. Each entry is plain data: ``claim``, its ``left`` and ``right`` side, ``given`` (conditions), ``loss``;
    ``coverage``: the share of weights about which the proof speaks, of the model, and in ``layers`` by name;
    ``conditions``: the share of weights in independent units where each holds, and ``groups``: of the groups it was
    checked in, which may be smaller; ``left_loss``, ``right_loss``: what the sides lose where the proof
    speaks (``covered``) and elsewhere (``rest``), measured; ``holds``: whether the left side loses no more on this
    model, proved where covered and measured on the rest; ``in_every_layer``: whether that is so layer by layer;
    ``contradicted``: layers whose floats contradict the proof, a float gap or a defect of this library. Also the
    proofs that the entries rest on.
    """
    wanted = [pair for pair in pairs if all(len(t.steps()) == 1 and not t.promises().changes_basis for t in pair)]
    if not wanted or next(iter(bench.coverage([])), None) is None:
        return [], []
    until, found, used = time.monotonic() + SECONDS, list[dict[str, Any]](), list[Verdict]()
    for k, (a, b) in enumerate(wanted):
        told(k, len(wanted), f"conditions for {a} and {b}")
        sides = [_proofs(a, b, loss, ask, held, until), _proofs(b, a, loss, ask, held, until)]
        proofs = [verdict for side in sides for verdict in side]
        layers = {}
        for name, rows in bench.coverage([v.claim for v in proofs]) if proofs else ():
            layers[name] = rows
            told(k, len(wanted), f"conditions on {name}")
        if not layers:
            continue
        entries = [(_entry(v.claim, {name: rows[i] for name, rows in layers.items()}), v) for i, v in enumerate(proofs)]
        split = len(sides[0])
        for part in filter(None, (entries[:split], entries[split:])):
            entry, proof = max(part, key=lambda pair: pair[0]["coverage"])
            found.append(entry)
            used.append(proof)
    told(len(wanted), len(wanted), "conditions")
    return found, used


def _proofs(
    a: Technique, b: Technique, loss: Loss, ask: Ask, held: Iterable[Assumption], until: float
) -> list[Verdict]:
    """Proofs that a >> b loses no more than b >> a, each under one of the smallest sets of conditions."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        return []
    templates = OUTPUT_TEMPLATES if loss.needs_inputs else TEMPLATES
    finding = find_condition(dominates(a >> b, b >> a, loss=loss.name), templates, timeout=seconds, ask=ask)
    if not finding.given:
        return []
    proofs = (finding.verdict, *finding.also)
    return [v for v in proofs if covers(v, None, {*held, *(condition.assumption for condition in v.claim.given)})]


def _entry(claim: Claim, layers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    weights = sum(row["weights"] for row in layers.values())

    def share(part: Callable[[dict[str, Any]], int]) -> float:
        return float(sum(map(part, layers.values())) / weights)

    def losses(side: str) -> dict[str, float]:
        return {name: sum(row[side][k] for row in layers.values()) for k, name in enumerate(("covered", "rest"))}

    def groups(condition: str) -> float:
        counts = [row["groups"][condition] for row in layers.values()]
        return float(sum(held for _, held in counts) / max(1, sum(among for among, _ in counts)))

    left, right = losses("left"), losses("right")
    contradicted = [name for name, row in layers.items() if row["contradicted"]]
    return {
        "claim": str(claim),
        "left": str(claim.left),
        "right": str(claim.right),
        "given": [str(condition) for condition in claim.given],
        "loss": claim.loss.name if claim.loss else None,
        "coverage": share(lambda row: row["covered"]),
        "layers": {name: row["covered"] / row["weights"] for name, row in layers.items()},
        "conditions": {str(c): share(lambda row, c=str(c): row["conditions"][c]) for c in claim.given},  # type: ignore[misc]
        "groups": {str(c): groups(str(c)) for c in claim.given},
        "left_loss": left,
        "right_loss": right,
        "holds": not contradicted and left["rest"] <= right["rest"],
        "in_every_layer": not contradicted and all(row["left"][1] <= row["right"][1] for row in layers.values()),
        "contradicted": contradicted,
    }


def conclusion(entry: dict[str, Any]) -> str:
    """What an entry comes to, in words."""
    share = percent(entry["coverage"])
    if entry["contradicted"]:
        return (
            f"CONTRADICTION on {', '.join(entry['contradicted'])}: where the conditions hold, {entry['left']} loses "
            f"more than {entry['right']} beyond any float error, though {entry['claim']} is proved. That is a float "
            "gap, or a defect of the prover or of a kernel: please report it. Nothing was dropped for it"
        )
    rest = f"{entry['loss']} {entry['left_loss']['rest']:.6g} against {entry['right_loss']['rest']:.6g}"
    if entry["coverage"] == 0:
        outcome = "no more" if entry["holds"] else "more"
        return f"is measured to lose {outcome} on this model ({rest}): the proof speaks of no part of it"
    if entry["coverage"] == 1:
        return f"loses no more on this model: proved on {share} of the weights"
    if entry["holds"]:
        return f"loses no more on this model: proved on {share} of the weights, measured on the rest ({rest})"
    return f"proved to lose no more on {share} of the weights, but measured to lose more on the rest ({rest})"


def percent(share: float) -> str:
    """A share as text, where only everything is "100 %" and only nothing "0 %"."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"
