"""Embeddings: layers of tokens x features where they are asked for, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.technique import as_sequence
from compcomp.models.components import unpack
from compcomp.models.layers import find_layers, layers_by_name
from compcomp.models.outside import outside
from compcomp.models.save import load_components, load_weights
from compcomp.techniques import (
    GPTQ,
    NF4,
    AbsMax,
    DistillLogits,
    Magnitude,
    PruneNeurons,
    RemoveBlocks,
    SmoothQuant,
    SparseGPT,
    TruncatedSVD,
    Wanda,
)
from tests.architectures import ARCHITECTURES
from tests.models.fakes import Tiny, tokens

transformers = pytest.importorskip("transformers")

HALF: Any = "1/2"


class Two(nn.Module):
    """Two embeddings with one weight, another with a weight of its own, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.source, self.target = nn.Embedding(10, 8, padding_idx=0), nn.Embedding(10, 8)
            self.place = nn.Embedding(6, 8, sparse=True)
            self.head = nn.Linear(8, 10)
        self.target.weight = self.source.weight
        with torch.no_grad():
            self.source.weight[0] = 2.0  # a padding row that is not zero

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.source(x) * self.target(x.flip(-1)) + self.place(x.clamp(max=5)))
        return found


def plain() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 4))


def of(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: ARCHITECTURES[name].build(**more)


# a model, a target, the layer that it means, and other modules with its weight
KINDS: dict[str, tuple[Callable[[], Any], str, str, list[str]]] = {
    "tokens of gpt2": (of("gpt2"), "wte", "transformer.wte", ["lm_head"]),
    "places of gpt2": (of("gpt2"), "transformer.wpe", "transformer.wpe", []),
    "untied llama": (of("llama"), "embed_tokens", "model.embed_tokens", []),
    "tied llama": (of("llama", tie_word_embeddings=True), "model.embed_tokens", "model.embed_tokens", ["lm_head"]),
    "bert": (of("bert"), "word_embeddings", "bert.embeddings.word_embeddings", ["cls.predictions.decoder"]),
    "scaled": (of("gemma3"), "Gemma3TextScaledWordEmbedding", "model.embed_tokens", ["lm_head"]),
    "plain": (plain, "Embedding", "0", []),
    "number": (plain, "0", "0", []),
    "two": (Two, "source", "source", ["target"]),
    "second of two": (Two, "target", "source", ["target"]),
    "sparse": (Two, "place", "place", []),
}
TECHNIQUES = [AbsMax(bits=4), AbsMax(bits=4, group=4), NF4(group=4), Magnitude(HALF, per="row"), TruncatedSVD(rank=2)]


def memory(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters(remove_duplicate=False)}


def as_linear(technique: Any, weight: Tensor) -> Tensor:
    """The weight that a technique makes of an ordinary layer."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.detach().clone())
    cc.apply(technique, linear, device="cpu")
    return linear.weight.detach()


@pytest.mark.filterwarnings("ignore:layer .* is compressed once")
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_that_is_asked_for_is_compressed_as_a_layer_of_its_rows(kind: str) -> None:
    build, target, name, others = KINDS[kind]
    for technique in TECHNIQUES if kind in ("plain", "two") else TECHNIQUES[1:2]:
        model = build()
        (layer,) = find_layers(model, target)
        table: Any = model.get_submodule(name)
        assert (layer.name, sorted(layer.others)) == (name, others)
        assert layer.shape == (table.num_embeddings, table.embedding_dim)
        before = memory(model)
        wanted = as_linear(technique, table.weight)
        assert not torch.equal(wanted, table.weight)
        cc.apply(technique, model, targets=target, device="cpu")
        changed = {f"{one}.weight" for one in (name, *others)}
        for own, parameter in memory(model).items():
            assert torch.equal(parameter, wanted if own in changed else before[own])
        for other in others:  # still one weight
            assert model.get_submodule(other).weight is table.weight


@pytest.mark.parametrize("pattern", ["*", "model", "model.*", "LlamaModel", "re:.*", r"re:model\.", "*s*", None])
def test_a_pattern_that_means_what_is_around_does_not_ask(pattern: str | None) -> None:
    for tied in (True, False):
        model = ARCHITECTURES["llama"].build(tie_word_embeddings=tied)
        found = [layer.name for layer in find_layers(model, pattern)]
        assert "model.layers.0.self_attn.q_proj" in found
        assert not {"model.embed_tokens", "lm_head"} & set(found)


@pytest.mark.parametrize("pattern", ["model.embed_tokens", "embed_tokens", "*embed*", "Embedding", "re:.*embed_tokens"])
def test_a_pattern_that_means_the_embedding_itself_asks(pattern: str) -> None:
    model = ARCHITECTURES["llama"].build()
    layers = [layer.name for layer in find_layers(model)]
    assert [layer.name for layer in find_layers(model, ["*", pattern])] == ["model.embed_tokens", *layers]
    assert [layer.name for layer in find_layers(model, ["*", pattern], ["lm_head", "embed_tokens"])] == layers
    with pytest.raises(InputError, match=r"'embeddings', which matches no Linear layer; .* embeddings their own"):
        find_layers(ARCHITECTURES["bert"].build(), "embeddings")


def test_an_output_head_that_is_ignored_by_name_keeps_the_weight_it_shares() -> None:
    model = Tiny(tied=True)
    assert [layer.name for layer in find_layers(model, "embed")] == ["embed"]
    with pytest.raises(InputError, match="no Linear layer among targets embed outside ignore lm_hea"):
        find_layers(model, "embed", "lm_hea?")
    with pytest.raises(InputError, match=r"no Linear layer among targets lm_head \(1 left alone"):
        find_layers(model, "lm_head", None)
    assert layers_by_name(model)["lm_head"].modules == (model.lm_head,)


def test_what_reads_the_weight_is_said() -> None:
    with pytest.warns(UserWarning, match="layer embed: its weight is that of lm_head too, and is compressed once"):
        cc.apply(AbsMax(bits=4), Tiny(tied=True), targets="embed")


# --------------------------------------------------------------------------------------------- what is refused

LOOKING = [GPTQ(bits=4), Wanda(HALF), SparseGPT(HALF), SmoothQuant(), AbsMax(bits=4) >> Wanda(HALF)]
WHOLE = [PruneNeurons(HALF), RemoveBlocks(count=1), DistillLogits(iterations=1, rate="1/1000")]


def never(*_: Any) -> None:
    raise AssertionError("the model has run")


@pytest.mark.parametrize("technique", [*LOOKING, *WHOLE], ids=str)
def test_techniques_that_look_at_inputs_are_refused_before_any_work(technique: Any, tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"].build()
    batches = ARCHITECTURES["llama"].batches()
    model.save_pretrained(tmp_path / "dense")
    before = memory(model)
    model.register_forward_pre_hook(never)
    steps = list(as_sequence(technique))
    given: dict[str, Any] = {"calibration": batches, "targets": ["*", "Embedding"]}
    refused = r"^layer model\.embed_tokens: .* for an embedding, whose inputs are ids; allowed: .*weights alone.*\Z"
    with pytest.raises(InputError, match=refused):
        cc.apply(technique, model, **given)
    for loss in ("weight_l2", "output_l2"):
        with pytest.raises(InputError, match=refused):
            cc.optimize_order(steps, model=model, loss=loss, **given)
    if technique not in WHOLE:
        with pytest.raises(InputError, match=refused):
            cc.compress_checkpoint(technique, tmp_path / "dense", tmp_path / "out", **given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory(model).items())
    assert not (tmp_path / "out").exists()


def test_a_loss_at_inputs_is_refused_before_any_work() -> None:
    model = Tiny()
    model.register_forward_pre_hook(never)
    refused = r"^layer embed: the loss output_l2 for an embedding, .*; allowed: .*loss='weight_l2'"
    with pytest.raises(InputError, match=refused):
        cc.optimize_order([AbsMax(bits=4)], model=model, calibration=tokens(), targets=["*", "embed"])
    with pytest.raises(InputError, match=refused):
        cc.estimate([AbsMax(bits=4)], model=model, calibration=tokens(), targets=["*", "embed"])


def _by_norm() -> nn.Module:
    return nn.Sequential(nn.Embedding(8, 4, max_norm=1.0), nn.Linear(4, 4))


def _by_a_bag() -> Any:
    model: Any = nn.Sequential(nn.Embedding(8, 4), nn.EmbeddingBag(8, 4))
    model[1].weight = model[0].weight
    return model


def _turned() -> Any:
    model: Any = nn.Sequential(nn.Embedding(8, 4), nn.Linear(8, 4))
    model[1].weight = nn.Parameter(model[0].weight.data.T)
    return model


def _in_part() -> Any:
    model: Any = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data[:4])
    return model


def _infinite() -> Any:
    model = plain()
    model[0].weight.data[1, 1] = torch.inf
    return model


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            _by_norm,
            r"an embedding with max_norm=1\.0, which changes its weight when it is called; ",
        ),
        (_by_a_bag, "a weight that a module of another kind uses too"),
        (_turned, "a weight that 1 reads in another layout"),
        (_in_part, r"a weight that shares memory with 1\.weight"),
        (_infinite, "weights that are not finite"),
    ],
)
def test_embeddings_that_cannot_be_layers_are_named(build: Any, said: str) -> None:
    model = build()
    before = memory(model)
    with pytest.raises(InputError, match=f"^layer 0: {said}"):
        cc.apply(AbsMax(bits=4), model, targets="Embedding")
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory(model).items())
    if build not in (_turned, _in_part, _by_a_bag):
        cc.apply(AbsMax(bits=4), model)  # as long as it is not asked for
        assert torch.equal(model[0].weight, before["0.weight"])


# --------------------------------------------------------------------------------------------- searches and files


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:layer .* is compressed once")
def test_a_search_compresses_saves_and_counts_it(tied: bool, tmp_path: Path) -> None:
    def build() -> Any:
        return ARCHITECTURES["llama"].build(tie_word_embeddings=tied)

    def evaluate(model: nn.Module) -> float:
        table: Any = model.get_submodule("model.embed_tokens")
        seen.append(table.weight.detach().clone())
        return float((seen[0] - seen[-1]).abs().sum())

    seen: list[Tensor] = []
    model, targets = build(), ["*", "embed_tokens"]
    before = memory(model)
    techniques = [Magnitude(HALF, per="row"), AbsMax(bits=4)]
    given: dict[str, Any] = {"loss": "weight_l2", "targets": targets, "evaluate": evaluate, "device": "cpu"}
    plan: Any = cc.optimize_order(techniques, model=model, **given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory(model).items())
    assert len({float(weight.abs().sum()) for weight in seen}) >= 2  # the dense one, and compressed ones
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    inside = sum(layer.weight.numel() for layer in find_layers(model, targets))
    assert plan.outside.of == sum(parameters.values())
    assert plan.outside.left.parameters == plan.outside.of - inside
    assert "model.embed_tokens.weight" not in dict(plan.outside.left.largest)
    assert "model.embed_tokens.weight" in dict(outside(model, find_layers(model)).left.largest)
    assert plan.model_compression_rate == pytest.approx(plan.compression_rate * inside / plan.outside.of)
    assert any("its weight is that of lm_head too" in note for note in plan.notes) == tied
    plan.save(tmp_path)
    plan.report(tmp_path / "report.html")
    other = build()
    plan.apply(other)
    assert not torch.equal(other.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    read = load_weights(build(), tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    plan.apply(model)
    for found in (read, again, other):
        assert all(torch.equal(tensor, memory(model)[name]) for name, tensor in memory(found).items())
    parts = load_components(tmp_path)
    assert sum(name in ("model.embed_tokens", "lm_head") for name in parts) == 1
    whole = unpack(parts["model.embed_tokens"])
    torch.testing.assert_close(whole.float(), model.model.embed_tokens.weight.detach())
    about = json.loads((tmp_path / "compcomp.json").read_text())
    assert about["layers"]["model.embed_tokens"]["shape"] == list(model.model.embed_tokens.weight.shape)


def test_an_order_for_each_layer_includes_it() -> None:
    techniques = [Magnitude(HALF, per="row"), AbsMax(bits=4)]
    given: dict[str, Any] = {"loss": "weight_l2", "targets": ["*", "embed"], "granularity": "layer", "device": "cpu"}
    model = Tiny()
    assert cc.estimate(techniques, model=model, **given).orders["total"] == 2
    plan = cc.optimize_order(techniques, model=model, calibration=tokens(), **given)
    order = (plan.own_orders or {}).get("embed", plan.order)
    wanted = as_linear(order, model.embed.weight)
    plan.apply(other := Tiny())
    assert torch.equal(other.embed.weight, wanted)


@pytest.mark.parametrize("targets", [["*", "Embedding"], ["Embedding"]], ids=["all", "alone"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
@pytest.mark.filterwarnings("ignore:layer .* is compressed once")
def test_a_checkpoint_streams_with_it(name: str, targets: list[str], tmp_path: Path) -> None:
    order = Magnitude(HALF, per="row") >> AbsMax(bits=4)
    model = ARCHITECTURES[name].build()
    model.save_pretrained(tmp_path / "dense", max_shard_size="9KB")
    found = cc.compress_checkpoint(order, tmp_path / "dense", tmp_path / "out", device="cpu", targets=targets)
    cc.apply(order, model, targets=targets, device="cpu")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, memory(model)[own]) for own, tensor in memory(again).items())
    layers = find_layers(model, targets)
    assert set(load_components(tmp_path / "out")) == {layer.name for layer in layers}
    about = json.loads((tmp_path / "out" / "compcomp.json").read_text())
    assert set(about["layers"]) == {layer.name for layer in layers} and about["compression_rate"] == found.rate
    inside = sum(layer.weight.numel() for layer in layers)
    total = sum(p.numel() for p in model.parameters())
    assert found.model_rate == pytest.approx(found.rate * inside / total)
    assert any("its weight is that of lm_head too" in note for note in found.notes) == (name != "llama")
    blocks = model.config.num_hidden_layers
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == blocks + 1  # one block in memory at a time


@pytest.mark.filterwarnings("ignore:layer .* is compressed once")
def test_a_streamed_run_that_ended_early_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compcomp.models import stream

    class Stopped(BaseException):
        pass

    plain, calls = stream._Stream._write, list[int]()

    def stopping(*given: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise Stopped
        plain(*given)

    ARCHITECTURES["gpt2"].build().save_pretrained(tmp_path / "dense")
    given: Any = (AbsMax(bits=4), tmp_path / "dense", tmp_path / "out")
    more: dict[str, Any] = {"device": "cpu", "targets": ["*", "wte"]}
    with monkeypatch.context() as patch:
        patch.setattr(stream._Stream, "_write", stopping)
        with pytest.raises(Stopped):
            cc.compress_checkpoint(*given, **more)
    assert cc.compress_checkpoint(*given, **more).resumed == 2
    cc.apply(AbsMax(bits=4), model := ARCHITECTURES["gpt2"].build(), targets=["*", "wte"], device="cpu")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, memory(model)[own]) for own, tensor in memory(again).items())
    assert "transformer.wte" in load_components(tmp_path / "out")


@pytest.mark.parametrize("stored", ["embedding and head", "head"])
def test_a_tied_weight_in_files_under_other_names_is_compressed_once_or_refused(stored: str, tmp_path: Path) -> None:
    model = ARCHITECTURES["gpt2"].build()
    model.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    if stored == "head":
        del tensors["transformer.wte.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    given: dict[str, Any] = {"device": "cpu", "targets": ["*", "wte"]}
    if stored == "head":
        with pytest.raises(InputError):
            cc.compress_checkpoint(AbsMax(bits=4), tmp_path / "dense", tmp_path / "out", **given)
        assert not (tmp_path / "out").exists()
        return
    cc.compress_checkpoint(AbsMax(bits=4), tmp_path / "dense", tmp_path / "out", **given)
    with pytest.warns(UserWarning, match="compressed once"):
        cc.apply(AbsMax(bits=4), model, **given)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, memory(model)[own]) for own, tensor in memory(again).items())


def test_calibration_goes_on_without_it() -> None:
    from compcomp.models.calibrate import calibrate

    model = Tiny()
    layers = find_layers(model, ["*", "embed"])
    assert layers[0].name == "embed"
    found = calibrate(model, layers, tokens())
    assert set(found) == {layer.name for layer in layers[1:]}
