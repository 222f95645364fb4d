"""Small models, and techniques whose kernels the tests choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Block(nn.Module):
    """Query and key read one tensor, the output projection another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o(torch.tanh(self.q(x)) * self.k(x))


class Tiny(nn.Module):
    """Tokens (batch x length) to logits (batch x length x 16); the head is tied to the embedding if asked."""

    def __init__(self, width: int = 8, tied: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(16, width)
            self.blocks = nn.ModuleList([Block(width), Block(width)])
            self.dropout = nn.Dropout(0.5)
            self.lm_head = nn.Linear(width, 16, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = self.dropout(block(x))
        logits: Tensor = self.lm_head(x)
        return logits


def tokens(batches: int = 3, seed: int = 1) -> list[Tensor]:
    source = seeded(seed)
    return [torch.randint(0, 16, (2, 5), generator=source) for _ in range(batches)]


def qwen2(tied: bool = False) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    return _built(Qwen2ForCausalLM, config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _built(GPT2LMHeadModel, GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2))


def _built(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


@dataclass(frozen=True)
class Fake(Technique):
    """A technique that does to a layer's state whatever it is given."""

    act: Callable[[LayerState], LayerState] = field(default=lambda layer: layer, compare=False)
    inputs: bool = False

    @property
    def needs_inputs(self) -> bool:
        return self.inputs

    def kernel(self) -> Any:
        return lambda technique, layer: technique.act(layer)

    def __str__(self) -> str:
        return "Fake()"


def scaled(factor: float) -> Fake:
    return Fake(lambda layer: replace(layer, weight=layer.weight * factor))
