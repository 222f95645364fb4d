"""Small models of transformers on disk, compressed by compcomp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import compcomp as cc
import compcomp.techniques

IDS = torch.arange(48).reshape(2, 24) % 128


def llama(folder: Path, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """Write a small Llama with random weights."""
    given = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "tie_word_embeddings": False,
        **config,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**given)).to(dtype).save_pretrained(folder)
    return folder


def compressed(sequence: str, source: Path, out: Path, **how: Any) -> Path:
    """Compress a model on disk as `compcomp apply` does."""
    cc.compress_checkpoint(cc.parse_sequence(sequence), source, out, device="cpu", **how)
    return out


def loaded(folder: Path) -> Any:
    """The model as transformers loads it, after a forward pass, which unpacks weights."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    logits_of(model)
    return model


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


def weights_of(model: Any) -> dict[str, Tensor]:
    """Every weight of a Linear layer or embedding by the name of its module."""
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, kinds)}


def check_configuration(folder: Path) -> None:
    """The quantization_config of an exported folder is what compressed-tensors itself makes of it."""
    from compressed_tensors.quantization import QuantizationConfig

    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert QuantizationConfig.model_validate(settings).model_dump(mode="json") == {
        key: value for key, value in settings.items() if key not in ("version", "sparsity_config", "transform_config")
    }
    assert settings["config_groups"]["group_0"]["targets"] == ["Linear"] and settings["ignore"] == ["lm_head"]
