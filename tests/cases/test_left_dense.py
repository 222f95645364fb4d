"""What no technique acts on is named, with its share; shares of less than one unit are remarked on."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomp as cc
import compcomp.techniques as catalogue
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.models.layers import find_layers
from compcomp.models.outside import note_of, outside
from compcomp.reporting.html import page
from compcomp.techniques import AbsMax, Magnitude, PruneColumns, PruneHeads, PruneNeurons, PruneRows, RemoveBlocks
from tests.models.fakes import Tiny

LLAMA = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8}


def built(name: str, **sizes: Any) -> Any:
    import transformers

    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(kind.config_class(**(LLAMA | sizes))).eval()


class Mixed(nn.Module):
    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.table, self.layer, self.other = nn.Embedding(7, 8), nn.Linear(8, 8), other

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.table(x))
        return found


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.select_bias = nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(4, 2))


OTHERS: dict[str, tuple[Any, str]] = {
    "router": (Router, "other.weight"),
    "convolution": (lambda: nn.Conv1d(8, 8, 3), "other.weight"),
    "pixels": (lambda: nn.Conv2d(3, 8, 4), "other.weight"),
    "gru": (lambda: nn.GRU(8, 8), "other.weight_ih_l0"),
    "lstm": (lambda: nn.LSTM(8, 4, 2), "other.weight_ih_l0"),
    "bilinear": (lambda: nn.Bilinear(8, 4, 8), "other.weight"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_in_other_modules_are_named(kind: str) -> None:
    make, name = OTHERS[kind]
    model = Mixed(make())
    found = outside(model, find_layers(model))
    total = sum(p.numel() for p in model.parameters())
    inside = sum(layer.weight.numel() for layer in find_layers(model))
    assert (found["of"], found["parameters"]) == (total, total - inside)
    assert found["share"] == pytest.approx(1 - inside / total)
    assert found["unsupported"]["largest"][0]["name"] == name
    assert name in str(note_of(found))


def test_embeddings_norms_biases_and_what_is_ignored_are_counted_and_need_no_note() -> None:
    model = Mixed(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.EmbeddingBag(9, 8)))
    found = outside(model, find_layers(model, ignore=["other.1"]))
    assert [one["name"] for one in found["largest"]] == ["other.2.weight", "other.1.weight", "table.weight"]
    assert found["unsupported"]["parameters"] == 0
    assert note_of(found) is None


def test_a_tied_weight_counts_once() -> None:
    model = Tiny(tied=True)
    found = outside(model, find_layers(model))
    assert found["of"] == sum(p.numel() for p in model.parameters())
    assert note_of(found) is None


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM"])
def test_what_experts_leave_dense_is_named_wherever_a_rate_is_given(name: str, tmp_path: Path) -> None:
    sizes = {"num_local_experts": 4} if name.startswith("Mix") else {"num_experts": 4, "moe_intermediate_size": 48}
    model = built(name, num_key_value_heads=2, **sizes)
    routers = {n for n, p in model.named_parameters() if "gate.weight" in n}
    plan = cc.optimize_order([Magnitude(sparsity="1/2"), AbsMax(bits=4)], loss="weight_l2", model=model)
    total = sum(p.numel() for p in model.parameters())
    layers = {layer.name: layer for layer in find_layers(model)}
    inside = sum(layer.weight.numel() for layer in layers.values())
    assert plan.outside is not None
    assert {one["name"] for one in plan.outside["unsupported"]["largest"]} == routers
    assert plan.compression_rate is not None
    rate = plan.compression_rate * inside / total
    assert plan.model_compression_rate == pytest.approx(rate)
    assert any(min(routers) in note and max(routers) in note for note in plan.notes)
    for text in (str(plan), page(plan)):
        assert f"of the whole model {rate:.1%}" in text
        assert min(routers) in text
    plan.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert saved["outside"] == plan.outside
    assert saved["model_compression_rate"] == pytest.approx(rate)
    with pytest.warns(UserWarning, match="left dense: .* of the parameters are weights that no layer holds"):
        cc.apply(AbsMax(bits=4), built(name, num_key_value_heads=2, **sizes))


def test_where_nothing_is_left_out_nothing_is_said() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cc.apply(AbsMax(bits=4), nn.Sequential(nn.Linear(8, 8, bias=False)))
    plan = cc.optimize_order([AbsMax(bits=4)], loss="weight_l2", model=model)
    assert not any("left dense" in note for note in plan.notes)
    assert "of the whole model" not in str(plan)


# ------------------------------------------------------------------------------------ less than one unit


@pytest.mark.parametrize(
    ("technique", "sizes", "units"),
    [
        (PruneHeads(sparsity="1/2"), {"num_key_value_heads": 1}, 1),
        (PruneHeads(sparsity="1/4"), {"num_key_value_heads": 2}, 2),
        (PruneHeads(sparsity="1/10"), {"num_key_value_heads": 8}, 8),
        (PruneNeurons(sparsity="1/50"), {}, 48),
        (RemoveBlocks(sparsity="1/4"), {}, 2),
    ],
)
def test_units_of_the_whole_model(technique: Technique, sizes: dict[str, int], units: int) -> None:
    model = built("LlamaForCausalLM", **sizes)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        InputError, match=rf"^{type(technique).__name__}.*: a share of .*, which of {units} .*less than one"
    ):
        cc.apply(technique, model, calibration=[ids])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_share_of_one_unit_is_dropped() -> None:
    model = built("LlamaForCausalLM", num_key_value_heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cc.apply(PruneHeads(sparsity="1/2"), model)
    assert sum(int((p == 0).sum()) for p in model.parameters()) == 2 * (4 * 4 * 32 * 2 + 2 * 4 * 32)


SMALL = Fraction(1, 1000)
GIVEN: dict[str, dict[str, Any]] = {
    "JointPruneQuantize": {"bits": 4, "per": "row"},
    "JSQ": {"bits": 4, "per": "row"},
    "LoSparse": {"rank": 1},
    "Magnitude": {"per": "row"},
    "GradualMagnitude": {"per": "row"},
    "RIA": {"per": "row"},
}
SHARES = [
    "AdaptiveSparseTraining",
    "GradualMagnitude",
    "JSQ",
    "JointPruneQuantize",
    "LearnedMask",
    "LoSparse",
    "Magnitude",
    "OBS",
    "PruneColumns",
    "PruneRows",
    "RIA",
    "SparseGPT",
    "Taylor",
    "Wanda",
]


@pytest.mark.parametrize("name", SHARES)
def test_every_technique_with_a_share_tells_how_many_units_that_is(name: str) -> None:
    kind = getattr(catalogue, name)
    few = kind(sparsity=SMALL, **GIVEN.get(name, {})).dropped((8, 12))
    assert few is not None
    assert few[0] == 0
    assert 0 < few[1] <= 96
    many = kind(sparsity=Fraction(1, 2), **GIVEN.get(name, {})).dropped((8, 12))
    assert many == (few[1] // 2, few[1])
    assert kind(sparsity=Fraction(0), **GIVEN.get(name, {})).dropped((8, 12)) is None


@pytest.mark.parametrize(
    "technique", [PruneRows(sparsity="1/20"), PruneColumns(sparsity="1/10"), Magnitude(sparsity="1/500", per="row")]
)
def test_a_layer_of_which_nothing_goes_is_named(technique: Technique) -> None:
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 600, bias=False), nn.Linear(600, 4, bias=False))
    before = [p.clone() for p in model.parameters()]
    with pytest.warns(UserWarning, match=r"drops nothing of \d.*: its share of \d+ is less than one") as said:
        cc.apply(technique, model)
    same = [k for k, (p, q) in enumerate(zip(model.parameters(), before, strict=True)) if torch.equal(p, q)]
    message = str(said[0].message)
    assert f"drops nothing of {same[0]}" in message
    assert ("more layers" in message) == (len(same) > 1)


def test_a_plan_notes_it() -> None:
    model, few = nn.Sequential(nn.Linear(8, 8, bias=False)), Magnitude(sparsity="1/500", per="row")
    plan = cc.optimize_order([few, AbsMax(bits=4)], loss="weight_l2", model=model)
    assert f"{few} drops nothing of 0: its share of 8 is less than one" in plan.notes
