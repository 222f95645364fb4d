"""Find pairs of techniques whose order is proved under conditions, and measure where on the model these hold.

Weights that a proof does not cover are measured and never assumed to behave alike. The outcome is about this model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from compcomp.bench import Bench, Coverage
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
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Verdict
from compcomp.ordering.covers import covers
from compcomp.ordering.progress import OnProgress, silent
from compcomp.proving.conditions import find_condition
from compcomp.record import Record

TECHNIQUES = 6
"""The most techniques for which conditions are looked for."""
SECONDS = 10.0
"""Seconds for finding conditions in a whole search. A claim that is not reached is not mentioned."""
CLAIM_SECONDS = 5.0
"""Seconds for one claim under one set of conditions, always the same so that stored answers can be used again."""
TEMPLATES: tuple[Condition, ...] = (NoTies(), LargestKept(), ScaleUnchanged())
OUTPUT_TEMPLATES: tuple[Condition, ...] = (*TEMPLATES, DiagonalGram(), OrthogonalInputs())

Ask = Callable[[Claim, Scope], Verdict]


@dataclass(frozen=True)
class Lost:
    """Hold a loss in two parts: over the weights that a proof covers, and over the rest."""

    covered: float
    rest: float

    def to_json(self) -> dict[str, float]:
        """Return plain data."""
        return {"covered": self.covered, "rest": self.rest}

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> Self:
        """Read the result of :meth:`to_json`."""
        return cls(data["covered"], data["rest"])


@dataclass(frozen=True, eq=False)
class ConditionalEntry(Record):
    """Hold a claim of dominance that is proved under conditions, and how far they hold on the model.

    Attributes:
        claim: The claim with its conditions.
        coverage: The share of the model's weights that the proof covers.
        layers: The same share by layer.
        conditions: By condition, the share of the weights that are in independent units where it holds.
        groups: By condition, the share of the groups it was checked in where it holds. Groups may be smaller than
            units.
        left_loss: The measured loss of the left side.
        right_loss: The measured loss of the right side.
        holds: True if the left side loses no more on this model: proved where covered, measured on the rest.
        in_every_layer: True if that is so in each layer.
        contradicted: The layers whose floats contradict the proof. This is a float gap, or a defect of this library.
    """

    claim: Claim
    coverage: float
    layers: Mapping[str, float]
    conditions: Mapping[str, float]
    groups: Mapping[str, float]
    left_loss: Lost
    right_loss: Lost
    holds: bool
    in_every_layer: bool
    contradicted: tuple[str, ...] = ()

    @property
    def left(self) -> Order:
        """The side that loses no more."""
        return self.claim.left

    @property
    def right(self) -> Order:
        """The other side."""
        return self.claim.sides[1]

    @property
    def given(self) -> list[str]:
        """The conditions as texts."""
        return [str(condition) for condition in self.claim.given]

    @property
    def loss(self) -> str | None:
        """The name of the loss."""
        return self.claim.loss.name if self.claim.loss else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data: claim, sides and conditions as texts."""
        return {
            "claim": str(self.claim),
            "left": str(self.left),
            "right": str(self.right),
            "given": self.given,
            "loss": self.loss,
            "coverage": self.coverage,
            "layers": dict(self.layers),
            "conditions": dict(self.conditions),
            "groups": dict(self.groups),
            "left_loss": self.left_loss.to_json(),
            "right_loss": self.right_loss.to_json(),
            "holds": self.holds,
            "in_every_layer": self.in_every_layer,
            "contradicted": list(self.contradicted),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`."""
        return cls(
            parse_claim(data["claim"], data["loss"]),
            data["coverage"],
            dict(data["layers"]),
            dict(data["conditions"]),
            dict(data["groups"]),
            Lost.from_json(data["left_loss"]),
            Lost.from_json(data["right_loss"]),
            holds=data["holds"],
            in_every_layer=data["in_every_layer"],
            contradicted=tuple(data["contradicted"]),
        )

    @property
    def conclusion(self) -> str:
        """A sentence that compares the left side with the right side on this model."""
        share, left, right = percent(self.coverage), self.left, self.right
        if self.contradicted:
            return (
                f"CONTRADICTION on {', '.join(self.contradicted)}: where the conditions hold, {left} loses more than "
                f"{right} beyond any float error, though {self.claim} is proved. That is a float gap, or a defect of "
                "the prover or of a kernel: please report it. Nothing was dropped for it"
            )
        rest = f"{self.loss} {self.left_loss.rest:.6g} against {self.right_loss.rest:.6g}"
        if self.coverage == 0:
            outcome = "no more" if self.holds else "more"
            return f"is measured to lose {outcome} on this model ({rest}): the proof speaks of no part of it"
        if self.coverage == 1:
            return f"loses no more on this model: proved on {share} of the weights"
        if self.holds:
            return f"loses no more on this model: proved on {share} of the weights, measured on the rest ({rest})"
        return f"proved to lose no more on {share} of the weights, but measured to lose more on the rest ({rest})"


def conditional(
    pairs: Sequence[tuple[Technique, Technique]],
    loss: Loss,
    bench: Bench,
    ask: Ask,
    held: Iterable[Assumption] = (),
    on_progress: OnProgress = silent,
) -> tuple[list[ConditionalEntry], list[Verdict]]:
    """Decide for each pair (A, B), both ways, if A >> B loses no more than B >> A on this model.

    Args:
        pairs: Pairs of techniques of which neither order is proved to lose no more.
        loss: The loss that orders are compared by.
        bench: Checks conditions and measures the rest of the model.
        ask: Returns the prover's verdict on a claim.
        held: Assumptions known to hold for every layer.
        on_progress: Called as claims are decided.

    Returns:
        At most one entry for each pair and way, and the proofs that the entries use.
    """
    wanted = [pair for pair in pairs if all(len(t.steps()) == 1 and not t.promises().changes_basis for t in pair)]
    if not wanted or next(iter(bench.coverage([])), None) is None:
        return [], []
    until, found, used = time.monotonic() + SECONDS, list[ConditionalEntry](), list[Verdict]()
    for k, (a, b) in enumerate(wanted):
        on_progress(k, len(wanted), f"conditions for {a} and {b}")
        sides = [_proofs(a, b, loss, ask, held, until), _proofs(b, a, loss, ask, held, until)]
        proofs = [verdict for side in sides for verdict in side]
        layers: dict[str, list[Coverage]] = {}
        for name, rows in bench.coverage([v.claim for v in proofs]) if proofs else ():
            layers[name] = rows
            on_progress(k, len(wanted), f"conditions on {name}")
        if not layers:
            continue
        entries = [(_entry(v.claim, {name: rows[i] for name, rows in layers.items()}), v) for i, v in enumerate(proofs)]
        split = len(sides[0])
        for part in filter(None, (entries[:split], entries[split:])):
            entry, proof = max(part, key=lambda pair: pair[0].coverage)
            found.append(entry)
            used.append(proof)
    on_progress(len(wanted), len(wanted), "conditions")
    return found, used


def _proofs(
    a: Technique, b: Technique, loss: Loss, ask: Ask, held: Iterable[Assumption], until: float
) -> list[Verdict]:
    """Return proofs that a >> b loses no more than b >> a, each under one of the smallest sets of conditions."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        return []
    templates = OUTPUT_TEMPLATES if loss.needs_inputs else TEMPLATES
    finding = find_condition(dominates(a >> b, b >> a, loss=loss.name), templates, timeout=seconds, ask=ask)
    if not finding.given:
        return []
    proofs = (finding.verdict, *finding.also)
    return [v for v in proofs if covers(v, None, {*held, *(condition.assumption for condition in v.claim.given)})]


def _entry(claim: Claim, layers: Mapping[str, Coverage]) -> ConditionalEntry:
    weights = sum(row.weights for row in layers.values())

    def share(part: Callable[[Coverage], int]) -> float:
        return float(sum(map(part, layers.values())) / weights)

    def holding(condition: str) -> float:
        return float(sum(row.conditions[condition] for row in layers.values()) / weights)

    def groups(condition: str) -> float:
        counts = [row.groups[condition] for row in layers.values()]
        return float(sum(held for _, held in counts) / max(1, sum(among for among, _ in counts)))

    pairs = [(row.left or (0.0, 0.0), row.right or (0.0, 0.0)) for row in layers.values()]
    left, right = (Lost(sum(pair[side][0] for pair in pairs), sum(pair[side][1] for pair in pairs)) for side in (0, 1))
    contradicted = tuple(name for name, row in layers.items() if row.contradicted)
    given = [str(condition) for condition in claim.given]
    return ConditionalEntry(
        claim,
        share(lambda row: row.covered),
        {name: row.covered / row.weights for name, row in layers.items()},
        {condition: holding(condition) for condition in given},
        {condition: groups(condition) for condition in given},
        left,
        right,
        holds=not contradicted and left.rest <= right.rest,
        in_every_layer=not contradicted and all(one[1] <= other[1] for one, other in pairs),
        contradicted=contradicted,
    )


def percent(share: float) -> str:
    """Return a share as text: "100 %" only for all of it, and "0 %" only for none."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"
