"""Weights that a module multiplies with inside its forward: experts and attention, each on the tokens it gets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.models.calibrate import calibrate
from compcomp.models.layers import find_layers, layers_by_name
from compcomp.models.outside import note_of, outside
from compcomp.models.save import load_weights
from compcomp.techniques import GPTQ, AbsMax, DistillLogits, Magnitude, Wanda
from tests.architectures import ARCHITECTURES
from tests.by_hand import compressed, memory, modes, places, same, stored, turned

HALF: Any = "1/2"
COUNT, OUT, IN = 3, 8, 4
USES = ("linear", "matmul", "weight first", "vectors", "einsum", "batched", "views", "grouped")


class Experts(nn.Module):
    """Token k goes to expert k % 3, by one of many ways to multiply. ``says``: it says how its weights are stored."""

    def __init__(self, use: str = "linear", transposed: bool = False, says: bool = True) -> None:
        super().__init__()
        shape = (COUNT, IN, OUT) if transposed else (COUNT, OUT, IN)
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        self.use, self.stored = use, transposed
        if says:
            self.is_transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        turned = self.weight if self.stored else self.weight.mT  # experts x in x out
        own = [x[k::COUNT] for k in range(COUNT)]
        if self.use == "linear":
            found = [F.linear(rows, turned[k].T) for k, rows in enumerate(own)]
        elif self.use == "matmul":
            found = [rows @ turned[torch.tensor(k)] for k, rows in enumerate(own)]
        elif self.use == "weight first":
            found = [(turned[k].T @ rows.T).T for k, rows in enumerate(own)]
        elif self.use == "vectors":
            found = [torch.stack([turned[k].T @ row for row in rows]) for k, rows in enumerate(own)]
        elif self.use == "einsum":
            found = [torch.einsum("ti,io->to", rows, turned[k]) for k, rows in enumerate(own)]
        elif self.use == "batched":
            found = list(torch.bmm(torch.stack(own), turned))
        elif self.use == "views":
            found = [torch.addmm(rows.new_zeros(OUT), rows, turned.flatten(0, 0)[k]) for k, rows in enumerate(own)]
        else:
            ends = torch.tensor([len(rows) for rows in own]).cumsum(0).to(torch.int32)
            found = list(torch._grouped_mm(torch.cat(own), turned, offs=ends).split([len(rows) for rows in own]))
        return torch.cat(found)


def tokens(count: int = 12, width: int = IN, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def gram(x: Tensor) -> Tensor:
    x = x.reshape(-1, x.shape[-1]).double()
    return x.T @ x


def applied(order: Sequence[Technique], model: nn.Module, batches: Any, **how: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cc.apply(cc.Sequence(tuple(order)), model, batches, device="cpu", **how)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("use", USES)
def test_each_expert_sees_its_own_tokens(use: str, transposed: bool, inference: bool) -> None:
    with torch.inference_mode(inference):
        model = Experts(use, transposed)
    x = tokens()
    layers = find_layers(model)
    assert [layer.name for layer in layers] == ["weight.0", "weight.1", "weight.2"]
    assert {layer.shape for layer in layers} == {(OUT, IN)}
    found = calibrate(model, layers, [x, 2 * x])
    for k in range(COUNT):
        torch.testing.assert_close(found[f"weight.{k}"], 5 * gram(x[k::COUNT]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("calibrated", ["sequential", "dense"])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_expert_is_compressed_as_a_layer_of_its_own(transposed: bool, calibrated: str) -> None:
    model, x, order = Experts("matmul", transposed), tokens(), [Wanda(HALF), GPTQ(bits=3)]
    dense, where = model.weight.detach().clone(), places(model)
    applied(order, model, [x], calibrate=calibrated)
    assert places(model) == where
    for k in range(COUNT):
        before, after = (weight[k].T if transposed else weight[k] for weight in (dense, model.weight.detach()))
        assert torch.equal(after, compressed(before, gram(x[k::COUNT]), order))


def test_a_weight_read_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(InputError, match=r"layer weight\.0: .*the other way round.*is_transposed"):
        calibrate(model := Experts("matmul", transposed=True, says=False), find_layers(model), [tokens()])
    square = Experts("matmul", transposed=True)
    square.weight = nn.Parameter(torch.randn(COUNT, IN, IN))
    square.is_transposed = False
    with pytest.raises(InputError, match="the other way round"):
        calibrate(square, find_layers(square), [tokens()])


def test_a_weight_multiplied_in_part_is_refused() -> None:
    class PartExperts(Experts):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight[0][:2]) + F.linear(x + 1, self.weight[0][2:4])

    with pytest.raises(InputError, match=r"layer weight\.0: a weight that the model multiplies with in part"):
        calibrate(model := PartExperts(), find_layers(model), [tokens()])


def test_experts_without_tokens_are_named_with_what_to_do() -> None:
    model, before = Experts(), Experts().weight.detach()
    message = r"layer weight\.1: no token of the calibration for experts 1, 2 .*; allowed: more .* in ignore, as"
    for calibrated in ("sequential", "dense"):
        with pytest.raises(InputError, match=message):
            applied([Wanda(HALF)], model, [tokens(1)], calibrate=calibrated)
        assert torch.equal(model.weight, before)
    applied([Wanda(HALF)], model, [tokens(1)], ignore=["weight.1", "weight.2"])
    assert torch.equal(model.weight[1:], before[1:]) and not torch.equal(model.weight[0], before[0])


def test_rows_of_zeros_are_tokens_of_other_experts() -> None:
    class Masked(Experts):
        def forward(self, x: Tensor) -> Tensor:
            own = torch.arange(len(x)) % COUNT == torch.arange(COUNT)[:, None]
            return torch.bmm(x * own[..., None], self.weight.mT).sum(dim=0)

    x, masked, found, wanted = tokens(), Masked(), dict[str, Any](), dict[str, Any]()
    calibrate(masked, find_layers(masked), [x], found)
    calibrate(own := Experts(), find_layers(own), [x], wanted)
    for name, magnitudes in wanted.items():
        torch.testing.assert_close(found[name].mean, magnitudes.mean)
    with pytest.raises(InputError, match="no token of the calibration for experts 1, 2"):
        calibrate(masked, find_layers(masked), [x[:1]])


def test_experts_left_out_are_counted_as_dense_and_kept() -> None:
    model = nn.Sequential(nn.Linear(IN, IN, bias=False), Experts())
    layers = find_layers(model, ignore=["1.weight.1"])
    assert [layer.name for layer in layers] == ["0", "1.weight.0", "1.weight.2"]
    found = outside(model, layers)
    assert (found.left.parameters, found.of) == (OUT * IN, IN * IN + COUNT * OUT * IN)
    assert note_of(found) is None  # it could be a layer
    assert outside(model, find_layers(model)).left.parameters == 0

    def spoil(given: nn.Module) -> float:
        with torch.no_grad():
            for parameter in given.parameters():
                parameter.zero_()
        return 1.0

    before = memory(model)
    plan = cc.optimize_order(
        [Magnitude(HALF), AbsMax(bits=4)], model=model, evaluate=spoil, loss="weight_l2", ignore=["1.weight.1"]
    )
    assert not same(before, memory(model))
    plan.apply(model)
    assert torch.equal(model[1].weight[1], before["1.weight"][1])
    assert not torch.equal(model[1].weight[0], before["1.weight"][0])


@pytest.mark.parametrize("targets", ["Experts", "weight.1", "1.*"])
def test_patterns_select_experts(targets: str) -> None:
    model = nn.Sequential(nn.Linear(IN, IN), Experts())
    names = [layer.name for layer in find_layers(model, targets=targets)]
    assert names == (["1.weight.1"] if targets == "weight.1" else [f"1.weight.{k}" for k in range(COUNT)])


def test_other_parameters_of_three_dimensions_are_no_layers() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Parameter(torch.randn(1, 6, IN)), nn.Linear(IN, IN)

    assert [layer.name for layer in find_layers(Places())] == ["layer"]
    assert not layers_by_name(nn.Conv1d(4, 4, 3))


def test_distillation_trains_experts_too() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(IN, IN), Experts("batched"))

    model, pruned = build(), build()
    applied([Magnitude(HALF)], pruned, [tokens()])
    applied([Magnitude(HALF), DistillLogits(iterations=3)], model, [tokens()])
    weight, start = model[1].weight, pruned[1].weight
    assert torch.equal(weight == 0, start == 0)
    assert all(not torch.equal(weight[k], start[k]) for k in range(COUNT))


# ------------------------------------------------------------------------------------------------ transformers


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_fused_experts_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    one = ARCHITECTURES[name]
    model, order = one.build(), cc.Sequence((Magnitude(HALF, per="row"), AbsMax(bits=4, per="channel")))
    dense, layers = memory(model), {layer.name: layer for layer in find_layers(model)}
    plan = cc.optimize_order(list(order), model=model, loss="weight_l2")
    assert not same(dense, memory(model))
    assert plan.outside is not None
    assert "experts" not in str(plan.outside.unsupported.largest)
    plan.save(tmp_path)
    plan.apply(model)
    experts = [layer for layer in layers if ".experts." in layer]
    assert len(experts) == 3 * 4 * 2
    for layer in experts:
        weight = layers[layer].of(dense[layers[layer].stored])
        assert torch.equal(layers[layer].weight, compressed(weight, None, tuple(plan.order)))
        assert torch.equal(
            stored(model, layer).T if turned(model, layer) else stored(model, layer), layers[layer].weight
        )
    assert not same(memory(load_weights(one.build(1), tmp_path)), memory(model))


@pytest.mark.parametrize("kind", ["grouped_mm", "batched_mm", "eager"])
def test_experts_of_any_implementation_are_seen(kind: str) -> None:
    model, eager = ARCHITECTURES["mixtral"].build(), ARCHITECTURES["mixtral"].build()
    model.config._experts_implementation, eager.config._experts_implementation = kind, "eager"
    batches = ARCHITECTURES["mixtral"].batches()
    found, wanted = (calibrate(one, find_layers(one), batches) for one in (model, eager))
    assert model.config._experts_implementation == kind
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


# --------------------------------------------------------------------------------------------------- attention


def projected(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 7}])
@pytest.mark.parametrize("training", [False, True])
def test_queries_keys_and_values_see_their_own_inputs(widths: dict[str, int], training: bool) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **widths)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return self.attention(q, k, v, need_weights=False)

    model = Cross().train(training)
    q, k, v = tokens(6, 8).view(2, 3, 8), tokens(10, widths.get("kdim", 8), 2), tokens(10, widths.get("vdim", 8), 3)
    before = modes(model)
    found = calibrate(model, find_layers(model), [(q, k.view(2, 5, -1), v.view(2, 5, -1))])
    assert modes(model) == before and torch.backends.mha.get_fastpath_enabled()
    form = "attention.{}_proj_weight" if widths else "attention.in_proj_weight.{}"
    assert list(found) == [*(form.format(name) for name in "qkv"), "attention.out_proj"]
    for name, x in zip("qkv", (q, k, v), strict=True):
        torch.testing.assert_close(found[form.format(name)], gram(x))


@pytest.mark.parametrize("calibrated", ["sequential", "dense"])
def test_a_torch_encoder_is_compressed_whole(calibrated: str) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    x = tokens(10, 8).view(2, 5, 8)
    names = [layer.name for layer in find_layers(model)]
    assert names == [*(f"self_attn.in_proj_weight.{n}" for n in "qkv"), "self_attn.out_proj", "linear1", "linear2"]
    assert outside(model, find_layers(model)).unsupported.parameters == 0
    attention: Any = model.self_attn
    with torch.no_grad():
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).view(2, 5, 3, 2, 4).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v).reshape(2, 5, 8)
        first = model.norm1(x + attention.out_proj(mixed))
    dense = memory(model)
    applied([Wanda(HALF), GPTQ(bits=4)], model, [x], calibrate=calibrated)
    inputs = {"self_attn.in_proj_weight": x, "self_attn.out_proj.weight": mixed, "linear1.weight": first}
    for name, given in inputs.items():
        for part in range(3) if name.endswith("in_proj_weight") else [0]:
            rows = slice(8 * part, 8 * part + 8) if name.endswith("in_proj_weight") else slice(None)
            wanted = compressed(dense[name][rows], gram(given), [Wanda(HALF), GPTQ(bits=4)])
            found = model.get_parameter(name).detach()[rows]
            if name.startswith("linear"):  # behind rounding errors
                assert (found == wanted).double().mean() > 0.9
            else:
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_padding_of_attention_is_left_out() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()
    x, short = tokens(15, 8).view(3, 5, 8), (5, 3, 2)
    padding = torch.arange(5)[None] >= torch.tensor(short)[:, None]
    layers = find_layers(model)
    found = calibrate(model, layers, [{"src": x, "src_key_padding_mask": padding}])
    alone = calibrate(model, layers, [{"src": x[k : k + 1, :n]} for k, n in enumerate(short)])
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
