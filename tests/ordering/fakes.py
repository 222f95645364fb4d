"""A bench on generated layers, and provers that say what a test wants."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from compcomp.bench import Caps, Coverage, LayerJob, LayerResult
from compcomp.language.claim import Claim, Scope
from compcomp.language.loss import LOSSES
from compcomp.language.named import registrations
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.layers.batches import stack, unstack
from compcomp.layers.state import Format, LayerState
from compcomp.ordering.screen import generated


def verdict(claim: Claim, status: Status, scope: str = "any", **more: Any) -> Verdict:
    return Verdict(claim, Scope.of(scope), status, reach=Scope.of(scope).describe(), **more)


class Prover:
    """Answers from a rule of the test, and counts the claims it was asked."""

    def __init__(self, answer: Callable[[Claim], Status]) -> None:
        self.answer, self.asked = answer, list[tuple[Claim, Scope]]()

    def __call__(self, claim: Claim, scope: Scope, options: dict[str, Any]) -> Verdict:
        self.asked.append((claim, scope))
        return verdict(claim, self.answer(claim), str(scope))


def by_rules(claim: Claim, scope: Scope, options: dict[str, Any]) -> Verdict:
    """The real prover without its search, which takes time that tests do not have."""
    from compcomp.proving.prove import prove

    return prove(claim, scope, stages=("rule",), explain=False)


class LayerBench:
    """Three gaussian layers as a model; its metric is the share of the output error, lower is better."""

    def __init__(
        self, techniques: list[Technique], shape: tuple[int, int] = (3, 4), seed: int = 0, metric: str | None = "error"
    ) -> None:
        random = np.random.default_rng(seed)
        kinds = ("gaussian", "correlated inputs", "integers with ties")
        self._dense = generated(shape, techniques, random, layers=3, kinds=kinds)
        self._shape, self.metric, self.seed = shape, metric, seed
        self.applications = self.live = self.most_live = self.evaluations = 0

    def start(self) -> LayerState:
        return self._dense

    def apply(self, technique: Technique, state: LayerState) -> LayerState:
        self.applications += 1
        with np.errstate(all="ignore"):
            after = technique.encode(state)
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        weakref.finalize(after, self._gone)
        return after

    def layers_apart(self, techniques: Sequence[Technique]) -> bool:
        return True

    def apply_all(self, order: Iterable[Technique]) -> LayerState:
        state = self._dense
        for technique in order:
            state = self.apply(technique, state)
        return state

    def _gone(self) -> None:
        self.live -= 1

    def losses(self, state: LayerState) -> dict[str, float]:
        return {name: float(np.sum(loss.of(state).values)) for name, loss in LOSSES.items()}

    def evaluate(self, state: LayerState) -> dict[str, float]:
        self.evaluations += 1
        if self.metric is None:
            return {}
        error = stack(state.effective() - state.reference, 3)
        return {self.metric: float(np.abs(error).max(axis=(1, 2)).sum()), "size": float(self._shape[0])}

    parts = 0

    def evaluate_parts(self, state: LayerState, parts: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
        raise AssertionError("there are none")

    def is_log(self, metric: str) -> bool:
        return False

    def compression_rate(self, state: LayerState) -> float:
        return 0.5

    def digest(self, state: LayerState) -> str:
        return digest(state, 3)

    def fingerprint(self) -> str | None:
        return f"{self._shape} {self.seed} {self.metric}"

    parallel = False

    def rate(self, bits: int) -> float:
        return 0.5

    def apply_each(self, orders: Mapping[str, Sequence[Technique]]) -> LayerState:
        ends = [run(orders[name], self._dense) for name in self.layer_names()]
        weights = [stack(end.effective(), 3)[k] for k, end in enumerate(ends)]
        return replace(self._dense, weight=unstack(np.stack(weights)))

    def total(self, losses: list[dict[str, float]]) -> dict[str, float]:
        return {name: sum(layer[name] for layer in losses) for name in losses[0]}

    def layer_names(self) -> list[str]:
        return ["0", "1", "2"]

    def layer_jobs(
        self,
        techniques: Sequence[Technique],
        parents: Sequence[int],
        steps: Sequence[int],
        ends: Sequence[int],
        memory: int,
        layers: Sequence[str],
        caps: Caps | None = None,
    ) -> Iterator[LayerJob]:
        assert self._dense.gram is not None
        for name in layers:
            arrays = [stack(array, 3)[int(name)].tolist() for array in (self._dense.weight, self._dense.gram)]
            yield LayerJob(
                name,
                tuple(techniques),
                json.dumps(arrays).encode(),
                "cpu",
                tuple(parents),
                tuple(steps),
                tuple(ends),
                tuple(LOSSES),
                memory,
                caps,
                registrations(techniques),
            )

    @property
    def explore(self) -> Callable[[LayerJob], LayerResult]:
        return explore

    def coverage(self, claims: Sequence[Claim]) -> Iterator[tuple[str, list[Coverage]]]:
        return iter(())

    def lower_is_better(self, metric: str) -> bool:
        return metric == "error"

    def write(self, state: LayerState) -> LayerState:
        return state

    def shapes(self) -> list[tuple[int, int]]:
        return [self._shape] * 3


def run(order: Iterable[Technique], state: LayerState) -> LayerState:
    for technique in order:
        with np.errstate(all="ignore"):
            state = technique.encode(state)
    return state


def digest(state: LayerState, layers: int) -> str:
    """The same for states of the same numbers: 0 is -0."""
    form = state.format
    fields = [state.weight, form.mask, None if form.grid is None else form.grid.step]
    fields += [] if form.factors is None else [form.factors.left, form.factors.right]
    known = [None if field is None else (stack(field, layers) + 0.0).tobytes() for field in fields]
    grid = None if form.grid is None else form.grid.levels
    return hashlib.sha256(repr((known, grid, form.rank)).encode()).hexdigest()


def bits(form: Format) -> int:
    """Bits that a weight takes, more or less."""
    values = 16 if form.grid is None else 2 if form.grid.levels <= 3 else 4
    return values if form.mask is None else values // 2


def explore(job: LayerJob) -> LayerResult:
    """One layer of a LayerBench: no technique is applied twice to one state."""
    techniques = job.techniques
    weight, gram = (unstack(np.array([array])) for array in json.loads(job.tensors))
    state = LayerState.dense(weight, gram=gram)
    found, applied = {digest(state, 1): state}, dict[tuple[str, int], str]()
    digests = [digest(state, 1)]
    for parent, step in list(zip(job.parents, job.steps, strict=True))[1:]:
        key = digests[parent], step
        if key not in applied:
            with np.errstate(all="ignore"):
                after = techniques[step].encode(found[key[0]])
            applied[key] = digest(after, 1)
            found[applied[key]] = after
        digests.append(applied[key])
    ends = [found[digests[end]] for end in job.ends]
    losses = {name: tuple(float(np.sum(loss.of(end).values)) for end in ends) for name, loss in LOSSES.items()}
    sizes = tuple(bits(end.format) for end in ends)
    return LayerResult(losses, sizes, tuple(digests[end] for end in job.ends), len(applied))


def exhaustive(bench: LayerBench, techniques: list[Technique]) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Losses and metrics of every order, each run from the start."""
    found = {}
    for order in permutations(techniques):
        state = bench.start()
        for technique in order:
            state = bench.apply(technique, state)
        found[" >> ".join(map(str, order))] = (bench.losses(state), bench.evaluate(state))
    return found
