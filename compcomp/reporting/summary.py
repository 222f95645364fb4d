"""Summarise a plan and its verdicts as plain rows, so that every view shows the same."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from compcomp.language.assumption import Assumption
from compcomp.language.refusal import Refusal
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.conditional import percent
from compcomp.ordering.dag import ON_THIS_MODEL, OUTCOMES, UNDER_CONDITIONS, Outcome

if TYPE_CHECKING:
    from compcomp.ordering.measurement import Measurement
    from compcomp.ordering.plan import PlanData

STATUSES = tuple(Status)
"""The statuses in the order in which they are shown, decided ones first."""

LISTED = 50_000
"""The most orders of a plan whose excluded orders are listed by name."""

LOG_FROM = 20.0
"""The ratio to the dense model from which on distances from it are drawn on a log scale."""


# ------------------------------------------------------------------------------------------------ text


def number(value: float | None) -> str:
    """Return a number with four significant digits."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:#.4g}".removesuffix(".")


def ratio(value: float | None) -> str:
    """Return a ratio as text, such as "1.07x". Empty if it is not a finite number."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:,.0f}×" if abs(value) >= 1000 else f"{value:.3g}×" if abs(value) >= 10 else f"{value:.2f}×"


def orders_of(count: int) -> str:
    """Return a number of orders as text, such as "1 order" or "2 orders"."""
    return "1 order" if count == 1 else f"{count:,} orders"


class Names:
    """Give techniques short names: the class, and the parameters that distinguish techniques of one class."""

    def __init__(self, techniques: Iterable[Technique]) -> None:
        kinds: dict[str, list[Technique]] = defaultdict(list)
        for technique in {str(t): t for t in techniques}.values():
            kinds[type(technique).__name__].append(technique)
        self.short: dict[str, str] = {}
        for kind, members in kinds.items():
            given = [f.name for f in fields(members[0])]
            different = {name: len({repr(getattr(t, name)) for t in members}) for name in given}
            telling = [name for name in given if different[name] > 1]
            telling = [name for name in telling if different[name] == len(members)][:1] or telling
            for t in members:
                shown = ", ".join(f"{name}={getattr(t, name)}" for name in telling)
                self.short[str(t)] = f"{kind}({shown})" if shown else kind
        self.initials: dict[str, str] = {}
        for full, short in self.short.items():
            letters = "".join(c for c in short.partition("(")[0] if c.isupper()) or short[:1]
            same = sum(re.sub(r"\d+$", "", other) == letters for other in self.initials.values())
            self.initials[full] = f"{letters}{same + 1}" if same else letters
        longest_first = sorted(self.short, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """Return a text that names techniques in full, with their short names."""
        return self._known.sub(lambda found: self.short[found[0]], text)

    def initialled(self, text: str) -> str:
        """Return a text that names techniques in full, with their initials."""
        return self._known.sub(lambda found: self.initials[found[0]], text)

    def legend(self) -> str:
        """Return the meaning of the initials."""
        return ", ".join(f"{initials} {self.short[full]}" for full, initials in self.initials.items())


# ------------------------------------------------------------------------------------------------ plans


@dataclass(frozen=True)
class Row:
    """Hold one measured order.

    Attributes:
        place: Its place in the ranking, from 1.
        order: The order as text.
        short: The order with short names.
        value: The value it is ranked by.
        times_dense: Its ratio to the value of the dense model, None without one.
        rate: The compression rate, None without a model.
        bar: The start and end of its bar, from 0 to 1. None if there is no number.
        interval: The interval of its value.
        whisker: The interval from 0 to 1.
        behind: How much worse than the best it is, low and high.
        parts: The number of parts it was measured on if it was stopped early. Its value is then an estimate.
    """

    place: int
    order: str
    short: str
    value: float
    times_dense: float | None
    rate: float | None
    bar: tuple[float, float] | None
    interval: tuple[float, float] | None = None
    whisker: tuple[float, float] | None = None
    behind: tuple[float, float] | None = None
    parts: int | None = None

    @property
    def shown(self) -> str:
        """The value as text."""
        return f"{'≈ ' if self.parts is not None else ''}{number(self.value)}"


@dataclass(frozen=True)
class Ranking:
    """Hold the measured orders, best first.

    Attributes:
        what: The metric or loss they are ranked by.
        lower: True if lower is better, None if no two differ.
        dense: The value of the uncompressed model.
        rows: The orders.
        axis: The position of the dense model's line, from 0 to 1.
        log: True if bars are on a log scale.
        worst: The last of the rows that may be chosen.
    """

    what: str
    lower: bool | None
    dense: float | None
    rows: tuple[Row, ...]
    axis: float
    log: bool
    worst: Row | None = None

    @property
    def caption(self) -> str:
        """A sentence about the bars."""
        better = {True: ", lower is better", False: ", higher is better", None: ""}[self.lower]
        if self.dense is None:
            return f"Ranked by {self.what}{better}; bars start at 0"
        scale = " on a log scale" if self.log else ""
        whiskers = ", lines their intervals" if any(row.whisker for row in self.rows) else ""
        return (
            f"Ranked by {self.what}{better}; bars show the distance from the dense model's {number(self.dense)}{scale}"
            f"{whiskers}"
        )


def ranking(plan: PlanData, names: Names) -> Ranking:
    """Return the measurements with their bars."""
    metric = plan.metric if any(plan.metric in one.metrics for one in plan.measurements) else None
    what = plan.loss if metric is None else metric
    values = [_value(one, metric, plan.loss) for one in plan.measurements]
    dense = None if metric is None else plan.dense.get(metric)
    if dense is not None and not math.isfinite(dense):
        dense = None
    finite = [v for v in values if math.isfinite(v)]
    intervals = [_interval(one, metric) for one in plan.measurements]
    ends = [end for interval in intervals if interval for end in interval if math.isfinite(end)]
    log = dense is not None and dense > 0 and all(v > 0 for v in (*finite, *ends)) and _widest(finite, dense) > LOG_FROM

    def place(value: float) -> float:
        if dense is None:
            return value
        return math.log(value / dense) if log else value - dense

    low = min([0.0, *map(place, [*finite, *ends])])
    high = max([0.0, *map(place, [*finite, *ends])])
    size = high - low or 1.0
    axis = -low / size

    def bar(value: float) -> tuple[float, float] | None:
        if math.isnan(value):
            return None
        end = (place(value) - low) / size if math.isfinite(value) else float(value > 0)
        return min(axis, end), max(axis, end)

    def whisker(interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is None or not all(map(math.isfinite, interval)):
            return None
        return (place(interval[0]) - low) / size, (place(interval[1]) - low) / size

    rows = tuple(
        Row(
            place=k,
            order=one.text,
            short=names(one.text),
            value=value,
            times_dense=value / dense if dense and math.isfinite(value) else None,
            rate=one.compression_rate,
            bar=bar(value),
            interval=interval,
            whisker=whisker(interval),
            behind=one.behind,
            parts=one.parts if one.note else None,
        )
        for k, (one, value, interval) in enumerate(zip(plan.measurements, values, intervals, strict=True), 1)
    )
    lower = None
    if len(set(finite)) > 1:
        lower = finite[0] < finite[-1] if plan.lower is None else plan.lower
    worst = next((row for row in rows if row.order == plan.worst.text), None)
    return Ranking(what, lower, dense, rows, axis, log, worst)


def _interval(one: Measurement, metric: str | None) -> tuple[float, float] | None:
    return None if metric is None else one.intervals.get(metric)


def _value(one: Measurement, metric: str | None, loss: str) -> float:
    value = one.losses.get(loss) if metric is None else one.metrics.get(metric)
    return math.nan if value is None else float(value)


def _widest(values: list[float], dense: float) -> float:
    return max((max(v / dense, dense / v) for v in values), default=1.0)


def spread(bounds: tuple[float, float] | None) -> str:
    """Return two bounds as text, such as "3.01 to 3.22"."""
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def behind(bounds: tuple[float, float] | None) -> str:
    """Return how much worse than the best an order is, as text such as "+0.012 to +0.038"."""
    return "" if bounds is None else f"{bounds[0]:+.2g} to {bounds[1]:+.2g}"


def named(plan: PlanData) -> Names:
    """Return names for the techniques of a plan, those of its order first."""
    return Names([*plan.order, *plan.orderings.techniques])


def sizes_differ(plan: PlanData) -> bool:
    """Return True if the measured orders leave models of different sizes, and there is something to choose between."""
    rates = {one.compression_rate for one in plan.measurements if one.compression_rate is not None}
    return len(rates) > 1 and len(plan.pareto) > 1


def headline(plan: PlanData) -> str:
    """Return a sentence that says if the order is proved optimal or measured best."""
    return f"{plan.standing[:1].upper()}{plan.standing[1:]}."


def counted(plan: PlanData) -> str:
    """Return the numbers of merged, dropped and measured orders, as text."""
    total = orders_of(plan.orders["total"])
    counted = "{merged:,} merged + {dropped:,} dropped + {measured:,} measured".format(**plan.orders)
    still = f" + {plan.orders['open']:,} not reached" if "open" in plan.orders else ""
    return f"{total} = {counted}{still}"


def applied(plan: PlanData) -> str:
    """Return the number of technique applications that sharing and proofs left, as text."""
    done, full = plan.applications["done"], plan.applications["full_tree"]
    return f"{done:,} of the {full:,} technique applications that all orders take when prefixes are shared"


@dataclass(frozen=True)
class Group:
    """Hold orders that were excluded in the same way: merged by the same proofs, or dropped by the same rules."""

    kind: str
    reason: str
    outcomes: tuple[Outcome, ...]


def grouped(plan: PlanData, names: Names) -> list[Group]:
    """Return the orders that proofs excluded, the largest groups first. Empty if there are too many orders."""
    if plan.orders["total"] > LISTED:
        return []
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for one in plan.orderings.outcomes():
        if one.kind == "merged":
            reasons = [names(f"{v.claim} ({proved_by([v])})") for v in one.proofs]
            groups[one.kind, "; ".join([*reasons, *_measured(one)])].append(one)
        elif one.kind == "dropped":
            groups[one.kind, "; ".join([*filter(None, [proved_by(one.proofs)]), *_measured(one)])].append(one)
    found = [Group(kind, reason, tuple(outcomes)) for (kind, reason), outcomes in groups.items()]
    return sorted(found, key=lambda g: (OUTCOMES.index(g.kind), -len(g.outcomes)))


def _measured(outcome: Outcome) -> list[str]:
    """Return the measured part of the reason for an outcome, without its numbers."""
    if not outcome.note:
        return []
    if UNDER_CONDITIONS in outcome.note:
        return [f"{UNDER_CONDITIONS}: proved where they hold, measured on the rest"]
    return [
        ON_THIS_MODEL if outcome.note == ON_THIS_MODEL else "measured on this model: it loses more on some layers alone"
    ]


def proved_by(proofs: Iterable[Verdict]) -> str:
    """Return the rules that some proofs depend on, and their reach, as text."""
    return "; ".join(dict.fromkeys(f"{decided_by(v)}, {v.reach or v.scope.describe()}" for v in proofs))


@dataclass(frozen=True)
class Conditional:
    """Hold one pair that is proved under conditions.

    Attributes:
        left: The left side with short names.
        right: The right side with short names.
        given: The conditions.
        holds_on: The share of the weights that the proof covers.
        groups: By condition, the share of the groups where it holds.
        outcome: The outcome on the model.
        good: True if the left side loses no more on the model.
    """

    left: str
    right: str
    given: str
    holds_on: str
    groups: str
    outcome: str
    good: bool


def under_conditions(plan: PlanData, names: Names) -> list[Conditional]:
    """Return the claims proved under conditions, and how far they hold on the model.

    Those that hold there come first.
    """
    return [
        Conditional(
            left=names(str(entry.left)),
            right=names(str(entry.right)),
            given=", ".join(entry.given),
            holds_on=percent(entry.coverage),
            groups=", ".join(f"{name} in {percent(share)}" for name, share in entry.groups.items()),
            outcome=names(entry.conclusion),
            good=entry.holds,
        )
        for entry in sorted(plan.conditional, key=lambda entry: (bool(entry.contradicted), entry.holds))[::-1]
    ]


UNDER_CONDITIONS_SAY = (
    "These pairs are proved neither way in general, but one order loses no more than the other where the conditions "
    "hold. A proof speaks of those parts of a layer, out of which no step reaches, that meet all conditions; what is "
    "left was measured. The outcome is about this model only."
)

STANDS_FOR = {"merged": "equals", "dropped": "never loses less than"}
OUTCOMES_MEAN = {
    "merged": "leaves every layer in the same state as another order: proved, or found on this model",
    "dropped": "never loses less than another order: proved, or measured on this model",
    "measured": "excluded by no proof",
}


# ------------------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class Numbered:
    """Hold verdicts in the order in which they are shown, and their distinct assumptions in the order seen."""

    verdicts: tuple[Verdict, ...]
    assumptions: tuple[Assumption, ...]

    def numbers(self, verdict: Verdict) -> list[int]:
        """Return the numbers of its assumptions, from 1."""
        return sorted({self.assumptions.index(one) + 1 for one in verdict.assumptions})


def numbered(verdicts: Iterable[Verdict]) -> Numbered:
    """Return the verdicts with decided ones first, and otherwise in the given order."""
    shown = tuple(sorted(verdicts, key=lambda v: STATUSES.index(v.status)))
    return Numbered(shown, tuple(dict.fromkeys(one for v in shown for one in v.assumptions)))


def tally(verdicts: Iterable[Verdict]) -> str:
    """Return the number of verdicts of each status as text, such as "3 PROVED, 1 UNKNOWN"."""
    given = [v.status for v in verdicts]
    return ", ".join(f"{given.count(s):,} {s}" for s in STATUSES if s in given) or "none"


def decided_by(verdict: Verdict) -> str:
    """Return a short text on the evidence that decided a claim, or the cause if it is undecided."""
    if verdict.status in (Status.UNKNOWN, Status.DISAGREE):
        return verdict.cause or "no reason given"
    if verdict.status is Status.REFUTED:
        return "counterexample" + (f" ({verdict.stage})" if verdict.stage else "")
    return verdict.reason or verdict.cause or verdict.stage or "no reason given"


def missed(verdict: Verdict) -> tuple[Refusal, ...]:
    """Return the reasons for which rules about such claims do not prove an unknown one.

    The first refusal is left out, since the cause names it.
    """
    return tuple(refusal for refusal in verdict.tried[1:] if not refusal.about_other_claims)


def graded(verdict: Verdict) -> str:
    """Return the grade, with the solvers that answered."""
    solvers = sorted({name for q in verdict.queries for name in (q.solver, q.second_solver) if name})
    return ", ".join(([str(verdict.grade)] if verdict.grade else []) + solvers)


def worked(verdict: Verdict) -> str:
    """Return the work done, as text."""
    parts = []
    if "seconds" in verdict.work:
        parts.append(f"{verdict.work['seconds']:.3g} s")
    if verdict.work.get("rlimit"):
        parts.append(f"solver resource count {verdict.work['rlimit']:,.0f}")
    parts += [f"{k} {number(v)}" for k, v in verdict.work.items() if k not in ("seconds", "rlimit")]
    return ", ".join(parts)
