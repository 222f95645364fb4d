"""Messages to other processes hold no contents of tensors, and give back every value and all shared memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compcomp.models import message
from compcomp.models.message import pack, unpack

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool]


def again(value: Any, path: Path) -> Any:
    return unpack(pack(value, path / "here"), CPU)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_shapes_and_strides(dtype: torch.dtype, tmp_path: Path) -> None:
    given = (torch.randn(6, 8) * 3).to(dtype)
    views = [given, given.T, given[1:, ::2], given[3, 5], given[:0], given.expand(2, 6, 8)]
    found = again(views, tmp_path)
    for one, other in zip(views, found, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
        assert one.stride() == other.stride() and one.storage_offset() == other.storage_offset()
    found[0].zero_()
    assert not any(bool(other.any()) for other in found), "views share memory on the other side too"
    assert bool(given.any()), "with each other, not with the ones here"


def test_memory_begins_where_any_dtype_may(tmp_path: Path) -> None:
    odd = [torch.zeros(3, dtype=torch.int8), torch.randn(5), torch.zeros(1, dtype=torch.bool), torch.randn(7).double()]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in again(odd, tmp_path))


def test_weights_go_by_path(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    sent = pack(model, tmp_path / "here")
    assert len(sent) < 10_000 < 2**20 < sum(file.stat().st_size for file in tmp_path.iterdir())
    assert all(file.suffix == ".safetensors" for file in tmp_path.iterdir())


def test_a_tied_model_with_hooks_and_a_closure(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False).note = "kept"  # type: ignore[attr-defined]
    model.register_buffer("more", torch.arange(4.0), persistent=False)
    shift = torch.randn(4)
    model[0].register_forward_hook(lambda module, args, out: out + shift)

    def evaluate(given: nn.Module) -> float:
        return float((given(torch.eye(4)) * shift).sum()) + (given is model)

    other = again(SimpleNamespace(model=model, evaluate=evaluate), tmp_path)
    assert other.model[1].weight is other.model[0].weight and isinstance(other.model[0].weight, nn.Parameter)
    assert not other.model[0].weight.requires_grad and other.model[0].weight.note == "kept"
    assert torch.equal(other.model.more, model.more)
    assert other.evaluate(other.model) == evaluate(model), "the function knows the model that is sent with it"
    assert other.evaluate(model) == evaluate(model) - 1


def test_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "SHARD", 1000)
    given = [torch.randn(100) for _ in range(7)]
    found = again(given, tmp_path)
    assert all(map(torch.equal, given, found))
    assert len(list(tmp_path.iterdir())) == 4, "two tensors of 400 bytes in each"


def test_a_tensor_that_is_no_plain_memory_goes_with_the_message(tmp_path: Path) -> None:
    given = [torch.randn(3, 3).to_sparse(), torch.randn(2, dtype=torch.complex64).conj(), torch.empty(5, device="meta")]
    sparse, conjugate, empty = again(given, tmp_path)
    assert torch.equal(sparse.to_dense(), given[0].to_dense()) and torch.equal(conjugate, given[1])
    assert empty.is_meta and empty.shape == (5,)
