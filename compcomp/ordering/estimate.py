"""Say what a search will do before it does it: orders, applications, evaluations, time and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compcomp.bench import Tried
from compcomp.ordering.dag import Orderings
from compcomp.ordering.measure import Tree
from compcomp.ordering.on_model import Wanted
from compcomp.ordering.space import Prefix


@dataclass(frozen=True)
class Estimate:
    """Hold what a search will do: exact or upper bounds for counts, and rough figures for time and memory.

    Attributes:
        orders: How many orders there are ("total"), how many are "merged" and "dropped" by proof, and how many are
            "left" to measure.
        applications: Technique applications to the whole model, at most: equal states on the model save some.
        evaluations: Calls of ``evaluate`` for a whole model, that of the uncompressed model among them, at most: a race
            stops some early.
        batches: Runs of a calibration batch through the model.
        seconds: Estimated seconds, by phase: "calibrate", "apply", "measure" (losses) and "evaluate".
        memory: Estimated bytes that the search holds at once in addition to the model, in main memory and on devices.
        notes: Lines on the limits of these figures.
    """

    orders: Mapping[str, int]
    applications: int
    evaluations: int
    batches: int
    seconds: Mapping[str, float]
    memory: int
    notes: tuple[str, ...] = ()

    @property
    def minutes(self) -> float:
        """The estimated minutes of the whole search, once its claims are decided."""
        return sum(self.seconds.values()) / 60

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "orders": dict(self.orders),
            "applications": self.applications,
            "evaluations": self.evaluations,
            "batches": self.batches,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            "minutes": round(self.minutes, 2),
            "memory": self.memory,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        orders = self.orders
        times = ", ".join(f"{phase} {seconds / 60:.3g}" for phase, seconds in self.seconds.items() if seconds)
        lines = [
            "Estimate, from a trial of each part:",
            "  orders        {total:,} = {merged:,} merged + {dropped:,} dropped by proof + {left:,} left".format(
                **orders
            ),
            f"  applications  at most {self.applications:,} of a technique to the whole model",
            f"  evaluations   at most {self.evaluations:,}",
            f"  minutes       about {self.minutes:.3g}" + (f" ({times})" if times else ""),
            f"  memory        about {self.memory / 2**30:.3g} GiB in addition to the model",
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Work:
    """Hold what a search does on a model.

    Attributes:
        steps: For each technique, by position, the number of applications to the whole model.
        evaluations: The number of models to evaluate.
        losses: The number of states whose losses are measured.
        alone: For each order that is applied whole, because layers are not apart, its techniques.
        depth: The largest number of states in memory at once.
    """

    steps: Counter[int] = field(default_factory=Counter)
    evaluations: int = 0
    losses: int = 0
    alone: Sequence[Prefix] = ()
    depth: int = 0


def work_of(orderings: Orderings, bench: Tried, wanted: Wanted, *, evaluated: bool) -> Work:
    """Return what :class:`compcomp.ordering.on_model.OnModel` will do at most, for the orders that stay now."""
    staying = list(orderings.staying())
    whole = any(technique.whole_model for technique in orderings.techniques)
    steps, losses, alone = Counter[int](), 0, list[Prefix]()
    longest = sorted(staying, key=len, reverse=True)
    chosen = longest[: wanted.evaluations] if evaluated or whole else []
    if wanted.explores(len(staying), evaluated=evaluated, whole=whole):
        steps += _steps(orderings, staying)
        losses += len(staying)
    if chosen and bench.layers_apart(orderings.techniques):
        steps += _steps(orderings, chosen)
    elif chosen:
        alone = chosen
        steps += Counter(step for order in chosen for step in order)
    losses += len(chosen)
    if wanted.by_layer:
        steps += Counter(longest[0])
        losses += 1
    depth = 2 if alone else 1 + len(longest[0])
    return Work(steps, (1 + len(chosen) + wanted.by_layer) if evaluated else 0, losses, alone, depth)


def _steps(orderings: Orderings, orders: Sequence[Prefix]) -> Counter[int]:
    return Counter(Tree.of(orderings, orders).steps[1:])


def estimate(
    orderings: Orderings, bench: Tried | None, wanted: Wanted, *, evaluated: bool, notes: Sequence[str] = ()
) -> Estimate:
    """Return the estimate of a search whose claims are decided, from a trial of each of its parts.

    Args:
        orderings: The orderings, with the orders that proofs leave.
        bench: The bench of the model, None without a model.
        wanted: The user's wishes.
        evaluated: True if the user evaluates models.
        notes: Further notes.
    """
    counts = orderings.counted()
    orders = {"total": counts["total"], "merged": counts["merged"], "dropped": counts["dropped"]}
    orders["left"] = counts["measured"]
    if bench is None:
        return Estimate(
            orders, 0, 0, 0, {}, 0, ("orders are ranked on generated layers, which is not estimated", *notes)
        )
    work = work_of(orderings, bench, wanted, evaluated=evaluated)
    trial = bench.trial(orderings.techniques, orderings.path(next(iter(orderings.staying()))))
    passes = [bench.passes([orderings.techniques[step] for step in order]) for order in work.alone]
    batches = trial.batches * (1 + sum(passes))
    seconds = {
        "calibrate": trial.batches * (trial.calibrate + sum(passes) * (trial.calibrate + trial.forward)),
        "apply": sum(trial.apply[step] * count for step, count in work.steps.items()),
        "measure": trial.losses * work.losses,
        "evaluate": trial.evaluate * work.evaluations,
    }
    memory = trial.dense + work.depth * trial.state
    applications = sum(work.steps.values())
    return Estimate(orders, applications, work.evaluations, batches, seconds, memory, (*trial.notes, *notes))
