from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compcomp.errors import InputError
from compcomp.layers.state import Format, LayerState
from compcomp.models.devices import choose, move


@pytest.mark.parametrize("given", ["gpu", "meta", "mps", "cuda:99", 3.5, None, ""])
def test_devices_that_are_not_there(given: Any) -> None:
    with pytest.raises(InputError, match=r"^device: .*; allowed: 'auto', 'cpu', or one of the"):
        choose(nn.Linear(2, 2), given)


def test_auto_is_cuda_where_there_is_one() -> None:
    there = torch.cuda.is_available()
    assert choose(nn.Linear(2, 2), "auto") == (torch.device("cuda", 0) if there else torch.device("cpu"))
    assert choose(nn.Linear(2, 2), torch.device("cpu")) == torch.device("cpu")


def test_a_model_on_several_devices_stays() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert choose(model, "auto") is None
    with pytest.raises(InputError, match="'cpu' for a model on cpu, meta; allowed: 'auto'"):
        choose(model, "cpu")


def test_all_tensors_in_a_value_move() -> None:
    state = LayerState.dense(torch.ones(2, 2), gram=torch.eye(2))
    there = move({"a": [state, "text", None]}, torch.device("meta"))["a"]
    assert there[0].weight.device.type == there[0].gram.device.type == "meta"
    assert there[0].format == Format() and there[1:] == ["text", None]
