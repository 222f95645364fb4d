"""Prove that composition adds no error beyond the sum of both parts: any shape, any sparsity [harma2025]."""

from __future__ import annotations

from fractions import Fraction

import z3

from compcomp.language.claim import Orthogonal
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import ScaledMap, Selection, Step
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.reasons import convention, not_additive
from compcomp.proving.rules.exchange import Problem, setting
from compcomp.proving.session import Session
from compcomp.terms import Abs

# Rule (orthogonal). Let f and g be sequences of selections and maps as in rule exchange, one of them with exactly one
# selection and the other with none, without free choices in f. A weight of reference w has errors e(w), e_f(w), e_g(w)
# under f >> g, f and g. On the dense layer f does the same whether g follows or not: both runs share its drops and
# values.
#   Selection in f. f >> g and f drop the same weights. If |e(w)| <= |e_f(w)| + |e_g(w)| for every weight, dropped or
#   not, then by Minkowski's inequality |e|_p <= |e_f|_p + |e_g|_p for every p >= 1.
#   Selection in g. f >> g drops D, g alone drops D', equally many in every group of R. Suppose
#     kept     |e(w)| <= |e_f(w)| + |e_g(w)|   for w in neither D nor D';
#     dropped  the same                        for w in both;
#     pair     |e(a)| + |e(b)| <= |e_f(a)| + |e_g(a)| + |e_f(b)| + |e_g(b)| + slack * s
#                                              for a in D' \ D, b in D \ D' of one group, s the grid step at b.
#   Pair D' \ D with D \ D' and sum: |e|_1 <= |e_f|_1 + |e_g|_1 + slack * (sum of s over D).


@rule(
    "orthogonal",
    Orthogonal,
    needs="sequences of selections over one partition and scaled maps, exactly one selection on one of the sides, a "
    "loss of weights, no free choice in the first; then the lemma about one weight, and about pairs under weight_l1",
)
def orthogonality(claim: Orthogonal, session: Session) -> Proof | Refusal:
    """Prove that the errors of the composition are bounded weight by weight, or in pairs."""
    if claim.loss.element is None:
        return not_additive(claim)
    if not claim.left.is_deterministic:
        free = next((t for t in claim.left if not t.is_deterministic), claim.left)
        return Refusal(
            f"{free} leaves choices free, and may choose otherwise alone", advice=(convention("ties", "first"),)
        )
    problem = setting(claim, session)
    if isinstance(problem, Refusal):
        return problem
    counts = [sum(isinstance(step, Selection) for step in steps) for steps in problem.steps[1:]]
    if sorted(counts) != [0, 1]:
        of_each = f"{claim.left} has {counts[0]}, {claim.right} has {counts[1]}"
        return Refusal(f"one side needs exactly one selection and the other none: {of_each}")
    if counts == [1, 0]:
        proved = problem.once("orthogonal", lambda: _singles(problem))
    else:
        if claim.loss.degree != 1:
            return Refusal(f"weights are pruned last, where the rule bounds weight_l1 alone, not {claim.loss.name}")
        if not _shared_groups(problem):
            return Refusal("two weights of one group may have unlike scales, and the rule pairs them")
        proved = problem.once("orthogonal", lambda: _singles(problem) and _pair(problem, claim.slack))
    if not proved:
        return _failed(session)
    return Proof("orthogonal", "any shape", (EXACT,), tuple(session.queries))


def _failed(session: Session) -> Refusal:
    query = session.missed(last=True)
    if query is None:
        return Refusal("its lemmas were not all proved", reached=Reached.FACT)
    says = "two weights, of which only one is dropped," if query.name == "pair" else f"one {query.name} weight"
    if query.answer == "unknown":
        return Refusal(f"the lemma about {says} was not decided in time", lemma=query, reached=Reached.LEMMA)
    reason = f"the errors of both parts may be less than that of the composition: the lemma about {says} fails"
    return Refusal(reason, lemma=query, reached=Reached.LEMMA)


def _shared_groups(problem: Problem) -> bool:
    """Return True if two weights of one group always share their grid step."""
    maps = [step for sequence in problem.steps for step in sequence if isinstance(step, ScaledMap)]
    return all(problem.group.refines(step.partition) for step in maps)


def _singles(problem: Problem) -> bool:
    return all(_single(problem, dropped=dropped) for dropped in (False, True))


def _single(problem: Problem, *, dropped: bool) -> bool:
    """Return True if the formula holds for one weight that every selecting run drops, or that none drops."""
    _, _, runs, premises = problem.runs(["b"], "AAC")
    states = [run.dropped["b"] for run, steps in zip(runs, problem.steps, strict=True) if _selects(steps)]
    case = [flag if dropped else z3.Not(flag) for flag in states]
    whole, first, second = (Abs(z3.Real("w_b") - run.values["b"]) for run in runs)
    name = "dropped" if dropped else "kept"
    session = problem.lemmas.session
    if session.ask(f"{name}: premises", [*premises, *case], "sat", 5.0).answer != "sat":
        return False
    return session.holds(name, [*premises, *case], whole <= first + second)


def _pair(problem: Problem, slack: Fraction) -> bool:
    _, _, runs, premises = problem.runs(["a", "b"], "AAC")
    whole, _, second = runs
    case = [
        z3.Not(whole.dropped["a"]),
        second.dropped["a"],
        whole.dropped["b"],
        z3.Not(second.dropped["b"]),
    ]
    step, halves = z3.Real("s"), []
    maps = [s for s in problem.steps[0] if isinstance(s, ScaledMap)]
    if maps:  # s is the step of the last one; its uses in other runs share it where they share the context
        last = problem.uses[2 * len(maps) - 1]
        for use in problem.uses:
            if (use.step, use.context) == (last.step, last.context) and problem.lemmas.of(use.step).half:
                halves.append(2 * Abs(use.argument - use.result) <= step)

    def error(run: int, name: str) -> z3.ArithRef:
        return Abs(z3.Real(f"w_{name}") - runs[run].values[name])

    left = error(0, "a") + error(0, "b")
    right = error(1, "a") + error(1, "b") + error(2, "a") + error(2, "b") + z3.Q(*slack.as_integer_ratio()) * step
    return problem.lemmas.session.holds("pair", [*premises, *case, step > 0, *halves], left <= right)


def _selects(steps: list[Step]) -> bool:
    return any(isinstance(step, Selection) for step in steps)
