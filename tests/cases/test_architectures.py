"""Every architecture: what a search and a plan do to a model, what is saved and loaded, and what cut makes of it."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.models.layers import find_layers, layers_by_name
from compcomp.models.save import load_weights
from compcomp.techniques import (
    GPTQ,
    AbsMax,
    Magnitude,
    MinMax,
    PruneColumns,
    PruneHeads,
    PruneNeurons,
    PruneRows,
    RemoveBlocks,
    TruncatedSVD,
    Wanda,
)
from tests.amount import spread
from tests.architectures import ARCHITECTURES, Architecture
from tests.by_hand import compressed, memory, modes, places, same, sequential

pytest.importorskip("transformers")

HALF: Any = "1/2"
THIRD: Any = "1/3"
DATA_FREE: list[Technique] = [
    Magnitude(HALF),
    Magnitude(THIRD, per="row"),
    AbsMax(bits=4),
    AbsMax(bits=3, per="channel"),
    MinMax(bits=4),
    PruneRows(THIRD),
    PruneColumns(THIRD),
    TruncatedSVD(rank=2),
]
LOOKING: list[Technique] = [Wanda(HALF), GPTQ(bits=4), Wanda(THIRD)]
UNITS: list[Any] = [
    PruneNeurons(HALF),
    PruneHeads(HALF),
    RemoveBlocks(count=1),
    PruneHeads(HALF) >> PruneNeurons(THIRD),
    RemoveBlocks(count=1) >> PruneHeads(HALF) >> PruneNeurons(THIRD),
    PruneNeurons(THIRD, score="activation") >> AbsMax(bits=8),
    RemoveBlocks(count=2, score="angular") >> Magnitude(THIRD),
]


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    """Copies of all that a model puts out in floats, without caches."""
    with torch.no_grad():
        return [x.clone() for x in floats(model(**batch))]


def floats(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found] if found.is_floating_point() else []
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list | tuple) else ()
    return [x for key, item in items if key != "past_key_values" for x in floats(item)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def in_one_line(error: InputError) -> None:
    assert "\n" not in str(error) and error.given and error.allowed


def planned(one: Architecture, seed: int, folder: Path) -> None:
    """Search, apply, save and load."""
    choice = random.Random(f"{one.name}{seed}")
    looks, padded = choice.random() < 0.5, choice.random() < 0.5
    techniques = choice.sample(DATA_FREE, 2) if not looks else [choice.choice(DATA_FREE), choice.choice(LOOKING)]
    model = one.build(seed)
    if choice.random() < 0.3:
        model.train()
    batches = one.batches(padded=padded, seed=seed)
    before, where, how = memory(model), places(model), modes(model)
    try:
        plan = cc.optimize_order(
            techniques, model=model, calibration=batches if looks else None, loss="weight_l2", device="cpu"
        )
    except InputError as error:
        in_one_line(error)
        assert looks  # without data nothing is in the way
        assert not same(before, memory(model)) and places(model) == where and modes(model) == how
        return
    assert not same(before, memory(model)) and places(model) == where and modes(model) == how
    names = [layer.name for layer in find_layers(model)]
    layers = layers_by_name(model)
    by_blocks = sequential(model, names, batches, tuple(plan.order)) if looks and not padded else {}
    try:
        plan.save(folder)
        config = model.config.to_dict()  # save_pretrained writes its class and dtype into it
        assert not same(before, memory(model)) and places(model) == where and modes(model) == how
        assert plan.apply(model) is model
    except InputError as error:
        in_one_line(error)
        assert not same(before, memory(model)) and places(model) == where and modes(model) == how
        return
    assert places(model) == where and modes(model) == how and model.config.to_dict() == config
    after, touched = memory(model), set[str]()
    for name in names:
        touched |= {layers[name].stored}
        if not padded or not looks:
            turned = layers[name].transposed
            if looks:
                expected = by_blocks[name].T if turned else by_blocks[name]
            else:
                dense = layers[name].of(before[layers[name].stored])
                expected = compressed(dense, None, tuple(plan.order))
            found = layers[name].weight
            if looks:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
                assert torch.equal(found == 0, expected == 0)
            else:
                assert torch.equal(found, expected), name
    owned = {where[name][1] for name in touched}
    assert all(where[name][1] in owned for name in same(before, after))
    assert touched & set(same(before, after))

    model.eval()
    wanted = outputs(model, batches[0])
    assert equal(outputs(type(model).from_pretrained(folder).eval(), batches[0]), wanted)
    assert equal(outputs(load_weights(one.build(seed + 1), folder).eval(), batches[0]), wanted)


def cut(one: Architecture, seed: int, order: Any, folder: Path) -> str:
    """Remove units or blocks physically, save and load; what became of it, as one text."""
    choice = random.Random(f"{one.name}{seed}{order}")
    batches = one.batches(padded=choice.random() < 0.5, seed=seed)
    model = one.build(seed, biases=choice.random() < 0.3)
    before, where, how = memory(model), places(model), modes(model)
    try:
        cc.apply(order, model, batches, device="cpu")
    except InputError as error:
        in_one_line(error)
        assert not same(before, memory(model)) and places(model) == where and modes(model) == how
        return "not applied"
    pruned, wanted, config = memory(model), [outputs(model, batch) for batch in batches], model.config.to_dict()
    count = sum(p.numel() for p in model.parameters())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="cut: left as they are")
        try:
            assert cc.cut(model, batches[0]) is model
        except InputError as error:
            in_one_line(error)
            assert not same(pruned, memory(model)) and places(model) == where and modes(model) == how
            assert model.config.to_dict() == config
            return "not cut"
    assert modes(model) != [] and not model.training
    for batch, was in zip(batches, wanted, strict=True):
        close(was, outputs(model, batch))
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder).eval()
    for batch in batches:
        assert equal(outputs(loaded, batch), outputs(model, batch))
    if hasattr(model, "generate") and one.batch == "text" and "Causal" in type(model).__name__:
        close(*grown(model))
        close(grown(loaded)[0], grown(model)[0])
    return "cut" if sum(p.numel() for p in model.parameters()) < count else "nothing to cut"


def grown(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The last logits of a text read token by token with the cache, and at once."""
    ids = torch.arange(4, 10)[None]
    with torch.no_grad():
        cache: dict[str, Any] = {}
        for place in range(ids.shape[1]):
            found = model(input_ids=ids[:, place : place + 1], use_cache=True, **cache)
            key = "cache_params" if hasattr(found, "cache_params") else "past_key_values"
            cache = {key: getattr(found, key)}
        return [found.logits[:, -1]], [model(input_ids=ids, use_cache=False).logits[:, -1]]


def test_there_are_enough() -> None:
    assert len(ARCHITECTURES) >= 34


@pytest.mark.parametrize("name", spread(ARCHITECTURES, 34))
def test_search_apply_save_and_load(name: str, tmp_path: Path) -> None:
    planned(ARCHITECTURES[name], 0, tmp_path)


@pytest.mark.parametrize(("place", "name"), spread([*enumerate(reversed(ARCHITECTURES))], 34))
def test_prune_cut_save_and_load(place: int, name: str, tmp_path: Path) -> None:
    cut(ARCHITECTURES[name], 0, UNITS[place % 5], tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_more_of_it(name: str, seed: int, tmp_path: Path) -> None:
    planned(ARCHITECTURES[name], seed, tmp_path / "planned")
    for place, order in enumerate(UNITS):
        cut(ARCHITECTURES[name], seed, order, tmp_path / str(place))
