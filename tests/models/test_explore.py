"""One layer's job: the numbers of a plain run, each state once, whatever memory and process it has."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import permutations
from multiprocessing import get_context
from typing import Any

import pytest
import torch

from compcomp.bench import LayerJob, LayerResult
from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique
from compcomp.models.bench import ModelBench
from compcomp.models.explore import explore
from compcomp.ordering.jobs import run
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD, Wanda
from tests.models.fakes import Tiny, tokens

PLENTY = 2**30
SETS: list[list[Technique]] = [
    [Magnitude("1/4"), Magnitude("1/2"), AbsMax(4), TruncatedSVD(2, residual=True)],
    [Wanda("1/2", pattern="2:4"), AbsMax(3, group=4), LeastSquaresDistill()],
    [Magnitude("1/2", ties="all"), TruncatedSVD(2), AbsMax(2, rounding="half_away")],
]


def tree(orders: list[tuple[int, ...]]) -> tuple[list[int], list[int], list[int]]:
    known: dict[tuple[int, ...], int] = {(): 0}
    parents, steps = [-1], [-1]
    for order in orders:
        for k in range(1, len(order) + 1):
            if order[:k] not in known:
                known[order[:k]] = len(parents)
                parents.append(known[order[: k - 1]])
                steps.append(order[k - 1])
    return parents, steps, [known[order] for order in orders]


def jobs(bench: ModelBench, techniques: list[Technique], orders: Any, memory: int = PLENTY) -> dict[str, LayerJob]:
    found = bench.layer_jobs(techniques, *tree(orders), memory, bench.layer_names())
    return {job.layer: job for job in found}


@pytest.mark.parametrize("techniques", SETS)
def test_the_numbers_are_those_of_a_plain_run(techniques: list[Technique]) -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    orders = list(permutations(range(len(techniques))))
    results = {name: explore(job) for name, job in jobs(bench, techniques, orders).items()}
    kept: dict[str, dict[str, Any]] = {name: {} for name in results}
    for place, order in enumerate(orders):
        state = bench.apply(Sequence(tuple(techniques[i] for i in order)), bench.start())
        for name, losses in bench.layer_losses(state).items():
            result = results[name]
            assert result.losses_at(place) == losses
            assert result.bits[place] == bench.bits({name: state[name]})
            one = bench.digest({name: state[name]})
            assert kept[name].setdefault(result.digest_at(place), one) == one, "equal digests, equal states"
    for name, found in kept.items():
        assert len(set(found.values())) == len(found), f"{name}: other digests, other states"


def test_a_state_is_given_to_each_technique_once() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    few, many = Magnitude("1/4"), Magnitude("1/2")
    orders = [(1, 0), (0, 1), (1,)]
    for job in jobs(bench, [few, many], orders).values():
        result = explore(job)
        # dense: both; few: many; many: few, which changes nothing, so that nothing else is new
        assert (result.applications, result.repeated) == (4, 0)
        assert len(set(result.digests)) == 1


def test_little_memory_changes_no_number() -> None:
    bench, techniques = ModelBench(Tiny(), tokens(), device="cpu"), SETS[0]
    orders = list(permutations(range(len(techniques))))
    repeated = 0
    for (name, rich), (_, poor) in zip(
        jobs(bench, techniques, orders).items(), jobs(bench, techniques, orders, memory=1).items(), strict=True
    ):
        one, other = explore(rich), explore(poor)
        assert replace(one, seconds=0.0) == replace(other, repeated=0, seconds=0.0), name
        repeated += other.repeated
    assert repeated > 0


def test_jobs_are_plain_data_for_any_process() -> None:
    bench, techniques = ModelBench(Tiny(), tokens(), device="cpu"), SETS[1]
    every = jobs(bench, techniques, list(permutations(range(3))))
    name, job = next(iter(every.items()))
    assert LayerJob.from_json(json.loads(json.dumps(job.to_json()))) == job
    here = explore(job)
    assert LayerResult.from_json(json.loads(json.dumps(here.to_json()))) == here
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        (there,) = (result for _, result in run(explore, [job], pool))
    assert replace(here, seconds=0.0) == replace(there, seconds=0.0), name


class Unnamed(Magnitude):
    """A technique that no other process could find."""


def test_a_technique_without_a_name_stays_here() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    Technique.register(Unnamed, "compcomp.kernels.magnitude")
    Unnamed.__qualname__ = "here.Unnamed"
    job = next(iter(jobs(bench, [Unnamed("1/2")], [(0,)]).values()))
    assert not job.portable and len(explore(job).bits) == 1


def test_errors_name_layer_and_technique(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    name, job = next(iter(jobs(bench, [Magnitude("1/2")], [(0,)]).items()))
    from compcomp.kernels import magnitude

    kernel = magnitude.kernel

    def broken(technique: Any, layer: Any) -> Any:
        after = kernel(technique, layer)
        return type(after)(after.weight * torch.inf, after.reference, after.gram, None, after.format)

    monkeypatch.setattr(magnitude, "kernel", broken)
    with pytest.raises(InputError, match=f"{name}: after Magnitude.*not finite"):
        explore(job)


@pytest.mark.cuda
def test_a_job_names_its_device() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cuda")
    orders = list(permutations(range(3)))
    for name, job in jobs(bench, SETS[1], orders).items():
        assert job.device == "cuda:0"
        result = explore(job)
        for place, order in enumerate(orders):
            state = bench.apply(Sequence(tuple(SETS[1][i] for i in order)), bench.start())
            assert result.losses_at(place) == bench.layer_losses({name: state[name]})[name]
