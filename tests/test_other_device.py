"""Run everything on a device that is not the CPU: results are the CPU's bit for bit, and mistakes are caught."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compcomp as cc
from compcomp.errors import InputError
from compcomp.kernels import block_means, learned_mask, magnitude
from compcomp.language.technique import Sequence, Technique
from compcomp.layers import walk
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.models import calibrate as calibration
from compcomp.models import grams, padding
from compcomp.models.bench import ModelBench
from compcomp.models.devices import bring, move
from compcomp.models.layers import find_layers
from compcomp.models.lockstep import Lockstep, Stage
from compcomp.models.memory import overlap
from compcomp.models.states import applied
from compcomp.techniques import (
    GPTQ,
    AbsMax,
    BlockMeans,
    DistillHidden,
    DistillLogits,
    LearnedMask,
    LeastSquaresDistill,
    LoftQ,
    LoSparse,
    Magnitude,
    SmoothQuant,
    SparseGPT,
    TruncatedSVD,
    Wanda,
)
from compcomp.testing import conventions
from tests.amount import covering, marked, spread
from tests.architectures import ARCHITECTURES
from tests.by_hand import memory, same
from tests.helpers import tensors
from tests.models.fakes import Tiny, tokens
from tests.other_device import CPU, OtherTensor, other_device

pytest.importorskip("transformers")

HALF: Any = "1/2"
SHAPES = ((8, 16), (16, 8), (4, 8), (2, 4), (3, 3))
OTHERWISE = (TruncatedSVD, LoftQ, LoSparse, LearnedMask)
"""Techniques that compute in float32 on a device where the CPU does in float64."""
LAYERWISE = Magnitude(HALF) >> AbsMax(bits=4, group=4) >> LeastSquaresDistill()
CALIBRATED = SparseGPT(HALF) >> GPTQ(bits=4, mask="kept")


@pytest.fixture
def other() -> Iterator[torch.device]:
    with other_device() as device, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield device


# ------------------------------------------------------------------------------------------ the device is one


def test_tensors_of_the_device_are_the_cpus(other: torch.device) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    y = x.to(other)
    assert y.device == other and (y @ y.T).cpu().tolist() == (x @ x.T).tolist()
    assert y[1, 2].item() == 6 and y[y > 5].tolist() == [6, 7, 8, 9, 10, 11] and bool((y[:, 1:] == y[:, 1:]).all())
    assert all(made.device == other for made in (torch.zeros(2, device=other), torch.tensor([1, 2], device=other)))
    assert all(made.device == CPU for made in (torch.zeros_like(y, device="cpu"), y.to("cpu"), y.cpu()))
    view = y[0]
    view.add_(1)
    assert y[0].tolist() == [1, 2, 3, 4] and y._version == 1 and x[0].tolist() == [0, 1, 2, 3]
    assert copy.deepcopy(y).device == other and (y + torch.tensor(1.0)).device == other
    weight = nn.Parameter(y)
    (weight * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and weight.grad.device == other and torch.equal(weight.grad, 2 * y)


@pytest.mark.parametrize(
    "act",
    [
        lambda x, y: x + y,
        lambda x, y: y.mul_(x),
        lambda x, y: y @ x,
        lambda x, y: torch.where(x > 0, y, y),
        lambda x, y: y[x > 0],
        lambda x, y: x[(y > 0)],
        lambda x, y: torch.equal(y, x),
        lambda x, y: torch.cat([y, x]),
        lambda x, y: torch.stack([y[0, 0], x[0, 0]]),
        lambda x, y: F.linear(y, x),
        lambda x, y: F.scaled_dot_product_attention(y[None], y[None], x[None]),
        lambda x, y: y.numpy(),
        lambda x, y: torch.rand(3, generator=torch.Generator(), device=y.device),
        lambda x, y: torch.empty(0, device=y.device).set_(x.untyped_storage()),
        lambda x, y: torch.func.functional_call(nn.Linear(4, 4).to(y.device), {"weight": x}, (y,)),
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(act: Callable[[Tensor, Tensor], object], other: torch.device) -> None:
    with torch.no_grad(), pytest.raises((RuntimeError, TypeError), match=r"on the same device|to numpy"):
        act(torch.eye(4), torch.eye(4).to(other))


def test_a_model_goes_there_and_comes_back(other: torch.device) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data.T
    before, first = memory(model), model[0].weight
    for device in (other, CPU):
        bring(model, device)
        assert model[0].weight is first and all(p.device == device for p in model.parameters())
        assert overlap(model[0].weight, model[1].weight) and not overlap(model[0].weight, model[1].bias)
    assert same(before, memory(model)) == []


# --------------------------------------------------------------------------------------------------- kernels


def dense(shape: tuple[int, int], dtype: torch.dtype) -> LayerState:
    weight = tensors(shape, dtype=dtype).weight
    inputs = torch.randn(shape[1], 3 * shape[1], generator=torch.Generator().manual_seed(1), dtype=dtype)
    size = inputs.double().abs()
    return replace(LayerState.dense(weight, inputs), magnitudes=Magnitudes(size.amax(dim=1), size.mean(dim=1)))


def check_kernel(technique: Technique, state: LayerState, *, bitwise: bool = True) -> None:
    """Check that the kernel runs on the other device alone, and computes what it computes on the CPU."""
    with other_device() as device:
        found = applied(technique, "layer", move(state, device))
    for field, value in walk.arrays(applied(technique, "layer", state)):
        there = field.of(found)
        assert isinstance(there, OtherTensor), f"the {field.name} of {technique} is on {there.device}"
        assert not bitwise or torch.equal(there.cpu(), value), f"the {field.name} of {technique}"


def few(kind: type[Technique]) -> list[Technique]:
    """Conventions of a technique in which every value of each parameter occurs."""
    every = conventions(kind)
    return [every[place] for place in sorted(covering(every))]


def both_dtypes(kind: type[Technique]) -> list[torch.dtype]:
    """Return the dtypes of weights to check a technique with, the one that tells more first."""
    return [torch.float64, torch.float32] if kind in OTHERWISE else [torch.float32, torch.float64]


CASES = [(kind, dtype) for kind in Technique.kernels for dtype in both_dtypes(kind)]


@pytest.mark.parametrize(("kind", "dtype"), marked(CASES, range(0, len(CASES), 2)))
def test_kernels_compute_there_what_they_compute_on_the_cpu(kind: type[Technique], dtype: torch.dtype) -> None:
    checked = 0
    for technique in few(kind):
        shape = next(shape for shape in (*SHAPES, *kind.fixtures.shapes) if technique.fits(shape))
        start = dense(shape, dtype)
        formatted = start
        for before in (Magnitude(HALF), SmoothQuant(), AbsMax(bits=3), TruncatedSVD(rank=1, residual=True)):
            formatted = applied(before, "layer", formatted)
        for state in (start, formatted):
            check_kernel(technique, state, bitwise=dtype is torch.float64 or kind not in OTHERWISE)
            checked += 1
    assert checked >= 2


# ---------------------------------------------------------------------------------------------------- models


def build(name: str) -> tuple[Callable[[], nn.Module], list[Any]]:
    """Return a function that makes a model, and its batches: one without padding and one with."""
    if name == "plain":
        return Tiny, tokens()
    one = ARCHITECTURES[name]
    more: dict[str, Any] = {"num_hidden_layers": 2} if name == "llama" else {}
    batches = [*one.batches(count=1), *one.batches(count=1, padded=True)]
    return lambda: one.build(biases=False, **more), batches


def metric(model: nn.Module) -> dict[str, float]:
    ids = torch.arange(6, device=next(model.parameters()).device)[None]
    with torch.no_grad():
        output = model(ids)
    return {"size": float(getattr(output, "logits", output).double().square().mean())}


def check_calibration(name: str) -> None:
    """Check that dense calibration gives the CPU's matrices and magnitudes, on the model's device."""
    make, batches = build(name)
    found = []
    with other_device() as other:
        for device in (CPU, other):
            model, sizes, notes = make().to(device), dict[str, Magnitudes](), list[str]()
            grams = calibration.calibrate(model, find_layers(model), batches, sizes, notes)
            for tensor in (*grams.values(), *(t for size in sizes.values() for t in (size.largest, size.mean))):
                assert tensor.device == device
            found.append((grams, sizes, notes))
    (grams, sizes, notes), (there, sizes_there, notes_there) = found
    assert notes == notes_there and grams.keys() == there.keys()
    for layer, gram in grams.items():
        assert torch.equal(gram, there[layer].cpu())
        for one, two in zip(vars(sizes[layer]).values(), vars(sizes_there[layer]).values(), strict=True):
            assert torch.equal(one, two.cpu())


def check_bench(name: str, order: Sequence = LAYERWISE, offload: bool = False, bitwise: bool = True) -> None:
    """Check that a bench applies, measures and writes there what it does on the CPU, and brings the model back."""
    make, batches = build(name)
    found: list[Any] = []
    with other_device() as other:
        for device in (CPU, other):
            model = make()
            evaluate = metric if name == "plain" or ARCHITECTURES[name].batch == "text" else None
            with ModelBench(model, batches, evaluate, device, offload=offload, keep_batches=True) as bench:
                start = bench.start()
                after = bench.apply(order, start)
                for _, tensor in walk.arrays(next(iter(after.values()))):
                    assert tensor.device == (CPU if offload else device)
                measured = bench.losses(after), bench.evaluate(start), bench.evaluate(after)
                found.append((*measured, bench.digest(after), bench.bits(after)))
                bench.write(after)
                assert all(p.device == device for p in model.parameters())
            assert all(p.device == CPU for p in model.parameters())
            found[-1] = (*found[-1], memory(model))
    here, there = found
    if bitwise:
        assert here[:-1] == there[:-1] and same(here[-1], there[-1]) == []
    for value, other_value in zip(here[0].values(), there[0].values(), strict=True):
        assert math.isclose(value, other_value, rel_tol=1e-3)


def check_blocks(name: str, at_home: bool = False, **how: Any) -> None:
    """Check that the engine that goes block by block does there what it does on the CPU.

    ``at_home``: the model is on the other device from the start, and stays there.
    """
    make, batches = build(name)
    with other_device() as other:
        home = other if at_home else CPU
        here, there = make(), make().to(home)
        cc.apply(CALIBRATED, here, batches, device="cpu", **how)
        cc.apply(CALIBRATED, there, batches, device=other, **how)
        assert all(p.device == home for p in there.parameters())
        assert same(memory(here), memory(there.cpu())) == []
        assert same(memory(here), memory(make())) != []


WITH_MEMORY = [name for name in ARCHITECTURES if name != "mamba"]
"""Architectures whose layers are all called: others find weights by their memory, which this device does not have."""


@pytest.mark.parametrize("name", ["plain", *spread(WITH_MEMORY, 4)])
def test_calibration_there_sees_what_it_sees_on_the_cpu(name: Any, other: torch.device) -> None:
    check_calibration(name)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("plain", {"at_home": True}),
        ("plain", {"blocks": ["blocks.*"], "calibrate": "block"}),
        ("llama", {}),
        ("t5", {}),
        *marked([(name, {}) for name in WITH_MEMORY if name not in ("llama", "t5")], ()),
        *marked([("bert", {"calibrate": "block", "passes": "own"}), ("gpt2", {"calibrate": "dense"})], ()),
    ],
)
def test_blocks_are_compressed_there_as_on_the_cpu(name: str, how: dict[str, Any], other: torch.device) -> None:
    check_blocks(name, **how)


class Counting(Tiny):
    """A model that makes a tensor between its blocks, on the device that torch takes where none is given."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x) + torch.arange(x.shape[1])[:, None] / 8
        logits: Tensor = self.lm_head(x)
        return logits


@pytest.mark.parametrize("name", ["plain", "llama"])
def test_what_runs_may_rely_on_a_default_device(name: str, other: torch.device) -> None:
    make, batches = build(name)
    make, blocks = (Counting, ["blocks.*"]) if name == "plain" else (make, None)
    here, there = make(), make().to(other)
    cc.apply(CALIBRATED, here, batches, device="cpu", blocks=blocks)
    with other:
        cc.apply(CALIBRATED, there, batches, device=other, blocks=blocks)
        with ModelBench(there, batches, device=other) as bench:
            assert bench.losses(bench.apply(LAYERWISE, bench.start()))["weight_l2"] > 0
    assert same(memory(here), memory(there.cpu())) == []


def test_batches_in_lockstep_keep_what_belongs_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of a block, with its old weights, leaves no trace in the random numbers of the second."""
    state, drawn, entered = [5], list[int](), list[object]()

    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            drawn.append(state[0])
            state[0] += 1
            return x

    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 1,
        "device": lambda number: nullcontext(entered.append((number, threading.current_thread()))),
        "get_rng_state_all": lambda: list(state),
        "set_rng_state_all": lambda given: state.__setitem__(slice(None), given),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    model = Drawing()
    stage, calls = Stage("", model), [partial(model, torch.ones(1)) for _ in range(2)]
    with Lockstep([stage], calls) as lockstep:
        for found in lockstep.stages():
            assert list(lockstep.run(found, final=False)) == list(lockstep.leave(found)) == [None, None]
    assert drawn == [5, 5, 5, 6]
    assert [number for number, _ in entered] == [1, 1]
    assert len({thread for _, thread in entered} - {threading.current_thread()}) == 2


@pytest.mark.parametrize(("name", "offload"), [("plain", False), ("plain", True), *marked([("llama", False)], ())])
def test_a_bench_measures_there_what_it_measures_on_the_cpu(name: str, offload: bool, other: torch.device) -> None:
    check_bench(name, offload=offload)


@pytest.mark.parametrize("kind", [kind for kind in Technique.kernels if kind.whole_model], ids=lambda k: k.__name__)
def test_techniques_for_the_whole_model_run_there(kind: type[Technique], other: torch.device) -> None:
    """Gradients are summed in another order there: training is not bitwise that of the CPU."""
    check_bench("llama", Magnitude(HALF) >> few(kind)[0], bitwise=kind not in (DistillHidden, DistillLogits))


@pytest.mark.parametrize("name", ["llama", *marked(["plain"], ())])
def test_a_search_there_is_the_search_on_the_cpu(name: Any, other: torch.device, tmp_path: Path) -> None:
    make, batches = build(name)
    plans, files, models = [], [], []
    for device in (CPU, other):
        model, techniques = make(), [Wanda(HALF), AbsMax(bits=4, group=4)]
        plan = cc.optimize_order(techniques, model=model, calibration=batches, evaluate=metric, device=device)
        assert all(p.device == CPU for p in model.parameters())
        plan.save(tmp_path / str(device))
        written = (tmp_path / str(device)).glob("*.safetensors")
        files.append({path.name: path.read_bytes() for path in written})
        plan.apply(model)
        plans.append(plan)
        models.append(memory(model))
    assert plans[0].order == plans[1].order and files[0] == files[1] and len(files[0]) == 2
    assert same(*models) == []
    assert plans[0].measurements == plans[1].measurements and plans[0].dense == plans[1].dense


def test_a_checkpoint_on_disk_is_compressed_there_as_on_the_cpu(other: torch.device, tmp_path: Path) -> None:
    make, batches = build("llama")
    make().save_pretrained(tmp_path / "dense")  # type: ignore[operator]
    for device in (CPU, other):
        cc.compress_checkpoint(CALIBRATED, tmp_path / "dense", tmp_path / device.type, batches, device)
    paths = sorted((tmp_path / "cpu").iterdir())
    assert len(paths) > 6
    for path in paths:
        assert path.read_bytes() == (tmp_path / other.type / path.name).read_bytes(), path.name


# -------------------------------------------------------------------------------------------------- mistakes


class Careless(ModuleType):
    """The module torch as a kernel sees it that forgets to give the device to this function."""

    def __init__(self, name: str) -> None:
        super().__init__("torch")
        function = getattr(torch, name)
        setattr(self, name, lambda *args, device=None: function(*(a for a in args if not isinstance(a, torch.device))))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def makes_a_range_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(block_means, "torch", Careless("arange"))


def leaves_gram_matrices_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    right = grams.gram
    patch.setattr(grams, "gram", lambda rows: right(rows).cpu())


def moves_a_mask_to_the_cpu(patch: pytest.MonkeyPatch) -> None:
    right = padding.Followed.kept

    def kept(self: Any, layer: str, inputs: Tensor) -> Tensor | None:
        found = right(self, layer, inputs)
        return None if found is None else found.cpu()

    patch.setattr(padding.Followed, "kept", kept)


def hands_device_tensors_to_numpy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tensor, "cpu", lambda tensor: tensor)


def puts_the_result_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    right = magnitude.kernel

    def kernel(technique: Any, layer: LayerState) -> LayerState:
        return replace(after := right(technique, layer), weight=after.weight.cpu())

    patch.setattr(magnitude, "kernel", kernel)


def draws_with_the_cpus_generator(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(learned_mask, "torch", Careless("Generator"))


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        (makes_a_range_on_the_cpu, lambda: check_kernel(BlockMeans(rank=2), dense((8, 16), torch.float32))),
        (leaves_gram_matrices_on_the_cpu, lambda: check_calibration("plain")),
        (leaves_gram_matrices_on_the_cpu, lambda: check_blocks("plain")),
        (moves_a_mask_to_the_cpu, lambda: check_blocks("llama")),
        (hands_device_tensors_to_numpy, lambda: check_bench("plain")),
        (puts_the_result_on_the_cpu, lambda: check_kernel(Magnitude(HALF), dense((8, 16), torch.float32))),
        (
            draws_with_the_cpus_generator,
            lambda: check_kernel(LearnedMask(HALF, iterations=2), dense((8, 16), torch.float64)),
        ),
    ],
)
def test_mistakes_with_devices_are_caught(
    mistake: Callable[[pytest.MonkeyPatch], None],
    check: Callable[[], None],
    other: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mistake(monkeypatch)
    with pytest.raises((RuntimeError, TypeError, AssertionError, InputError), match=r"same device|numpy|device|on cpu"):
        check()
