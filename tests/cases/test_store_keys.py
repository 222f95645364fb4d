"""A store answers with measurements of the same model, data and code alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomp as cc
from compcomp.models.bench import ModelBench
from compcomp.models.fingerprint import model_fingerprint
from compcomp.techniques import AbsMax, Magnitude
from tests.amount import spread
from tests.models.fakes import qwen2

P, Q = Magnitude("1/2"), AbsMax(3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.drop = nn.Embedding(16, 8), nn.LayerNorm(8), nn.Dropout(0.1)
        self.body, self.act, self.lm_head = nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 16)
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("hidden", torch.ones(8), persistent=False)
        self.last: Callable[[Tensor], Tensor] = torch.tanh
        self.factor, self.options = 1.0, {"power": [1, 2]}

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.norm(self.embed(ids)) * self.scale * self.hidden * self.factor
        y: Tensor = self.lm_head(self.last(self.drop(self.act(self.body(x)))))
        return y


class Other(Net):
    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return 2 * super().forward(ids, attention_mask)


def recast(m: Any) -> None:
    m.__class__ = Other


CHANGES: dict[str, Callable[[Any], Any]] = {
    "head scaled": lambda m: m.lm_head.weight.data.mul_(2),
    "head's bias": lambda m: m.lm_head.bias.data.add_(1),
    "bias of a layer": lambda m: m.body.bias.data.add_(1),
    "one entry of the embedding": lambda m: m.embed.weight.data[3, 2].add_(1e-3),
    "norm": lambda m: m.norm.weight.data.mul_(1.5),
    "buffer": lambda m: m.scale[0].add_(1),
    "buffer that is not saved": lambda m: m.hidden[0].add_(1),
    "eps": lambda m: setattr(m.norm, "eps", 1e-2),
    "dropout": lambda m: setattr(m.drop, "p", 0.5),
    "activation": lambda m: setattr(m, "act", nn.ReLU()),
    "activation's setting": lambda m: setattr(m, "act", nn.GELU(approximate="tanh")),
    "function": lambda m: setattr(m, "last", torch.relu),
    "function of one's own": lambda m: setattr(m, "last", lambda x: 2 * x),
    "number": lambda m: setattr(m, "factor", 1.5),
    "settings": lambda m: m.options["power"].append(3),
    "dtype": lambda m: m.double(),
    "code": recast,
    "hook": lambda m: m.body.register_forward_hook(lambda module, args, output: output * 2),
    "another hook": lambda m: m.body.register_forward_hook(lambda module, args, output: output * 3),
    "sign of zero": lambda m: m.lm_head.bias.data.zero_().neg_(),
}


def test_every_change_has_a_fingerprint_of_its_own() -> None:
    found = {"none": model_fingerprint(Net())}
    assert model_fingerprint(Net().eval()) == found["none"] == model_fingerprint(Net().requires_grad_(False))
    for name, change in CHANGES.items():
        model = Net()
        change(model)
        found[name] = model_fingerprint(model)
    assert len(set(found.values())) == len(found), found


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.lm_head.weight.data.mul_(2),
        lambda m: setattr(m.config, "rms_norm_eps", 0.1),
        lambda m: setattr(m.config, "_attn_implementation", "eager"),
        lambda m: setattr(m.model.layers[0].input_layernorm, "variance_epsilon", 0.1),
        lambda m: m.model.rotary_emb.inv_freq.mul_(2),
    ],
)
def test_models_of_transformers(change: Callable[[Any], Any]) -> None:
    model = qwen2()
    before = model_fingerprint(qwen2())
    assert model_fingerprint(model) == before
    change(model)
    assert model_fingerprint(model) != before


IDS = torch.randint(0, 16, (4, 6), generator=torch.Generator().manual_seed(1))


class Loss:
    key = "held-out text, v1"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.calls += 1
        with torch.no_grad():
            return {"loss": nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten()).item()}


@pytest.mark.parametrize("change", [None, *spread(CHANGES, 10)])
def test_a_store_tells_models_apart(change: str | None, tmp_path: Path) -> None:
    def searched(model: nn.Module, store: Path | None) -> tuple[Any, int]:
        evaluate = Loss()
        plan = cc.optimize_order([P, Q], model=model, calibration=IDS, evaluate=evaluate, store=store)
        rows = sorted((row["order"], row["metrics"]["loss"], row["losses"]["output_l2"]) for row in plan.measurements)
        return [plan.dense, *rows], evaluate.calls

    searched(Net(), tmp_path / "plan.db")
    model, fresh = Net(), Net()
    if change is not None:
        CHANGES[change](model)
        CHANGES[change](fresh)
    found, calls = searched(model, tmp_path / "plan.db")
    assert found == searched(fresh, None)[0]
    assert (calls == 0) is (change is None)


def test_calibration_counts_with_its_masks() -> None:
    def key(batches: Any, keep: bool) -> str | None:
        return ModelBench(Net(), batches, Loss(), device="cpu", keep_batches=keep).fingerprint()

    mask = torch.ones_like(IDS)
    mask[0, 3:] = 0
    for keep in (False, True):
        keys = [
            key([{"ids": IDS}], keep),
            key([{"ids": IDS, "attention_mask": mask}], keep),
            key([{"ids": IDS.flip(1)[:3]}], keep),
        ]
        assert len(set(keys)) == 3 and key([{"ids": IDS}], keep) == keys[0]
    other = Loss()
    other.key = "v2"
    assert ModelBench(Net(), [IDS], other, device="cpu").fingerprint() != key([IDS], False)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ModelBench(Net(), [IDS], Loss(), device="cpu")
    assert cast.fingerprint() != key([IDS], False)


def test_it_is_quick() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)))
    start = time.process_time()
    model_fingerprint(model)
    assert time.process_time() - start < 2
