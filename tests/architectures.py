"""Tiny random models of the architectures that transformers has, for tests that go over all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 48

Sizes = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One class of models of transformers, with sizes that make it tiny, and what its batches hold.

    ``model``: the class. ``sizes``: of the config. ``batch``: "text" (``input_ids`` and ``attention_mask``), "both"
    (decoder tokens too), "image", "sound" or "pair" (an image and text).
    """

    name: str
    model: str
    config: str
    sizes: Sizes = field(compare=False)
    batch: str = "text"

    def build(self, seed: int = 0, biases: bool = True, **more: Any) -> Any:
        """A model with random weights, in eval mode; the same for the same seed. ``more``: of the config.

        Biases are random too, or those of layers are zero: only without them a block is an identity once its weights
        are zero.
        """
        import transformers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = getattr(transformers, self.config)(**{**self.sizes, **more})
            model = getattr(transformers, self.model)(config).eval()
            with torch.no_grad():  # a fresh model has biases of 0 and norms of 1, which hide what is left out
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(0.2 * torch.randn_like(parameter))
                    elif parameter.ndim in (2, 3):
                        parameter.mul_(6 if float(parameter.std()) < 0.05 else 1)
                for module in model.modules():
                    if not biases and module._parameters.get("bias") is not None and _is_layer(module):
                        module.bias.zero_()
        return model

    def batches(self, count: int = 2, seed: int = 1, padded: bool = False, length: int = 8) -> list[dict[str, Tensor]]:
        """Batches of two samples each; ``padded``: the second one's last tokens are padding."""
        source = torch.Generator().manual_seed(seed)
        return [self._batch(source, padded, length) for _ in range(count)]

    def _batch(self, source: torch.Generator, padded: bool, length: int) -> dict[str, Tensor]:
        if self.batch == "image":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=source)}
        ids = torch.randint(4, VOCABULARY, (2, length), generator=source)
        if self.batch == "sound":
            return {"input_features": torch.randn(2, 8, 16, generator=source), "decoder_input_ids": ids}
        mask = torch.ones_like(ids)
        if padded:
            mask[1, length - 3 :] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        if self.batch == "pair":
            given["pixel_values"] = torch.randn(2, 3, 16, 16, generator=source)
        if self.batch == "both":
            given["decoder_input_ids"] = torch.randint(4, VOCABULARY, (2, length - 2), generator=source)
        return given


def _is_layer(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


IDS: Sizes = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA: Sizes = IDS | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT: Sizes = IDS | {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}
BERT: Sizes = LLAMA | {"type_vocab_size": 2}
EXPERTS: Sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SIDED: Sizes = IDS | {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
}
T5: Sizes = IDS | {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
EYE: Sizes = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def _causal(name: str, sizes: Sizes, **more: Any) -> Architecture:
    return Architecture(name.lower(), f"{name}ForCausalLM", f"{name}Config", sizes | more)


def _masked(name: str, sizes: Sizes, **more: Any) -> Architecture:
    return Architecture(name.lower(), f"{name}ForMaskedLM", f"{name}Config", sizes | more)


ARCHITECTURES: dict[str, Architecture] = {
    one.name: one
    for one in (
        _causal("Llama", LLAMA, attention_bias=True, mlp_bias=True),
        _causal("Mistral", LLAMA, sliding_window=4),
        _causal("Qwen2", LLAMA, tie_word_embeddings=True),
        _causal("Qwen3", LLAMA, head_dim=8),
        _causal("Gemma", LLAMA, head_dim=8),
        _causal("Gemma2", LLAMA, head_dim=8, sliding_window=4),
        Architecture(
            "gemma3",
            "Gemma3ForCausalLM",
            "Gemma3TextConfig",
            LLAMA | {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
        ),
        _causal("Granite", LLAMA, residual_multiplier=0.5),
        _causal("SmolLM3", LLAMA, no_rope_layers=[1, 0, 1]),
        _causal("Olmo", LLAMA, clip_qkv=None),
        _causal("Olmo2", LLAMA),
        _causal("Cohere", LLAMA, use_qk_norm=True),
        _causal("StableLm", LLAMA, qk_layernorm=True, use_parallel_residual=False),
        Architecture(
            "stablelm_parallel",
            "StableLmForCausalLM",
            "StableLmConfig",
            LLAMA | {"use_parallel_residual": True, "use_qkv_bias": True},
        ),
        _causal("Starcoder2", LLAMA, use_bias=True, sliding_window=4),
        _causal("Nemotron", LLAMA),
        _causal("Glm", LLAMA, head_dim=4),
        _causal("Phi", LLAMA),
        _causal("Phi3", LLAMA),
        Architecture("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT),
        Architecture(
            "gpt_bigcode",
            "GPTBigCodeForCausalLM",
            "GPTBigCodeConfig",
            GPT,
        ),
        Architecture(
            "gpt_neo",
            "GPTNeoForCausalLM",
            "GPTNeoConfig",
            IDS
            | {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_layers": 3,
                "num_heads": 4,
                "max_position_embeddings": 64,
                "attention_types": [[["global", "local"], 1], [["global"], 1]],
                "window_size": 4,
            },
        ),
        _causal("GPTNeoX", LLAMA, use_parallel_residual=True),
        Architecture("gptj", "GPTJForCausalLM", "GPTJConfig", GPT | {"rotary_dim": 4, "n_inner": 24}),
        Architecture(
            "opt",
            "OPTForCausalLM",
            "OPTConfig",
            IDS
            | {
                "hidden_size": 16,
                "ffn_dim": 24,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "word_embed_proj_dim": 16,
                "max_position_embeddings": 64,
            },
        ),
        Architecture("bloom", "BloomForCausalLM", "BloomConfig", IDS | {"hidden_size": 16, "n_layer": 3, "n_head": 4}),
        Architecture(
            "falcon",
            "FalconForCausalLM",
            "FalconConfig",
            LLAMA | {"multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False},
        ),
        Architecture(
            "falcon_new",
            "FalconForCausalLM",
            "FalconConfig",
            LLAMA | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "num_ln_in_parallel_attn": 2},
        ),
        Architecture(
            "falcon_alibi",
            "FalconForCausalLM",
            "FalconConfig",
            LLAMA | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
        ),
        Architecture(
            "mpt",
            "MptForCausalLM",
            "MptConfig",
            IDS | {"d_model": 16, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
        ),
        _causal("Mixtral", LLAMA, num_local_experts=4, num_experts_per_tok=2),
        Architecture(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            "Qwen3MoeConfig",
            LLAMA | EXPERTS | {"head_dim": 4, "mlp_only_layers": [1]},
        ),
        _causal("Olmoe", LLAMA, num_experts=4, num_experts_per_tok=2),
        Architecture(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            "Qwen2MoeConfig",
            LLAMA | EXPERTS | {"shared_expert_intermediate_size": 12, "num_experts_per_tok": 3},
        ),
        Architecture(
            "gpt_oss",
            "GptOssForCausalLM",
            "GptOssConfig",
            LLAMA
            | {"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 4}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        ),
        Architecture(
            "deepseek_v3",
            "DeepseekV3ForCausalLM",
            "DeepseekV3Config",
            LLAMA
            | {
                "num_key_value_heads": 4,
                "moe_intermediate_size": 12,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 2,
                "q_lora_rank": 8,
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 4,
                "v_head_dim": 4,
                "first_k_dense_replace": 1,
            },
        ),
        Architecture(
            "mamba",
            "MambaForCausalLM",
            "MambaConfig",
            IDS | {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 3},
        ),
        _masked("Bert", BERT),
        _masked("Roberta", BERT),
        _masked("DistilBert", IDS | {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 4}),
        _masked("Albert", BERT, embedding_size=16),
        _masked("Electra", BERT, embedding_size=16),
        _masked("DebertaV2", BERT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        Architecture("t5", "T5ForConditionalGeneration", "T5Config", T5, "both"),
        Architecture(
            "t5_gated",
            "T5ForConditionalGeneration",
            "T5Config",
            T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
            "both",
        ),
        Architecture("bart", "BartForConditionalGeneration", "BartConfig", SIDED, "both"),
        Architecture(
            "whisper",
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            SIDED | {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 64},
            "sound",
        ),
        Architecture("vit", "ViTForImageClassification", "ViTConfig", EYE, "image"),
        Architecture(
            "clip",
            "CLIPModel",
            "CLIPConfig",
            {"text_config": LLAMA, "vision_config": EYE, "projection_dim": 8},
            "pair",
        ),
    )
}
"""By name. Every key of a config that says how many heads, neurons or blocks there are is small."""
