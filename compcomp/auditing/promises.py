"""Ask for each promise of a step whether later steps keep it, and what would keep it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from compcomp.auditing.asking import Answer, Asker, invariants_of, keeps_claim
from compcomp.auditing.steps import PRUNES, TRAINS, UNKNOWN, Step, ToolRecipe
from compcomp.language.claim import dominates, equal
from compcomp.language.technique import Sequence, Technique
from compcomp.language.verdict import Status
from compcomp.layers.state import INVARIANTS
from compcomp.techniques import GPTQ, Magnitude

NEAREST = {
    "llm-compressor": "QuantizationModifier",
    "Olive": "the pass Rtn",
    "ModelOpt": "algorithm max",
    "compcomp": "AbsMax",
    "coremltools": "linear_quantize_weights with joint_compression",
}
"""The step that rounds to nearest in each tool."""
REPLACED = "REPLACED"
"""The status of a grid or rank that a later step replaces by one of its own."""


@dataclass(frozen=True)
class Promise:
    """One thing that a step sets up, and whether it holds at the end.

    Args:
        step: the place of the step in the recipe.
        invariant: mask, n:m, grid, rank or shape.
        status: PROVED, REFUTED, UNKNOWN or REPLACED.
        text: one line about it.
        by: the place of the first step after which it is not proved.
        answer: the evidence, None if nothing was asked.
    """

    step: int
    invariant: str
    status: str
    text: str
    by: int | None = None
    answer: Answer | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the promise as plain data."""
        found = {
            "step": self.step,
            "invariant": self.invariant,
            "status": self.status,
            "text": self.text,
            "by": self.by,
        }
        return {**found, **_evidence(self.answer)}


@dataclass(frozen=True)
class Relation:
    """How two neighbouring steps relate: they commute, merge, one does nothing, or one order is no worse."""

    steps: tuple[int, int]
    kind: str
    text: str
    answer: Answer

    def to_json(self) -> dict[str, Any]:
        """Return the relation as plain data."""
        return {"steps": list(self.steps), "kind": self.kind, "text": self.text, **_evidence(self.answer)}


@dataclass(frozen=True)
class Change:
    """A change that keeps a broken promise, which is itself proved.

    Args:
        promise: the invariants that it keeps.
        text: what to change, by the tool's own names where it has some.
        sequence: the changed order here.
        answers: the proofs.
    """

    promise: tuple[str, ...]
    text: str
    sequence: str
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the change as plain data."""
        claims = [str(answer.claim) for answer in self.answers]
        return {"keeps": list(self.promise), "change": self.text, "sequence": self.sequence, "proved": claims}


def _evidence(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    verdict = answer.verdict
    return {
        "claim": str(answer.claim),
        "note": answer.note,
        "cause": verdict.cause,
        "assumptions": list(map(str, verdict.assumptions)),
        "witness": verdict.witness.to_json() if verdict.witness and answer.status is Status.REFUTED else None,
    }


@dataclass(frozen=True)
class Order:
    """The result of an audit of one order of steps."""

    recipe: ToolRecipe
    promises: tuple[Promise, ...]
    relations: tuple[Relation, ...]
    changes: tuple[Change, ...]

    @property
    def broken(self) -> bool:
        """True if a promise is refuted, or the tool would refuse the recipe or read it as something else."""
        return any(p.status == Status.REFUTED for p in self.promises) or any(p.breaks for p in self.recipe.problems)

    @property
    def undecided(self) -> bool:
        """True if a promise is neither proved nor refuted."""
        return any(p.status == Status.UNKNOWN for p in self.promises)

    def to_json(self) -> dict[str, Any]:
        """Return the audit of this order as plain data."""
        recipe = self.recipe
        return {
            "tool": recipe.tool,
            "version": recipe.version,
            "name": recipe.name,
            "problems": [{"text": p.text, "breaks": p.breaks} for p in recipe.problems],
            "notes": list(recipe.notes),
            "steps": [step.to_json() for step in recipe.steps],
            "promises": [promise.to_json() for promise in self.promises],
            "relations": [relation.to_json() for relation in self.relations],
            "changes": [change.to_json() for change in self.changes],
        }


def decided(recipe: ToolRecipe, asker: Asker) -> Order:
    """Ask everything about one order of steps."""
    promises = _promises(recipe, asker)
    relations = tuple(_relations(recipe, asker))
    return Order(recipe, promises, relations, tuple(_changes(recipe, promises, asker)))


def _set_up(step: Step) -> list[str]:
    """Return what a step promises, in the order of tables."""
    found = frozenset[str]().union(*(invariants_of(t) for t in step.techniques)) if step.techniques else frozenset()
    return [name for name in INVARIANTS if name in found]


def _techniques(steps: tuple[Step, ...]) -> tuple[Technique, ...]:
    return tuple(t for step in steps for t in step.techniques)


def _promises(recipe: ToolRecipe, asker: Asker) -> tuple[Promise, ...]:
    steps, last = recipe.steps, len(recipe.steps) - 1
    found = list[Promise]()
    set_up = [_set_up(step) for step in steps]
    for place, step in enumerate(steps):
        if not any(later.techniques or later.does == UNKNOWN for later in steps[place + 1 :]):
            break
        for invariant in set_up[place]:
            later = [k for k in range(place + 1, last + 1) if invariant in set_up[k]]
            if invariant in ("grid", "rank") and later:
                text = f"{steps[later[0]].name} sets up a {invariant} of its own in place of that of {step.name}"
                found.append(Promise(place, invariant, REPLACED, text, later[0]))
            else:
                first = not any(invariant in set_up[k] for k in range(place))
                found.append(_promise(recipe, place, invariant, asker, first=first))
    return tuple(found)


def _promise(recipe: ToolRecipe, place: int, invariant: str, asker: Asker, *, first: bool) -> Promise:
    steps, last = recipe.steps, len(recipe.steps) - 1
    name = steps[place].name
    unknown = [k for k in range(place + 1, last + 1) if steps[k].does == UNKNOWN]
    if unknown:
        text = (
            f"{invariant} of {name}: whether {steps[unknown[0]].name} keeps it is not known, as it is no technique here"
        )
        return Promise(place, invariant, Status.UNKNOWN, text, unknown[0])
    answer = asker.answer(keeps_claim(_techniques(steps), invariant))
    if answer.status is Status.PROVED:
        return Promise(
            place, invariant, Status.PROVED, f"{invariant} of {name}: every later step keeps it", None, answer
        )
    if not first:  # the claim is about earlier masks too: ask about this one alone
        alone = asker.answer(keeps_claim(_techniques(steps[place:]), invariant))
        if alone.status is Status.PROVED:
            text = f"{invariant} of {name}: kept by what follows, if {name} comes first; an earlier one may be broken"
            return Promise(place, invariant, Status.UNKNOWN, text, None, alone)
        answer = alone
    begin = 0 if first else place
    by = next(
        (
            k
            for k in range(place + 1, last + 1)
            if steps[k].techniques
            and asker.answer(keeps_claim(_techniques(steps[begin : k + 1]), invariant)).status is not Status.PROVED
        ),
        last,
    )
    verb = "breaks it" if answer.status is Status.REFUTED else "is not proved to keep it"
    return Promise(place, invariant, str(answer.status), f"{invariant} of {name}: {steps[by].name} {verb}", by, answer)


def _relations(recipe: ToolRecipe, asker: Asker) -> list[Relation]:
    found = list[Relation]()
    places = [k for k, step in enumerate(recipe.steps) if step.techniques and step.does != TRAINS]
    for one, two in pairwise(places):
        if any(recipe.steps[k].does in (TRAINS, UNKNOWN) for k in range(one, two)):
            continue
        first, second = (Sequence(recipe.steps[k].techniques) for k in (one, two))
        names = recipe.steps[one].name, recipe.steps[two].name
        # A proof is about the techniques. A rounded scale, for one, makes pruning first worse on some layers.
        but = " (but for what differs)" if recipe.steps[one].differs or recipe.steps[two].differs else ""
        both, turned = Sequence((*first, *second)), Sequence((*second, *first))
        nothing = asker.proved(equal(both, first))
        if nothing.status is Status.PROVED:
            text = f"{names[1]} changes nothing after {names[0]}: it can be left out{but}"
            found.append(Relation((one, two), "does nothing", text, nothing))
            continue
        merged = asker.proved(equal(both, second))
        if merged.status is Status.PROVED:
            text = f"{names[0]} has no effect before {names[1]}: it can be left out{but}"
            found.append(Relation((one, two), "merge", text, merged))
        swapped = asker.answer(equal(both, turned))
        if swapped.status is Status.PROVED:
            text = f"{names[0]} and {names[1]} commute: both orders give the same layer{but}"
            found.append(Relation((one, two), "commute", text, swapped))
            continue
        if swapped.status is Status.REFUTED:
            text = f"{names[0]} and {names[1]} do not commute: a small layer differs"
            found.append(Relation((one, two), "do not commute", text, swapped))
        for better, worse, said in ((both, turned, "as it is"), (turned, both, "the other way round")):
            loss = "output_l2" if any(t.needs_inputs for t in both) else "weight_l2"
            answer = asker.proved(dominates(better, worse, loss=loss))
            if answer.status is Status.PROVED:
                text = f"{names[0]} and {names[1]}: the order {said} is never worse under {loss}{but}"
                found.append(Relation((one, two), "no worse", text, answer))
    return found


def _changes(recipe: ToolRecipe, promises: tuple[Promise, ...], asker: Asker) -> list[Change]:
    """Return the changes that are proved to keep what the recipe breaks."""
    broken = [p for p in promises if p.status == Status.REFUTED and p.by is not None]
    found = list[Change]()
    for place in dict.fromkeys(p.by for p in broken if p.by is not None):
        for text, techniques, invariants in _candidates(recipe, place, broken):
            answers = [asker.proved(keeps_claim(techniques, invariant)) for invariant in invariants]
            if all(answer.status is Status.PROVED for answer in answers):
                found.append(Change(tuple(invariants), text, str(Sequence(techniques)), tuple(answers)))
    return found


Candidate = tuple[str, tuple[Technique, ...], list[str]]


def _candidates(recipe: ToolRecipe, place: int, broken: list[Promise]) -> list[Candidate]:
    """Return what might keep the promises that the step at ``place`` breaks."""
    steps = recipe.steps
    step = steps[place]
    mine = [p for p in broken if p.by == place]
    invariants = list(dict.fromkeys(p.invariant for p in mine))
    promised = [name for name in INVARIANTS if any(name in _set_up(s) for s in steps)]
    before, after = _techniques(steps[:place]), _techniques(steps[place + 1 :])
    found: list[Candidate] = []
    if (kept := _with_mask(step.techniques)) is not None:
        if step.keeps_mask:
            text = f"give {step.name} {step.keeps_mask}"
        else:
            missing = f"{recipe.tool} {recipe.version} has no parameter for it, compcomp does: mask='kept'"
            text = f"keep the mask in {step.name}: {missing}"
        found.append((text, (*before, *kept, *after), promised))
    if step.nearest is not None:
        nearest = tuple(step.nearest if isinstance(t, GPTQ) else t for t in step.techniques)
        what = NEAREST.get(recipe.tool, "a step that rounds to nearest")
        found.append((f"round to nearest in place of {step.name}: {what}", (*before, *nearest, *after), promised))
    others = [k for k in range(len(steps)) if k != place]
    for to in sorted({p.step for p in mine}):
        order = [*others[:to], place, *others[to:]]
        text = f"move {step.name} before {steps[to].name}"
        found.append((text, tuple(t for k in order for t in steps[k].techniques), promised))
    patterns = [t for p in mine for t in steps[p.step].techniques if steps[p.step].does == PRUNES]
    if "n:m" in invariants and patterns and step.does != PRUNES:
        given: Any = patterns[0]
        again = Magnitude(sparsity=given.sparsity, pattern=given.pattern)
        kept_too = [name for name in promised if name not in ("mask",)]
        text = f"prune once more after {step.name}, by magnitude, in the same pattern (which holds, with another mask)"
        found.append((text, (*before, *step.techniques, again, *after), kept_too))
    return found


def _with_mask(techniques: tuple[Technique, ...]) -> tuple[Technique, ...] | None:
    """Return the techniques with mask='kept' where they have that parameter and do not set it, else None."""
    changed = tuple(
        replace(t, mask="kept") if getattr(t, "mask", None) == "ignored" and _has(t, "mask") else t for t in techniques
    )
    return None if changed == techniques else changed


def _has(technique: Technique, name: str) -> bool:
    return any(f.name == name and f.init for f in fields(technique))
