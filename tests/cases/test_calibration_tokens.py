"""Padding is left out of calibration, in whatever form tokens reach a layer.

The oracle: the rows without their padding, one at a time, with hooks on the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models.calibrate import calibrate
from compcomp.models.layers import Layer, find_layers
from compcomp.techniques import Wanda

LENGTHS, LONGEST = (7, 4, 5), 9
Batch = dict[str, Tensor]


def inputs_of(model: nn.Module, layers: Iterable[Layer], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The sum of x x^T over everything that the layers are fed."""
    found: dict[str, Tensor] = {}
    handles = []
    for layer in layers:
        for module in layer.modules:

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = layer.name) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                rows = x.detach().reshape(-1, x.shape[-1]).double()
                found[name] = found.get(name, 0) + rows.T @ rows

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return found


def padded(side: str, vocabulary: int = 40, first: int = 3) -> tuple[Batch, list[Batch]]:
    """A batch of three rows with padding, and the rows alone."""
    source = torch.Generator().manual_seed(3)
    ids = torch.randint(first, vocabulary, (3, LONGEST), generator=source)
    mask = torch.zeros_like(ids)
    rows = []
    for k, length in enumerate(LENGTHS):
        part = slice(0, length) if side == "right" else slice(LONGEST - length, LONGEST)
        mask[k, part] = 1
        rows.append({"input_ids": ids[k : k + 1, part].clone(), "attention_mask": mask[k : k + 1, part]})
    ids[mask == 0] = 0
    return {"input_ids": ids, "attention_mask": mask}, rows


def same(model: nn.Module, batches: list[Batch], rows: list[Batch], notes: int = 0) -> None:
    layers = [layer for layer in find_layers(model, ignore=None) if layer.called]  # experts: tests/models/test_products
    expected = inputs_of(model, layers, rows)
    said: list[str] = []
    found = calibrate(model, [layer for layer in layers if layer.name in expected], batches, notes=said)
    for name, gram in found.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(
            gram, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert len(said) == notes, said


# ---------------------------------------------------------------------------------------------- transformers

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
LLAMA = SIZES | {"num_key_value_heads": 2}
GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
SIDED = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
}
OPT = SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
RELATIVE: dict[str, dict[str, Any]] = {  # positions follow from the mask, or only how far apart two are
    "Llama": LLAMA,
    "Mistral": LLAMA | {"sliding_window": 4},
    "Qwen2": LLAMA,
    "Qwen3": LLAMA | {"head_dim": 4},
    "Gemma2": LLAMA | {"head_dim": 4, "pad_token_id": 0},
    "Phi3": LLAMA | {"pad_token_id": 0},
    "GPTNeoX": SIZES,
    "Falcon": SIZES | {"multi_query": True},
    "Mixtral": LLAMA | {"num_local_experts": 4},
    "OPT": OPT,
    "Bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4},
}
ABSOLUTE: dict[str, dict[str, Any]] = {"GPT2LMHeadModel": GPT, "GPTBigCodeForCausalLM": GPT, "BertModel": SIZES}


def build(name: str, sizes: dict[str, Any]) -> Any:
    import transformers

    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(**sizes)).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.mul_(4)
    return model


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", RELATIVE)
def test_language_models(name: str, side: str) -> None:
    batch, rows = padded(side)
    same(build(f"{name}ForCausalLM", RELATIVE[name]), [batch], rows)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ABSOLUTE)
def test_language_models_that_number_their_positions(name: str, side: str) -> None:
    batch, rows = padded(side)
    if side == "left":  # such a model takes the padding for positions unless it is given a mask
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    model: Any = build(name, ABSOLUTE[name])
    if name == "BertModel" and side == "left":
        model.pooler = None  # it takes the first position, whatever is there
    same(model, [batch], rows)


@pytest.mark.parametrize("given", ["decoder_attention_mask", "labels"])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("T5ForConditionalGeneration", T5),
        ("BartForConditionalGeneration", SIDED),
        ("MBartForConditionalGeneration", SIDED),
    ],
)
def test_encoder_and_decoder_each_have_a_mask(name: str, sizes: dict[str, Any], given: str) -> None:
    batch, rows = padded("right")
    source = torch.Generator().manual_seed(5)
    lengths, tokens = (3, 6, 5), torch.randint(4, 40, (3, 7), generator=source)
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    if given == "labels":
        batch["labels"] = tokens.masked_fill(~mask, -100)
        rows = [{**row, "labels": tokens[k : k + 1, :n]} for k, (row, n) in enumerate(zip(rows, lengths, strict=True))]
    else:
        batch |= {"decoder_input_ids": tokens.masked_fill(~mask, 1), given: mask.long()}
        rows = [
            {**row, "decoder_input_ids": tokens[k : k + 1, :n]}
            for k, (row, n) in enumerate(zip(rows, lengths, strict=True))
        ]
    same(build(name, sizes | {"decoder_start_token_id": 1, "pad_token_id": 0}), [batch], rows)


@pytest.mark.parametrize("length", [4, 5])  # four and the class token: as many patches as tokens, and as images
def test_an_image_has_no_padding(length: int) -> None:
    side = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = side | {"vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 39}
    model = build(
        "CLIPModel",
        {"text_config": text, "vision_config": side | {"image_size": 8, "patch_size": 4}, "projection_dim": 8},
    )
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 39, (2, length), generator=source)
    pixels = torch.randn(2, 3, 8, 8, generator=source)
    mask = torch.ones_like(ids)
    ids[:, -1] = 39
    ids[1, 2:], mask[1, 3:] = 0, 0
    ids[1, 2] = 39
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    rows = [
        {"input_ids": ids[:1], "pixel_values": pixels[:1]},
        {"input_ids": ids[1:, :3], "pixel_values": pixels[1:]},
    ]
    same(model, [batch], rows)


# --------------------------------------------------------------------------------------------- other layouts


class Attention(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).mT
        hidden: Tensor = self.o(scores.masked_fill(~real[:, None], -torch.inf).softmax(dim=-1) @ self.v(x))
        return x + hidden


class Experts(nn.Module):
    """Each token goes to the two of four experts that its router prefers: gathered, run, and put back."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(width, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(tokens).softmax(dim=-1).topk(2)
        result = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            place, which = (chosen == k).nonzero(as_tuple=True)
            if len(place):
                result = result.index_add(0, place, expert(tokens[place]) * weights[place, which, None])
        return x + result.reshape(x.shape)


class Model(nn.Module):
    """``layout``: how the second half sees tokens. ``table``: the embedding is a plain parameter, no module."""

    def __init__(self, layout: str, table: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(40, 8)
            self.attention, self.second, self.experts = Attention(), Attention(), Experts()
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.layout, self.table = layout, table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(input_ids).bool() if attention_mask is None else _real(attention_mask)
        x = self.embedding.weight[input_ids] if self.table else self.embedding(input_ids)
        x = self.attention(x, real)
        if self.layout == "overwritten":  # as XLM and wav2vec2 do
            x = x * real[..., None]
        if self.layout in {"flat", "overwritten"}:
            y = self.down(self.up(x.flatten(0, 1)).relu()).unflatten(0, x.shape[:2])
        elif self.layout == "sequence first":
            y = self.down(self.up(x.transpose(0, 1)).relu()).transpose(0, 1)
        elif self.layout == "flat, sequence first":
            y = self.down(self.up(x.transpose(0, 1).flatten(0, 1)).relu()).unflatten(0, x.shape[1::-1]).transpose(0, 1)
        elif self.layout == "turned round":
            y = self.down(self.up(x.flip(1)).relu()).flip(1)
        elif self.layout == "one at a time":
            y = torch.stack([self.down(self.up(x[:, k]).relu()) for k in range(x.shape[1])], dim=1)
        elif self.layout == "heads apart":
            y = self.down(self.up(x[:, None].expand(-1, 2, -1, -1)).relu()).sum(dim=1)
        else:
            y = self.down(self.up(self.experts(x)).relu())
        return self.second(x + y, real)


def _real(mask: Tensor) -> Tensor:
    if mask.is_floating_point() and bool((mask < 0).any()):
        mask = mask > -1
    return (mask != 0) if mask.ndim == 2 else (mask != 0).flatten(1, -2).any(dim=1)


LAYOUTS = [
    "flat",
    "sequence first",
    "flat, sequence first",
    "turned round",
    "one at a time",
    "heads apart",
    "experts",
    "overwritten",
]


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, side: str, table: bool) -> None:
    batch, rows = padded(side)
    same(Model(layout, table), [batch], rows)


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda m: m.bool(),
    "float": lambda m: m.float(),
    "int32": lambda m: m.int(),
    "added": lambda m: (1 - m.float()) * torch.finfo(torch.float32).min,
    "bool for each query": lambda m: m.bool()[:, None, None].expand(-1, 1, m.shape[1], -1),
    "added for each query": lambda m: ((1.0 - m) * torch.finfo(torch.float32).min)[:, None, None].expand(-1, 1, 9, -1),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_other_types(kind: str) -> None:
    batch, rows = padded("right")
    batch["attention_mask"] = MASKS[kind](batch["attention_mask"])
    same(Model("flat"), [batch], rows)


def test_padding_in_the_middle_of_a_row() -> None:
    batch, _ = padded("right")
    mask = batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    mask[0, 2:4] = mask[2, 5] = 0
    rows = [{"input_ids": ids[real.bool()][None]} for ids, real in zip(batch["input_ids"], mask, strict=True)]
    same(Model("experts"), [batch], rows)


def test_torch_modules_with_their_own_masks() -> None:
    """Sequence first, and a mask that is true for padding. The fused attention calls no out_proj."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 2, enable_nested_tensor=False).eval()
    x = torch.randn(LONGEST, 3, 8, generator=torch.Generator().manual_seed(2))
    padding = torch.arange(LONGEST)[None] >= torch.tensor(LENGTHS)[:, None]
    rows = [{"src": x[:n, k : k + 1]} for k, n in enumerate(LENGTHS)]
    same(model, [{"src": x, "src_key_padding_mask": padding}], rows)


# ---------------------------------------------------------------------------- what cannot be known, and tuples


class Pooled(nn.Module):
    """A mean over all positions, padding and all, goes into the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        result: Tensor = self.head(self.inner(self.embedding(input_ids)).mean(dim=1))
        return result


def test_what_mixes_tokens_with_padding_counts_and_is_named() -> None:
    model, notes = Pooled(), list[str]()
    batch, rows = padded("right")
    layers = find_layers(model)
    found = calibrate(model, layers, [batch], notes=notes)
    torch.testing.assert_close(found["inner"], inputs_of(model, layers, rows)["inner"])
    torch.testing.assert_close(found["head"], inputs_of(model, layers, [batch])["head"])
    assert len(notes) == 1
    assert "head" in notes[0]
    assert "inner" not in notes[0]


def test_apply_warns_of_it_and_a_plan_notes_it() -> None:
    batch, _ = padded("right")
    with pytest.warns(UserWarning, match="calibration: padding in head"):
        cc.apply(Wanda(sparsity="1/2"), Pooled(), calibration=[batch])
    plan = cc.optimize_order([Wanda(sparsity="1/2")], model=Pooled(), calibration=[batch])
    assert any("calibration: padding in head" in note for note in plan.notes)


def _grams(model: nn.Module, batches: Any) -> dict[str, Tensor]:
    return calibrate(model, find_layers(model), batches)


@pytest.mark.parametrize("wrap", [list, tuple])
def test_a_mask_in_a_tuple_is_known_by_the_models_own_names(wrap: Any) -> None:
    batch, _ = padded("right")
    pair = wrap((batch["input_ids"], batch["attention_mask"]))
    for model in (Model("experts"), build("LlamaForCausalLM", LLAMA), build("BertModel", SIZES)):
        named, found = _grams(model, [batch]), _grams(model, [pair])
        assert all(torch.equal(named[name], found[name]) for name in named)


def test_a_loader_of_pairs() -> None:
    batch, _ = padded("left")
    loader = DataLoader(TensorDataset(batch["input_ids"], batch["attention_mask"]), batch_size=3)
    model = Model("experts")
    named, found = _grams(model, [batch]), _grams(model, loader)
    assert all(torch.equal(named[name], found[name]) for name in named)


def test_labels_where_a_model_has_its_mask_are_refused() -> None:
    batch, _ = padded("right")
    with pytest.raises(InputError, match=r"calibration: a tuple whose entry 2 goes to attention_mask but holds \d+"):
        _grams(build("LlamaForCausalLM", LLAMA), [(batch["input_ids"], batch["input_ids"])])


class Passing(nn.Module):
    """Passes on whatever comes."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(inner) if len(inner) > 1 else inner[0]

    def forward(self, *args: Any) -> Any:
        inner: Any = self.inner[0] if isinstance(self.inner, nn.ModuleList) else self.inner
        return inner(*args)


def test_names_are_those_of_the_module_inside_or_have_to_be_given() -> None:
    batch, _ = padded("right")
    pair = (batch["input_ids"], batch["attention_mask"])
    named = _grams(Model("experts"), [batch])
    found = _grams(Passing(Model("experts")), [batch["input_ids"]])
    assert found.keys() == {f"inner.{name}" for name in named}
    with pytest.raises(
        InputError, match=r"calibration: .*mask.*\(batch 1\); allowed: a dict in which the mask is named"
    ):
        _grams(Passing(Model("experts"), nn.Identity()), [pair])


@pytest.mark.parametrize("name", ABSOLUTE)
def test_positions_that_count_the_padding_are_remarked_on(name: str) -> None:
    model, notes = build(name, ABSOLUTE[name]), list[str]()
    batch, _ = padded("left")
    layers = [layer for layer in find_layers(model) if "pooler" not in layer.name]
    found = calibrate(model, layers, [batch], notes=notes)
    assert len(notes) == 1
    assert "positions are counted from the padding" in notes[0]
    first = next(name for name in found if "attn" in name or "query" in name)
    assert found[first].trace() > 0


class Overwriting(nn.Module):
    """Padding is set to zero before anything else; then two positions become one."""

    def __init__(self, halved: bool) -> None:
        super().__init__()
        self.embedding, self.first, self.second, self.halved = (
            nn.Embedding(40, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            halved,
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids) * attention_mask[..., None]
        x = x[:, :8].unflatten(1, (4, 2)).sum(dim=2) if self.halved else x
        result: Tensor = self.second(self.first(x).sigmoid())
        return result


def test_padding_that_a_model_overwrites_is_left_out_or_named() -> None:
    batch, rows = padded("right")
    same(Overwriting(False), [batch], rows)
    model, notes = Overwriting(True), list[str]()
    layers = find_layers(model)
    found = calibrate(model, layers, [batch], notes=notes)
    torch.testing.assert_close(found["second"], inputs_of(model, layers, [batch])["second"])
    assert len(notes) == 1
    assert "in first, second: nothing that they are fed changes with it" in notes[0]
