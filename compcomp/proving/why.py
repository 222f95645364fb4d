"""Ask the rules about a claim, and say what each of them misses and what to try."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.conditions import TEMPLATES
from compcomp.language.refusal import Refusal, RuleAnswer
from compcomp.language.technique import Sequence, Technique, has_fields
from compcomp.proving.lemma_layer import with_layer
from compcomp.proving.proof import Proof, Rule
from compcomp.proving.reasons import convention
from compcomp.proving.rules import ANY_BASIS, AT_SHAPE, RULES
from compcomp.proving.rules.basis import simplified, unlike_bases
from compcomp.proving.rules.likeness import standing, unreliable
from compcomp.proving.session import Session
from compcomp.proving.solver import Solver
from compcomp.terms import ROUNDINGS, TIES

Begin = Callable[[float], Session]
"""Begins the queries of one proof, until a time on the clock of ``time.monotonic``."""

ADVICE_SECONDS = 1.0
"""For what to try, once a claim is unknown: the rules are asked again under conditions and other conventions."""
VALUE_SECONDS = 1.0
"""For the counterexample of a lemma that failed."""
LAYER_SECONDS = 1.0
"""For a layer on which a lemma fails."""
CONVENTIONS = {"ties": TIES, "rounding": ROUNDINGS}
"""Parameters of techniques that are conventions, with their values."""
SMALL = ("2x4", "1x4", "1x8")
"""Scopes to try in place of a larger one."""
TELLING = ("exchange", "orthogonal", "composed", "kept", "fits", "last step", "normal")
"""Rules of which a reason says most, among those that came equally far."""


def asked_of_rules(
    claim: Claim, begin: Begin, until: float, scope: Scope | None = None
) -> tuple[Proof | None, tuple[Refusal, ...]]:
    """Ask the rules in turn until one proves the claim.

    Returns:
        The proof, or None, and the refusals before it, the most telling first. Rules that are about other kinds of
        claims come last.
    """
    before = standing(claim)
    if before is None:
        return None, (Refusal(unreliable(claim), "likeness"),)
    reducing = begin(until)
    simple, contracts = simplified(claim, reducing)
    refusals: list[Refusal] = []
    # A rule may prove the claim as it stands, where only one side of it is reduced.
    for form in (simple, claim) if contracts else (simple,):
        for rule in (*RULES, *_at(scope, form)):
            found = _of(rule, form, begin, until)
            if isinstance(found, Refusal):
                refusals += [found] if form is simple else []
            elif standing(claim) != before:
                return None, (Refusal("a technique changed while the rules were asked", "likeness"),)
            elif form is not simple:
                return found, ranked(refusals)
            else:
                queries = (*reducing.queries, *found.queries)
                found = replace(found, assumptions=(*found.assumptions, *contracts), queries=queries)
                return found, ranked(refusals)
    return None, ranked(refusals)


def _at(scope: Scope | None, claim: Claim) -> tuple[Rule, ...]:
    """Return the rules for the layers of a scope of one shape; none for any other scope."""
    if scope is None or scope.kind != "shape" or scope.shape is None or claim.changes_basis:
        return ()
    return tuple(rule(scope.shape) for rule in AT_SHAPE)


def _of(rule: Rule, claim: Claim, begin: Begin, until: float) -> Proof | Refusal:
    """Ask one rule, unless its argument does not hold in a basis that the claim's techniques change."""
    if claim.changes_basis and isinstance(claim, rule.claims) and rule not in ANY_BASIS:
        return unlike_bases(claim, rule.name)
    return rule(claim, begin(until))


def ranked(refusals: Iterable[Refusal]) -> tuple[Refusal, ...]:
    """Order refusals, the most telling first, with the last one of each rule."""
    last = {refusal.rule: refusal for refusal in refusals}

    def place(refusal: Refusal) -> tuple[int, int]:
        known = TELLING.index(refusal.rule) if refusal.rule in TELLING else len(TELLING)
        return -refusal.reached, known

    return tuple(sorted(last.values(), key=place))


# -------------------------------------------------------------------------------------- what to try


def explained(
    claim: Claim, scope: Scope, refusals: tuple[Refusal, ...], begin: Begin, until: float
) -> tuple[Refusal, ...]:
    """Add to refusals the counterexamples of failed lemmas, and to the first a layer that shows it and what to try."""
    found = [with_values(refusal, begin(until).solver, until) for refusal in refusals]
    if found and not found[0].about_other_claims and found[0].rule != "likeness":
        verified = tuple(_advice(claim, begin, min(until, time.monotonic() + ADVICE_SECONDS)))
        smaller = smaller_scope(claim, scope)
        more = verified or found[0].advice
        found[0] = with_layer(claim, found[0], min(until, time.monotonic() + LAYER_SECONDS))
        found[0] = replace(found[0], advice=(*more, *((f"--scope {smaller}",) if smaller else ())))
    return tuple(found)


def with_values(refusal: Refusal, solver: Solver, until: float) -> Refusal:
    """Add the values of the solver's counterexample to the lemma that failed."""
    lemma, seconds = refusal.lemma, min(VALUE_SECONDS, until - time.monotonic())
    if lemma is None or lemma.answer != "sat" or seconds <= 0:
        return refusal
    scales = re.findall(r"^\(declare-fun (\|?c\d*_\S.*?) \(\) Real\)$", lemma.smtlib, re.MULTILINE)
    known = "".join(f"(assert (= {name} 1.0))\n" for name in scales[:1])  # most lemmas hold at every scale or at none
    model: dict[str, str] = {}
    for text in dict.fromkeys((lemma.smtlib.replace("(check-sat)", f"{known}(check-sat)"), lemma.smtlib)):
        answer = solver.ask(text, seconds)
        if answer.answer == "sat":
            model = answer.model
            break
    unused = {name for name in model if lemma.smtlib.count(name) <= 2}  # declared, and perhaps said to be at least 0
    return replace(refusal, values=values_of({name: x for name, x in model.items() if name not in unused}))


def values_of(model: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Name the variables of a lemma as its rule does.

    Weights are called a and b, then come scales, norms h of inputs, and results of maps: ``B2(a)`` is what step 2 of
    the second sequence makes of a.
    """
    contexts = sorted(name for name in model if re.match(r"c\d*_", name))
    found: list[tuple[int, str, str]] = []
    for name, value in model.items():
        if match := re.fullmatch(r"w_(\w+)", name):
            found.append((0, match[1], value))
        elif name in contexts:
            found.append((1, "scale" + (str(contexts.index(name) + 1) if len(contexts) > 1 else ""), value))
        elif match := re.fullmatch(r"q_([A-Z])(\d+)_([a-z])_\d+", name):
            found.append((3, f"{match[1]}{int(match[2]) + 1}({match[3]})", value))
        elif re.fullmatch(r"\w+", name):
            found.append((2, name, value))
    return tuple((name, value) for _, name, value in sorted(found))


def _advice(claim: Claim, begin: Begin, until: float) -> Iterator[str]:
    """Conditions, and other conventions, under which some rule proves the claim."""
    for condition in TEMPLATES:
        if condition not in claim.given and condition.concerns(claim):
            try:
                stronger = replace(claim, given=(*claim.given, condition))
            except InputError:  # the condition does not go with these techniques
                continue
            if proved := _proved(stronger, begin, until):
                yield f"given {condition} (proved by rule {proved})"
                break
    for name, values in CONVENTIONS.items():
        for value in values:
            other = None if value == "any" else _under(claim, name, value)
            if other is not None and (proved := _proved(other, begin, until)):
                yield f"{convention(name, value)} (proved by rule {proved})"
                break


def _proved(claim: Claim, begin: Begin, until: float) -> str:
    """Return the name of the rule that proves a claim in time, or an empty text."""
    if until <= time.monotonic():
        return ""
    proof, _ = asked_of_rules(claim, begin, until)
    return "" if proof is None else proof.rule


def _under(claim: Claim, name: str, value: str) -> Claim | None:
    """Return the claim of techniques with another convention; None where that changes none of them."""

    def of(technique: Technique) -> Technique:
        if has_fields(technique) and any(f.name == name and f.init for f in fields(technique)):
            return replace(technique, **{name: value})
        return technique

    try:
        changed = claim.with_sides(*(Sequence(tuple(map(of, side))) for side in claim.sides))
    except (InputError, TypeError, ValueError):
        return None
    return None if str(changed) == str(claim) else changed


def smaller_scope(claim: Claim, scope: Scope) -> str:
    """Return a small scope at which a formula may decide the claim; empty where none is likely to."""
    made_of_steps = all(t.steps() for sequence in claim.sequences for t in sequence)
    if not made_of_steps or claim.changes_inputs or claim.changes_basis or (claim.loss and claim.part is None):
        return ""
    for text in SMALL:
        rows, columns = map(int, text.split("x"))
        asked = scope.shape
        if (asked is None or rows * columns < asked[0] * asked[1]) and claim.fits((rows, columns)):
            return text
    return ""


def cause_of(refusals: tuple[Refusal, ...]) -> str:
    """Name the nearest miss and what to try, in one line; empty where no rule was asked."""
    if not refusals:
        return ""
    nearest = refusals[0]
    return "; ".join([str(nearest), *([f"try {' or '.join(nearest.advice)}"] if nearest.advice else [])])


# -------------------------------------------------------------------------------------------- why


def answers(claim: Claim, begin: Begin, until: float, scope: Scope) -> tuple[RuleAnswer, ...]:
    """Ask every rule about a claim, and list those first that prove it or miss least.

    A scope of one shape adds the rules for it; they are asked as well where a rule for every shape proves the claim. A
    rule looks at the form of the techniques first, and asks the solver only about lemmas that it reaches.
    """
    if parts := claim.parts():
        return tuple(
            replace(answer, part=name) for name, part in parts.items() for answer in answers(part, begin, until, scope)
        )
    if scope.shape is not None:
        claim.instances()[0].check(scope.shape)
    simple, contracts = simplified(claim, begin(until))
    at_shape = _at(scope, simple)
    needs = {rule.name: rule.needs for rule in (*RULES, *at_shape)}
    if standing(claim) is None:
        refusal = Refusal(unreliable(claim), "likeness")
        return tuple(RuleAnswer(name, needs[name], refusal) for name in needs)
    proved: dict[str, RuleAnswer] = {}
    refusals: list[Refusal] = []
    for rule in (*RULES, *at_shape):
        found = _of(rule, simple, begin, until)
        if contracts and isinstance(found, Refusal) and isinstance(whole := _of(rule, claim, begin, until), Proof):
            found = whole
        if isinstance(found, Refusal):
            found = with_values(found, begin(until).solver, until)
            refusals.append(with_layer(claim, found, min(until, time.monotonic() + LAYER_SECONDS)))
        else:
            proved[rule.name] = RuleAnswer(rule.name, rule.needs, None, reach=found.reach)
    missed = [r for r in ranked(refusals) if r.rule not in proved]
    return (*proved.values(), *(RuleAnswer(r.rule, needs.get(r.rule, ""), r) for r in missed))
