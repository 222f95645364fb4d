"""Random models: what the library makes of them is what hooks and kernels make by hand, or one line and no change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.techniques import (
    GPTQ,
    AbsMax,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    PruneColumns,
    PruneRows,
    TruncatedSVD,
    Wanda,
)
from tests.amount import spread
from tests.by_hand import compressed, memory, modes, places, same, seen
from tests.random_models import Sample, sample

HALF: Any = "1/2"
THIRD: Any = "1/3"
DATA_FREE: list[Technique] = [
    Magnitude(HALF),
    Magnitude(THIRD, per="row"),
    AbsMax(bits=4),
    MinMax(bits=3),
    PruneRows(HALF),
    PruneColumns(THIRD),
    TruncatedSVD(rank=1),
    TruncatedSVD(rank=1, residual=True),
]
LOOKING: list[Technique] = [Wanda(HALF), GPTQ(bits=4), LeastSquaresDistill(), TruncatedSVD(rank=1, metric="output")]
SEARCHED = [(Magnitude(HALF), PruneColumns(THIRD)), (Magnitude(HALF), Wanda(THIRD)), (AbsMax(bits=4), MinMax(bits=3))]
REFUSED = {"Overlapping", "Transposed", "Merging"}
"""Pieces for which one line may be said instead."""


def orders(choice: random.Random) -> tuple[Technique, ...]:
    first = choice.choice(DATA_FREE)
    second = choice.choice(choice.choice([DATA_FREE, LOOKING, LOOKING]))
    return (first,) if choice.random() < 0.3 else (first, second) if second != first else (second,)


def expected(case: Sample, order: Sequence[Technique], before: dict[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    """By hand: names of the modules that hold one weight, and what it becomes (as it is stored)."""
    modules = {name: case.model.get_submodule(name) for name in case.streams}
    looks = any(technique.needs_inputs for technique in order)
    grams: dict[str, Tensor] = {}
    for batch, mask in zip(case.batches if looks else [], case.mask, strict=False):

        def kept(name: str, inputs: Tensor, mask: Tensor | None = mask) -> Tensor:
            stream = case.streams[name]
            if mask is None or stream == "pooled":
                return inputs.reshape(-1, inputs.shape[-1])
            real = mask.bool()
            return inputs[{"plain": real, "flat": real.reshape(-1), "first": real.T}[stream]]

        alive = [name for name, stream in case.streams.items() if stream != "dead"]
        for name, gram in seen(case.model, alive, [batch], kept).items():
            grams[name] = grams[name] + gram if name in grams else gram
    together: dict[int, list[str]] = {}
    for name, module in modules.items():
        together.setdefault(id(module.weight), []).append(name)
    found = list[tuple[list[str], Tensor]]()
    for names in together.values():
        dense, turned = before[f"{names[0]}.weight"], not isinstance(modules[names[0]], nn.Linear)
        gram = sum((grams[name] for name in names[1:]), grams[names[0]]) if names[0] in grams else None
        if looks and gram is None:
            continue
        result = compressed(dense.T if turned else dense, gram, order)
        found.append((names, result.T if turned else result))
    return found


def agree(found: Tensor, wanted: Tensor, rounded: bool) -> bool:
    """Bitwise, but where sums are rounded otherwise."""
    bound = 0.0 if not rounded else 4e-2 if wanted.dtype == torch.bfloat16 else 1e-4
    return torch.allclose(found, wanted, rtol=bound, atol=bound * float(wanted.abs().max()))


def check(seed: int) -> str:
    """Compress the model of a seed, and compare; what became of it, as one text."""
    case, choice = sample(seed), random.Random(f"order {seed}")
    searched = choice.random() < 0.1
    order: Sequence[Technique] = choice.choice(SEARCHED) if searched else orders(choice)
    looks = any(technique.needs_inputs for technique in order)
    before, where, how = memory(case.model), places(case.model), modes(case.model)
    case.model.eval()  # in which layers that merge have merged
    computing = memory(case.model)
    wanted = expected(case, order, computing) if not searched else []
    assert not same(computing, memory(case.model))
    case = sample(seed)
    before, where, how = memory(case.model), places(case.model), modes(case.model)
    data = case.batches if looks else None
    try:
        if searched:
            plan = cc.optimize_order(order, model=case.model, calibration=data, loss="weight_l2", device="cpu")
            assert not same(before, memory(case.model)) and places(case.model) == where and modes(case.model) == how
            other = sample(seed)
            other.model.eval()
            wanted = expected(other, tuple(plan.order), computing)
            assert plan.apply(case.model) is case.model
        else:
            assert cc.apply(cc.Sequence(tuple(order)), case.model, data, device="cpu") is case.model
    except InputError as error:
        assert "\n" not in str(error)
        assert not same(before, memory(case.model)) and places(case.model) == where and modes(case.model) == how
        assert case.odd & REFUSED or (looks and "Dead" in case.odd), str(error)
        return "refused"
    assert places(case.model) == where and modes(case.model) == how
    case.model.eval()
    after, owned = memory(case.model), set[int]()
    rounded = looks or "Merging" in case.odd  # what is merged and taken out again is rounded twice
    misses: dict[int, list[str]] = {}
    for names, result in wanted:
        name = f"{names[0]}.weight"
        owned |= {where[f"{one}.weight"][1] for one in names}
        misses.setdefault(where[name][1], []).append("" if agree(after[name], result, rounded) else name)
    assert all("" in of_one_memory for of_one_memory in misses.values()), misses
    assert {where[name][1] for name in same(computing, after)} <= owned
    return "compressed"


@pytest.mark.parametrize("start", spread(range(0, 300, 25), 4))
def test_by_hand(start: int) -> None:
    found = [check(seed) for seed in range(start, start + 25)]
    assert found.count("compressed") > 12


@pytest.mark.exhaustive
@pytest.mark.parametrize("start", range(300, 3000, 100))
def test_by_hand_at_length(start: int) -> None:
    for seed in range(start, start + 100):
        check(seed)
