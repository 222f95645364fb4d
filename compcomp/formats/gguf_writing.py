"""Write GGUF, which llama.cpp and others run: names, order of rows and metadata as llama.cpp's converter has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.formats import gguf_tokenizer
from compcomp.formats.gguf import TYPES
from compcomp.formats.gguf_blocks import FLOATS, blocks_of, misfit, step_dtype, type_of, weight_of
from compcomp.formats.numbers import Array
from compcomp.formats.tensors import Tensor
from compcomp.formats.writing import SavedLayer, SavedModel, Structure, Writer

FILE = "model.gguf"
WHERE = "export"


@dataclass(frozen=True)
class Family:
    """Say how a family of models is written.

    Args:
        name: the architecture in GGUF.
        pairs: True if its rows of queries and keys are reordered, since llama.cpp rotates neighbouring features.
    """

    name: str
    pairs: bool


FAMILIES = {"llama": Family("llama", True), "qwen2": Family("qwen2", False)}
"""The families by ``model_type`` in config.json."""


@dataclass(frozen=True)
class _Entry:
    """One tensor to write: its shape, its type, and its bytes, rows x the bytes of a row."""

    shape: tuple[int, ...]
    kind: str
    rows: Callable[[], Array]


class GGUF(Writer):
    """Write compressed layers as blocks of 32 integers with their steps, and other weights in their own dtype.

    A step that the blocks do not hold exactly is refused.
    """

    name: ClassVar[str] = "gguf"
    exact: ClassVar[bool] = True
    needs: ClassVar[str] = (
        "levels -128 to 127, 0 to 31 over a minimum, or FP4; groups of 32, 64, ...; steps that float16 holds"
    )

    def misfit(self, layer: Structure) -> str | None:
        return misfit(layer)

    def check_installed(self) -> None:
        package()

    def misfit_of_model(self, model: SavedModel) -> str | None:
        return _misfit_of_model(model.config)

    def step_dtype(self, layer: SavedLayer) -> str:
        return step_dtype(layer.structure)

    def written_weight(self, layer: SavedLayer) -> Array | None:
        return weight_of(layer, blocks_of(layer, exact=self.exact))

    def write(self, model: SavedModel, folder: Path) -> None:
        _write(model, folder, self._entry)

    def _entry(self, layer: SavedLayer) -> _Entry:
        return _Entry(layer.structure.shape, type_of(layer.structure), lambda: blocks_of(layer, exact=self.exact))


class GGUFRounded(GGUF):
    """Write what :class:`GGUF` writes, with steps and minima rounded to float16: another model than the saved one."""

    name: ClassVar[str] = "gguf-rounded"
    needs: ClassVar[str] = "as gguf, but any steps in the range of float16"
    exact: ClassVar[bool] = False


class GGUFDense(Writer):
    """Write all weights as floats, in the dtype of the model, pruned ones as zeros."""

    name: ClassVar[str] = "gguf-dense"
    needs: ClassVar[str] = "any"

    def misfit(self, layer: Structure) -> str | None:
        return None

    def check_installed(self) -> None:
        package()

    def misfit_of_model(self, model: SavedModel) -> str | None:
        return _misfit_of_model(model.config)

    def written_weight(self, layer: SavedLayer) -> Array | None:
        return None

    def write(self, model: SavedModel, folder: Path) -> None:
        _write(model, folder, lambda layer: _floats(layer.name, layer.weight))


def package() -> Any:
    """Return the package gguf. Raises InputError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError("an installation without gguf", "pip install 'compcomp[gguf]'", WHERE) from None
    return gguf


def _misfit_of_model(config: Mapping[str, Any]) -> str | None:
    """Return why GGUF has no place for a model with this config.json; None if it has one."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        return f"its model_type is {kind}, and GGUF is written for {', '.join(FAMILIES)}"
    if config.get("hidden_act", "silu") != "silu":
        return f"its hidden_act is {config['hidden_act']}, and llama.cpp has silu for {kind}"
    if config.get("use_sliding_window"):
        return "it uses a sliding window, which llama.cpp has not for it"
    if (scaling := _rope(config).get("rope_type", "default")) not in ("default", "linear", "llama3"):
        return f"its rope_type is {scaling}, and default, linear and llama3 are written"
    return None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the rotary embedding, from the form of transformers 5 or of earlier ones."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    found.setdefault("rope_type", found.get("type", "default"))
    return found


def _write(model: SavedModel, folder: Path, entry: Callable[[SavedLayer], _Entry]) -> None:
    """Write a model to :data:`FILE`. Memory holds one tensor at a time."""
    gguf, config = package(), model.config
    family, sizes = FAMILIES[str(config["model_type"])], _Sizes.of(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.name.upper()], sizes.blocks)
    entries: dict[str, _Entry] = {}
    found = {f"{name}.weight": entry(layer) for name, layer in model.layers.items()}
    found |= {name: _floats(name, tensor) for name, tensor in model.others.items()}
    for name, one in found.items():
        if name.endswith("rotary_emb.inv_freq"):  # llama.cpp computes it, as transformers does now
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            raise InputError(f"a model with {name!r}", f"tensors that llama.cpp has for {family.name}", WHERE)
        sizes.check(name, one.shape)
        heads = {"q_proj": sizes.heads, "k_proj": sizes.kv_heads}.get(name.split(".")[-2], 0)
        entries[own] = _paired(one, heads) if family.pairs and heads else one
    if "token_embd.weight" not in entries:
        raise InputError("a model without embed_tokens.weight", f"a whole model of {family.name}", WHERE)
    if "output.weight" not in entries and not config.get("tie_word_embeddings"):
        raise InputError("a model without lm_head.weight", "a head, or tie_word_embeddings in config.json", WHERE)
    if factors := _rope_factors(config, sizes.head):
        raw = np.array(factors, "<f4").view(np.uint8)
        entries["rope_freqs.weight"] = _Entry((len(factors),), "F32", lambda: raw)
    to = gguf.GGUFWriter(folder / FILE, family.name)
    try:
        _metadata(to, gguf, model, sizes, entries)
        gguf_tokenizer.write(to, gguf, folder, sizes.vocabulary)
        for name, one in entries.items():
            number, kind = next((number, kind) for number, kind in TYPES.items() if kind.name == one.kind)
            octets = (*one.shape[:-1], one.shape[-1] // kind.block * kind.nbytes)
            to.add_tensor_info(name, octets, np.dtype(np.uint8), math.prod(octets), gguf.GGMLQuantizationType(number))
        to.write_header_to_file()
        to.write_kv_data_to_file()
        to.write_ti_data_to_file()
        for one in entries.values():
            to.write_tensor_data(np.ascontiguousarray(one.rows()))
    finally:
        to.close()


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a model: blocks, features, features of a feed-forward layer, heads, features of a head, tokens."""

    blocks: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Sizes:
        try:
            width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            return cls(
                int(config["num_hidden_layers"]),
                width,
                int(config["intermediate_size"]),
                heads,
                int(config.get("num_key_value_heads") or heads),
                int(config.get("head_dim") or width // heads),
                int(config["vocab_size"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"config.json without {error}", "one that transformers wrote", WHERE) from None

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise InputError if a weight has another shape than config.json says, as in a model that was cut."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        shapes = {
            "embed_tokens": (self.vocabulary, self.width),
            "lm_head": (self.vocabulary, self.width),
            "q_proj": (queries, self.width),
            "k_proj": (keys, self.width),
            "v_proj": (keys, self.width),
            "o_proj": (self.width, queries),
            "gate_proj": (self.inner, self.width),
            "up_proj": (self.inner, self.width),
            "down_proj": (self.width, self.inner),
        }
        *_, module, what = name.split(".")
        expected = shapes.get(module, shape)
        if what == "weight" and shape != expected:
            raise InputError(f"{name!r} of shape {list(shape)}", f"{list(expected)}, as config.json says", WHERE)


def _floats(name: str, tensor: Tensor) -> _Entry:
    """Return a tensor in its own dtype; one with a single axis as float32, as llama.cpp wants it."""
    if tensor.dtype not in FLOATS:
        raise InputError(f"{name!r} of dtype {tensor.dtype}", ", ".join(FLOATS), WHERE)
    if len(tensor.shape) < 2:
        return _Entry(tensor.shape, "F32", lambda: tensor.array().astype("<f4").view(np.uint8))
    rows = tensor.shape[0]
    return _Entry(tensor.shape, tensor.dtype, lambda: np.frombuffer(tensor.raw(), np.uint8).reshape(rows, -1))


def _paired(entry: _Entry, heads: int) -> _Entry:
    """Return an entry whose rows, in each head, alternate between the first half and the second."""
    order = np.arange(entry.shape[0]).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return _Entry(entry.shape, entry.kind, lambda: entry.rows().reshape(len(order), -1)[order])


def _metadata(to: Any, gguf: Any, model: SavedModel, sizes: _Sizes, entries: Mapping[str, _Entry]) -> None:
    config = model.config
    rope = _rope(config)
    weights: Counter[str] = Counter()
    for one in entries.values():
        weights[one.kind] += math.prod(one.shape)
    most = max(weights, key=lambda kind: (kind not in FLOATS, weights[kind]))
    types = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}
    to.add_type("model")
    to.add_name(Path(str(config.get("_model_name_or_path") or config["model_type"])).name)
    to.add_file_type(int(gguf.LlamaFileType[types.get(most, f"MOSTLY_{most}")]))
    to.add_quantization_version(gguf.GGML_QUANT_VERSION)
    to.add_vocab_size(sizes.vocabulary)
    to.add_context_length(int(config.get("max_position_embeddings") or 2048))
    to.add_embedding_length(sizes.width)
    to.add_block_count(sizes.blocks)
    to.add_feed_forward_length(sizes.inner)
    to.add_head_count(sizes.heads)
    to.add_head_count_kv(sizes.kv_heads)
    to.add_layer_norm_rms_eps(float(config.get("rms_norm_eps") or 1e-6))
    to.add_rope_freq_base(float(rope["rope_theta"]))
    to.add_rope_dimension_count(sizes.head)
    if sizes.head * sizes.heads != sizes.width:
        to.add_key_length(sizes.head)
        to.add_value_length(sizes.head)
    if rope["rope_type"] == "linear":
        to.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        to.add_rope_scaling_factor(float(rope["factor"]))


def _rope_factors(config: Mapping[str, Any], head: int) -> list[float]:
    """Return what divides each frequency of the rotary embedding in Llama 3.1 and later; [] for other kinds."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return []
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    before = float(rope["original_max_position_embeddings"])
    found = []
    for place in range(0, head, 2):
        length = 2 * math.pi * float(rope["rope_theta"]) ** (place / head)
        smooth = min(1.0, max(0.0, (before / length - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
