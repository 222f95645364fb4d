"""What people write themselves, and change while they work, never leads to a proof of something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import z3

from compcomp.language.assumption import contract
from compcomp.language.claim import Claim, dominates, equal, fits, keeps
from compcomp.language.parameters import ANY
from compcomp.language.steps import CodebookMap, Element, GridMap, RangeMap, Selection, Step
from compcomp.language.technique import Declared, Technique
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Grade, Status, Verdict
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.proving.prove import Prover, default_prover, prove
from compcomp.proving.replay import Suspect, confirmed
from compcomp.proving.solver import Answer, Remembering
from compcomp.proving.strict import strict
from compcomp.techniques import AbsMax, Magnitude
from compcomp.terms import Abs, If, Max, each
from tests.amount import spread
from tests.claims import CLAIMS
from tests.helpers import matrix, refused

HALF, ALL, QUANTIZE = Fraction(1, 2), Partition.tensor(), AbsMax(4)
RULES = ("rule",)


def magnitude(element: Element) -> Any:
    return Abs(element.weight)


def helped(element: Element) -> Any:
    """A score that calls a helper: it stays the same object when the helper is another."""
    return helper(element.weight)


def helper(weight: Any) -> Any:
    return Abs(weight)


@dataclass(frozen=True)
class Scored(Technique):
    """Drops half of the weights, by a score of its own."""

    score: Callable[[Element], Any] = magnitude

    def steps(self) -> tuple[Step, ...]:
        return (Selection(self.score, ALL, HALF, "first"),)


def first_better(technique: Technique, quantize: Technique = QUANTIZE) -> Claim:
    return dominates(technique >> quantize, quantize >> technique, loss="weight_l2")


def asked() -> Any:
    """A solver that knows nothing yet."""
    return Remembering(default_prover().solver)


# ------------------------------------------------------------------------------------------ changed code


def test_a_helper_that_is_defined_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = first_better(Scored(helped))
    assert prove(claim).proved
    monkeypatch.setitem(globals(), "helper", lambda weight: -Abs(weight))
    assert not prove(claim, stages=RULES, explain=False).proved
    assert prove(claim).refuted


def test_a_function_that_is_changed_in_place() -> None:
    def score(element: Element) -> Any:
        return Abs(element.weight)

    def other(element: Element) -> Any:
        return -Abs(element.weight)

    claim = first_better(Scored(score))
    assert prove(claim).proved
    score.__code__ = other.__code__
    assert not prove(claim, stages=RULES, explain=False).proved


def test_a_measure_that_is_defined_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(weight: Any) -> Any:
        return helper(weight)

    @dataclass(frozen=True)
    class Rounded(Technique):
        def steps(self) -> tuple[Step, ...]:
            return (GridMap(measure, 7, "half_even", ALL),)

    claim = first_better(Scored(), Rounded())
    assert prove(claim).proved
    monkeypatch.setitem(globals(), "helper", lambda weight: weight * weight)
    assert not prove(claim, stages=RULES, explain=False).proved


def test_steps_that_are_changed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = first_better(Scored())
    assert prove(claim).proved
    worst = Selection(lambda element: -Abs(element.weight), ALL, HALF, "first")
    monkeypatch.setattr(Scored, "steps", lambda self: (worst,))
    assert not prove(claim, stages=RULES, explain=False).proved


def test_techniques_that_only_say_that_they_are_equal() -> None:
    @dataclass(frozen=True)
    class Hiding(Technique):
        score: Callable[[Element], Any] = field(compare=False)

        def steps(self) -> tuple[Step, ...]:
            return (Selection(self.score, ALL, HALF, "first"),)

    good, bad = Hiding(magnitude), Hiding(lambda element: -Abs(element.weight))
    assert good == bad
    assert prove(first_better(good)).proved
    assert not prove(first_better(bad), stages=RULES, explain=False).proved
    mixed = dominates(bad >> QUANTIZE, QUANTIZE >> good, loss="weight_l2")
    assert not prove(mixed, stages=RULES, explain=False).proved


def test_functions_that_say_the_same_are_distinguished_from_one_used_twice() -> None:
    """Rules share what one selection drops, not what two of the same score do: nor do they share the answer."""

    def another(element: Element) -> Any:
        return Abs(element.reference)

    def dense(element: Element) -> Any:
        return Abs(element.reference)

    prover = Prover(asked(), second=None)
    for scores in ((dense, dense), (dense, another), (dense, dense)):
        one, two = map(Scored, scores)
        claim = equal(one >> QUANTIZE, QUANTIZE >> two)
        shared = prover.prove(claim, stages=RULES)
        alone = prove(claim, stages=RULES, solver=asked(), second=None)
        assert shared.status is alone.status
        assert shared.queries == alone.queries


# ------------------------------------------------------------------------------------------ what rules rely on


@dataclass(frozen=True)
class Of(Technique):
    """Some steps, of which it is said whether they leave a choice free."""

    what: tuple[Step, ...]
    free: bool = False

    def steps(self) -> tuple[Step, ...]:
        return self.what

    def promises(self) -> Declared:
        return Declared(deterministic=not self.free)


def of(*steps: Step) -> Of:
    return Of(steps)


def falls(claim: Claim, weight: Any, inputs: Any = None, seeds: tuple[int | None, ...] = (None,)) -> bool:
    """Whether the layer breaks the claim, in exact numbers."""
    arrays = matrix(weight), None if inputs is None else matrix(inputs)
    return any(confirmed(claim, Suspect(*arrays, seed)) for seed in seeds)


PRUNE = of(Selection(magnitude, ALL, HALF, "first"))


def floored(weight: Any) -> Any:
    """A measure with a floor: it does not scale along, and is never as small as 1/2."""
    return Max([Abs(weight), Fraction(1)])


def bent(weight: Any) -> Any:
    """A measure that is linear on two pieces: what holds at one scale need not hold at another."""
    return If(Abs(weight) >= Fraction(1, 4), Abs(weight), 3 * Abs(weight))


def fractions(*numbers: str) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, numbers))


OF_MEASURES = [
    (keeps(PRUNE >> of(CodebookMap(floored, fractions("-1/2", "1/4"), "half_even", ALL)), "mask"), [[1, 2]]),
    (fits(PRUNE >> of(CodebookMap(floored, fractions("-1/2", "1/4"), "half_even", ALL)), "50%"), [[1, 2]]),
    (equal(of(*[GridMap(bent, 7, "half_even", ALL)] * 2), of(GridMap(bent, 7, "half_even", ALL))), [["13/50", "1/5"]]),
    (
        equal(
            of(*[CodebookMap(lambda w: Abs(w) + 1, fractions("-1/2", "0", "1/2"), "half_even", ALL)] * 2),
            of(CodebookMap(lambda w: Abs(w) + 1, fractions("-1/2", "0", "1/2"), "half_even", ALL)),
        ),
        [[4, 4]],
    ),
]


@pytest.mark.parametrize(("claim", "weight"), OF_MEASURES, ids=lambda value: "")
def test_a_measure_that_does_not_scale_along(claim: Claim, weight: Any) -> None:
    """Facts are asked at one scale: of such a measure none may be taken, least of all where the scale never occurs."""
    assert falls(claim, weight)
    assert not prove(claim, stages=RULES, explain=False).proved
    assert not prove(claim).proved


def test_a_measure_below_zero() -> None:
    above, below = (
        of(step) for step in (CodebookMap(Abs, fractions("1"), "half_even", ALL), GridMap(own, 1, "half_even", ALL))
    )
    verdict = prove(dominates(above, below, loss="weight_l1"), (1, 1), stages=("bounded",))
    assert verdict.status is Status.UNKNOWN and "negative" in verdict.cause
    refused(lambda: below.encode(LayerState.dense(matrix([[-3]]))), "-3", "from 0 on")


def own(weight: Any) -> Any:
    return weight


@dataclass(frozen=True)
class Share(Technique):
    """Drops a share that follows from a parameter which a claim may leave open."""

    density: Any
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"density": (HALF, Fraction(3, 4))}

    def steps(self) -> tuple[Step, ...]:
        return (Selection(magnitude, ALL, ANY if self.density is ANY else 1 - self.density, "first"),)


@dataclass(frozen=True)
class HalfAsMuch(Technique):
    sparsity: Any
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"sparsity": (HALF, Fraction(3, 4))}

    def steps(self) -> tuple[Step, ...]:
        return (Selection(magnitude, ALL, ANY if self.sparsity is ANY else self.sparsity / 2, "first"),)


@dataclass(frozen=True)
class Levels(Technique):
    bits: Any
    more: int = 0
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"bits": (2, 3)}

    def steps(self) -> tuple[Step, ...]:
        return (GridMap(Abs, ANY if self.bits is ANY else 2 ** (self.bits - 1) - 1 + self.more, "half_even", ALL),)


OPEN = [
    (dominates(Magnitude(sparsity=ANY), HalfAsMuch(ANY), "weight_l2"), [[1, 2, 3, 4]]),
    (dominates(Magnitude(sparsity=ANY), Share(ANY), "weight_l2"), [[1, 2, 3, 4]]),
    (equal(Levels(ANY), Levels(ANY, 1)), [[1, 3]]),
]


@pytest.mark.parametrize(("claim", "weight"), OPEN, ids=lambda value: "")
def test_open_parameters_that_stand_for_other_numbers(claim: Claim, weight: Any) -> None:
    assert any(falls(instance, weight) for instance in claim.instances())
    assert not prove(claim, stages=RULES, explain=False).proved
    same = dominates(Share(ANY) >> QUANTIZE, QUANTIZE >> Share(ANY), "weight_l2")
    assert prove(same, stages=RULES, explain=False).proved


def test_a_score_sees_no_norm_that_it_does_not_ask_for() -> None:
    def fallback(element: Element) -> Any:
        square = element.weight * element.weight
        return square if element.norm2 is None else element.norm2 * square

    alone, wanda = (of(Selection(fallback, ALL, HALF, "first", needs_inputs=needs)) for needs in (False, True))
    claim = dominates(alone, wanda, "output_l2", given=["diagonal_gram"])
    assert falls(claim, [[1, 2]], [[3, 0], [0, 1]])
    assert not prove(claim, stages=RULES, explain=False).proved
    assert not prove(equal(alone, wanda, given=["no_ties"]), stages=RULES, explain=False).proved


@pytest.mark.parametrize(
    ("step", "weight"), [(GridMap(Abs, 1, "any", ALL), [[1, 2]]), (Selection(magnitude, ALL, HALF, "any"), [[1, 1]])]
)
def test_choices_that_are_left_free_without_a_contract(step: Step, weight: Any) -> None:
    claim = equal(of(step), of(step))
    assert falls(claim, weight, seeds=tuple(range(6)))
    assert not prove(claim, stages=RULES, explain=False).proved


def test_encodings_and_scores_that_only_say_that_they_are_equal() -> None:
    @dataclass(frozen=True)
    class Encoded(Technique):
        function: Any = field(compare=False)

        def encode(self, layer: LayerState) -> LayerState:
            return replace(layer, weight=each(self.function, layer.weight))

    @dataclass(frozen=True)
    class Score:
        function: Any = field(compare=False)

        def __call__(self, element: Element) -> Any:
            return self.function(element)

    encodings = equal(Encoded(lambda w: w), Encoded(lambda w: 2 * w))
    scores = (of(Selection(Score(f), ALL, HALF, "first")) for f in (magnitude, lambda e: -Abs(e.weight)))
    of_layers = (
        of(Selection.by_layer(Score(lambda layer, sign=sign: sign * layer.weight), ALL, HALF, "first"))
        for sign in (1, -1)
    )
    for claim in (encodings, equal(*scores), equal(*of_layers)):
        assert falls(claim, [[1, 2]])
        assert not prove(claim, stages=RULES, explain=False).proved


def test_a_score_that_is_a_number() -> None:
    assert prove(first_better(Scored(lambda element: 1)), stages=RULES).status is Status.UNKNOWN
    assert prove(first_better(Scored(lambda element: Fraction(1, 3)))).refuted


def test_floats_that_leave_no_trace_in_the_weights() -> None:
    rounded = Selection.by_layer(
        lambda layer: each(lambda w: (2.0**60 + Abs(w)) - 2.0**60, layer.weight), ALL, HALF, "first"
    )
    exact = Selection.by_layer(lambda layer: each(Abs, layer.weight), ALL, HALF, "first")
    measured = GridMap(lambda w: 0.5 * Abs(w), 7, "half_even", ALL)
    for one, other in ((rounded, exact), (measured, GridMap(Abs, 7, "half_even", ALL))):
        with pytest.raises(TypeError, match="Fraction"):
            prove(equal(of(one), of(other)), (1, 2), stages=("search",))


# --------------------------------------------------------------------------------------- Python's own truth


def if_equal(element: Element) -> Any:
    return 0 * element.weight if element.weight == 3 else Abs(element.weight)


def if_in(element: Element) -> Any:
    return 0 * element.weight if element.weight in (3, 4) else Abs(element.weight)


def if_where(element: Element) -> Any:
    return np.where(np.array([element.weight == 3], dtype=object), 0 * element.weight, Abs(element.weight))[0]


@pytest.mark.parametrize("score", [if_equal, if_in, if_where])
@pytest.mark.parametrize("stages", [("rule",), ("bounded",), ("rule", "search", "bounded"), ("search",)])
def test_a_score_with_a_truth_value(score: Callable[[Element], Any], stages: tuple[str, ...]) -> None:
    """z3 says of an equation whether both sides look alike: read so, the score would be the magnitude."""
    with pytest.raises(TypeError, match="If, And, Or, Not"):
        prove(first_better(Scored(score)), (1, 3), stages=stages)


def test_an_encoding_with_a_truth_value() -> None:
    class Encoded(Technique):
        def encode(self, layer: LayerState) -> LayerState:
            weight = each(lambda w: 0 if w == 3 else w, layer.weight)
            return LayerState.dense(weight, choices=layer.choices)

    for stages in (("bounded",), ("search",)):
        with pytest.raises(TypeError, match="truth value"):
            prove(equal(Encoded(), Magnitude(0)), (1, 2), stages=stages)


@pytest.mark.parametrize("factor", [0.1, 0.5, np.float32(0.1)])
def test_an_encoding_with_a_float(factor: float) -> None:
    """For z3 0.1 times 3 is 0.3, and exact numbers times 0.1 are floats, of which nothing is exact."""

    @dataclass(frozen=True)
    class Scaled(Technique):
        factors: tuple[Any, ...]

        def encode(self, layer: LayerState) -> LayerState:
            weight = layer.weight
            for factor in self.factors:
                weight = each(lambda w, factor=factor: w * factor, weight)
            return LayerState.dense(weight, choices=layer.choices)

    claim = equal(Scaled((factor, 3)), Scaled((3 * factor,)))
    for stages in (("bounded",), ("search", "rule", "bounded")):
        with pytest.raises(TypeError, match="Fraction"):
            prove(claim, (1, 2), stages=stages)
    with pytest.raises(TypeError, match="Fraction"):
        prove(equal(Scaled((factor,)), Scaled((3,))), (1, 2), stages=("search",))
    exact = equal(Scaled((Fraction(1, 10), 3)), Scaled((Fraction(3, 10),)))
    assert prove(exact, (1, 2), stages=("bounded",)).proved


def test_a_score_with_a_float() -> None:
    with pytest.raises(TypeError, match="Fraction"):
        prove(first_better(Scored(lambda element: 0.1 * Abs(element.weight))), stages=RULES)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda element: element.weight**2, "weight**2"),
        (lambda element: element.weight % 2, "integer expression expected"),
        (lambda element: element.weight > 0, "weight > 0"),
        (lambda element: None, "None"),
        (lambda element: "large", "'large'"),
        (lambda element: 1 / Abs(element.weight), "divides by zero at 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("scope", ["any", (1, 2)])
def test_a_score_that_is_no_number(score: Callable[[Element], Any], said: str, scope: Any) -> None:
    refused(lambda: prove(first_better(Scored(score)), scope), "Selection: a score", said, "compcomp.terms")
    if "zero" not in said:
        grid = of(GridMap(lambda weight: score(Element(weight, None, None)), 7, "half_even", ALL))
        refused(lambda: prove(first_better(Scored(), grid), scope), "GridMap: a measure", said, "compcomp.terms")


def test_a_measure_that_divides_by_zero() -> None:
    grid = of(GridMap(lambda weight: 1 / Abs(weight), 7, "half_even", ALL))
    refused(lambda: grid.encode(LayerState.dense(matrix([[0, 1]]))), "GridMap: a measure that divides by zero", "Div")


def test_elsewhere_z3_keeps_its_ways() -> None:
    x, y = z3.Reals("x y")
    seen: list[bool] = []
    with strict():
        with pytest.raises(TypeError):
            bool(x == y)
        with strict():
            pass
        with pytest.raises(TypeError):
            bool(x == x)
        with pytest.raises(TypeError):
            bool(x < y)
        for floats in (lambda: x + 0.5, lambda: y > 0.5, lambda: z3.RealVal(0.5), lambda: z3.If(x < y, 0.5, x)):
            with pytest.raises(TypeError):
                floats()
        assert bool(z3.BoolVal(True)) and not z3.BoolVal(False)
        thread = threading.Thread(target=lambda: seen.append(bool(z3.Int("i", z3.Context()) == 1)))
        thread.start()
        thread.join()
    assert seen == [False]
    with pytest.raises(z3.Z3Exception):
        bool(x < y)
    assert bool(x == x) and not bool(x == y)
    assert z3.simplify(x + 0.5 - x).eq(z3.RealVal("1/2"))


# ------------------------------------------------------------------------------------------ steps and encodings


def test_a_subclass_of_a_step_is_refused() -> None:
    """What is proved of the nearest value need not hold of what a subclass does."""
    for kind in (Selection, GridMap, CodebookMap, RangeMap):
        refused(lambda kind=kind: type("Mine", (kind,), {}), kind.__name__, "Mine", "encode")  # type: ignore[misc]


@pytest.mark.parametrize("share", [Fraction(1), Fraction(-1, 2), Fraction(3, 2), 0.5, 0, "1/2", None])
def test_a_share_that_is_none(share: Any) -> None:
    refused(lambda: Selection(magnitude, ALL, share, "first"), "share", "[0, 1)")


def test_conventions_and_levels_that_are_none() -> None:
    refused(lambda: Selection(magnitude, ALL, HALF, "last"), "last", "first, all, any")
    for levels in (0, -3, 7.0, True, "7"):
        refused(lambda levels=levels: GridMap(Abs, levels, "half_even", ALL), "levels")  # type: ignore[misc]
        refused(lambda levels=levels: RangeMap(levels, "half_even", ALL, True), "levels")  # type: ignore[misc]
    refused(lambda: GridMap(Abs, 7, "nearest", ALL), "nearest", "half_even")
    refused(lambda: RangeMap(7, "nearest", ALL, True), "nearest", "half_even")


@pytest.mark.parametrize("codes", [(), (0,), (1, 0), (0, 1, 1), (-1.0, 0.0, 1.0)])
def test_codes_that_are_no_table(codes: tuple[Any, ...]) -> None:
    exact = tuple(code if isinstance(code, float) else Fraction(code) for code in codes)
    refused(lambda: CodebookMap(Abs, exact, "half_even", ALL), "codes", "ascending")


def test_an_encoding_next_to_steps_is_an_assumption() -> None:
    class Both(Scored):
        def encode(self, layer: LayerState) -> LayerState:
            return super().encode(layer)

    said = contract("Both()", "does what its steps say and no more")
    assert said in prove(first_better(Both())).assumptions
    assert said in prove(first_better(Both()), (1, 3), stages=("bounded",)).assumptions
    assert not [a for a in prove(first_better(Scored())).assumptions if a.about == said.about]


def test_without_a_kernel_exact_replay_alone_refutes() -> None:
    claim = dominates(QUANTIZE >> Scored(), Scored() >> QUANTIZE, loss="weight_l2")
    verdict = prove(claim)
    assert verdict.refuted and verdict.witness is not None
    assert "no torch kernel" in verdict.notes[0] and "Scored" in verdict.notes[0]
    left, right = verdict.witness.traces
    assert left.loss is not None and right.loss is not None and left.loss > right.loss
    assert left.torch_loss is None and right.torch_loss is None


# ------------------------------------------------------------------------------------------ theorems


def without_time(verdict: Verdict) -> dict[str, Any]:
    found = verdict.to_json()
    found["work"].pop("seconds")
    return found


@pytest.mark.parametrize(("text", "loss", "scope"), spread([row[:3] for row in CLAIMS if row[3] == "PROVED"], 20))
def test_an_instance_of_a_theorem_has_the_verdict_of_a_proof(text: str, loss: str, scope: str) -> None:
    claim = parse_claim(text, loss)
    fresh = prove(claim, scope, stages=RULES, explain=False)
    again = prove(parse_claim(text, loss), scope, stages=RULES, explain=False)
    assert without_time(again) == without_time(fresh)


def test_a_theorem_serves_every_shape_that_its_techniques_fit() -> None:
    solver, second = asked(), asked()
    claim = first_better(Magnitude("1/2", pattern="2:4"), AbsMax(4, group=4))
    prover = Prover(solver, second)
    theorem = prover.prove(claim)
    assert theorem.proved

    class Never:
        def ask(self, smtlib: str, deadline: float) -> Answer:
            raise AssertionError("asked")

    solver.solver = second.solver = Never()
    for scope in ((1, 4), (3, 8), ("block", 128)):
        verdict = prover.prove(claim, scope)
        assert (verdict.status, verdict.grade) == (Status.PROVED, Grade.TWO_SOLVERS)
        assert (str(verdict.scope), verdict.reach) == (str(scope_text(scope)), "any shape")
        assert verdict.queries == theorem.queries
    refused(lambda: prover.prove(claim, (1, 6)), "groups of 4", "1x6")


def scope_text(scope: Any) -> str:
    return f"block:{scope[1]}" if scope[0] == "block" else f"{scope[0]}x{scope[1]}"


def test_a_theorem_is_known_to_the_solvers_that_answered_alone() -> None:
    class Says:
        def ask(self, smtlib: str, deadline: float) -> Answer:
            return Answer("sat", solver="liar")

    claim, prover = first_better(Magnitude("1/2")), Prover(asked())
    assert prover.prove(claim).grade is Grade.TWO_SOLVERS
    assert prover.prove(claim, second=None).grade is Grade.ONE_SOLVER
    assert prover.prove(claim, second=Says()).status is Status.DISAGREE
    assert prover.prove(claim).grade is Grade.TWO_SOLVERS
    assert not Prover(Says(), second=None).prove(claim, stages=RULES, explain=False).proved


def test_a_proof_that_might_be_better_checked_is_not_kept() -> None:
    class Busy:
        answer = "unknown"

        def ask(self, smtlib: str, deadline: float) -> Answer:
            if self.answer == "unknown":
                return Answer("unknown", cause="busy")
            return default_prover().solver.ask(smtlib, deadline)

    claim, second = first_better(Magnitude("1/4")), Busy()
    prover = Prover(asked(), second)
    assert prover.prove(claim).grade is Grade.ONE_SOLVER
    second.answer = "as it is"
    assert prover.prove(claim).grade is Grade.TWO_SOLVERS
