"""Random tiny models of what models are made of besides plain stacks: tied, viewed, wrapped, merged and dead layers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 20


class Piece(nn.Module):
    """Tokens to tokens (batch x length x width); ``streams``: in which form each of its layers sees tokens."""

    streams: dict[str, str]

    def linear(self, name: str, inner: int, outer: int, stream: str = "plain", bias: bool = True) -> nn.Linear:
        layer = nn.Linear(inner, outer, bias=bias)
        self.add_module(name, layer)
        self.streams = {**getattr(self, "streams", {}), name: stream}
        return layer


class Residual(Piece):
    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        inner = choice.choice([3, 8, 10])
        kinds = [nn.LayerNorm, nn.Identity, nn.BatchNorm1d, nn.RMSNorm]
        self.norm: nn.Module = choice.choice(kinds)(width)
        self.act = choice.choice([nn.ReLU(), nn.Tanh(), nn.SiLU()])
        self.up = self.linear("up", width, inner)
        self.down = self.linear("down", inner, width, bias=choice.random() < 0.5)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        flat = self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return x + self.down(self.act(self.up(flat)))


class Twice(Piece):
    """One layer on two branches."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.both = self.linear("both", width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + torch.tanh(self.both(x)) * self.both(x.flip(-1))


class Tied(Piece):
    """Two modules with one and the same weight, and frozen numbers."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.one, self.two = self.linear("one", width, width), self.linear("two", width, width)
        self.two.weight = self.one.weight
        self.one.weight.requires_grad_(choice.random() < 0.5)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + torch.tanh(self.two(self.one(x)))


class Flat(Piece):
    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.flat = self.linear("flat", width, width, "flat")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.flat(x.reshape(-1, x.shape[-1])).tanh().reshape(x.shape)


class First(Piece):
    """Sequence first."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.first = self.linear("first", width, width, "first")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.first(x.transpose(0, 1)).tanh().transpose(0, 1)


class Pooled(Piece):
    """A gate from the mean of the tokens that are no padding."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.gate = self.linear("gate", width, width, "pooled")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        share = torch.ones(x.shape[:2]) if mask is None else mask
        share = (share / share.sum(1, keepdim=True)).to(x.dtype)
        pooled = (x.masked_fill(share[..., None] == 0, 0) * share[..., None]).sum(1)
        return x * torch.sigmoid(self.gate(pooled))[:, None]


class Dead(Piece):
    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.never = self.linear("never", width, 2 * width, "dead")
        self.register_buffer("scale", torch.rand(width) + 0.5)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x * self.scale


class Convolution(Piece):
    """GPT-2's layer, in x out."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.conv = Conv1D(width, width)
        self.streams = {"conv": "plain"}
        nn.init.normal_(self.conv.weight)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + torch.tanh(self.conv(x))


class Sliced(Piece):
    """Two weights next to each other in one piece of memory."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.one, self.two = self.linear("one", width, width), self.linear("two", width, width)
        whole = torch.randn(2 * width, width)
        self.one.weight, self.two.weight = nn.Parameter(whole[:width]), nn.Parameter(whole[width:])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + torch.tanh(self.two(torch.tanh(self.one(x))))


class Overlapping(Sliced):
    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__(width, choice)
        whole = torch.randn(2 * width, width)
        self.one.weight, self.two.weight = nn.Parameter(whole[:width]), nn.Parameter(whole[width // 2 :][:width])


class Transposed(Sliced):
    """One weight read as it is and transposed, by two parameters."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__(width, choice)
        self.two.weight = nn.Parameter(self.one.weight.detach().T)


class Merging(Piece):
    """An adapter that is added to the weight in eval mode, and taken out again for training."""

    def __init__(self, width: int, choice: random.Random) -> None:
        super().__init__()
        self.base = self.linear("base", width, width)
        self.more = nn.Parameter(torch.randn(width, width) / 4)
        self.merged = False

    def train(self, mode: bool = True) -> Any:
        if mode == self.merged:
            with torch.no_grad():
                self.base.weight.add_(self.more if not mode else -self.more)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.base(x)
        return x + torch.tanh(y if self.merged else y + x @ self.more.T)


class Model(nn.Module):
    """Tokens (``input_ids``) or features (``x``: batch x length x 5) to logits, with a mask (batch x length)."""

    def __init__(self, pieces: list[Piece], width: int, tokens: bool, tied: bool, choice: random.Random) -> None:
        super().__init__()
        self.tokens = tokens
        self.enter: nn.Module = nn.Embedding(VOCABULARY, width) if tokens else nn.Linear(5, width)
        self.parts = nn.ModuleList(pieces)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        if tied and tokens:
            self.lm_head.weight = self.enter.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.enter(input_ids)
        for part in self.parts:
            x = part(x, attention_mask)
        return self.lm_head(x)  # type: ignore[no-any-return]


class Around(nn.Module):
    """A user's module around a model."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


PLAIN: list[type[Piece]] = [Residual, Residual, Twice, Tied, Flat, First, Pooled, Convolution, Sliced]
ODD: list[type[Piece]] = [Dead, Overlapping, Transposed, Merging]


@dataclass(frozen=True)
class Sample:
    """A model, its batches, what its layers see by their modules' names, and the odd pieces that it has."""

    model: nn.Module
    batches: list[Any]
    streams: dict[str, str]
    mask: list[Tensor | None]
    odd: frozenset[str]


def sample(seed: int) -> Sample:
    """The model of a seed."""
    choice = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width, tokens = choice.choice([4, 6, 8]), choice.random() < 0.7
        kinds = [choice.choice(PLAIN) for _ in range(choice.randint(1, 3))]
        if choice.random() < 0.35:
            kinds.insert(choice.randint(0, len(kinds)), choice.choice(ODD))
        pieces = [kind(width, choice) for kind in kinds]
        inner = Model(pieces, width, tokens, choice.random() < 0.5, choice)
        for module in inner.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        dtype = choice.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
        if dtype != torch.float32:  # the memory that parameters share is lost where they are made anew
            _cast(inner, dtype)
        masked = tokens and choice.random() < 0.6
        batches, masks = list[Any](), list[Tensor | None]()
        for _ in range(choice.randint(1, 3)):
            size = (choice.randint(2, 3), choice.choice([5, 7]))
            given = torch.randint(0, VOCABULARY, size) if tokens else torch.randn(*size, 5, dtype=dtype)
            mask = None
            if masked:
                mask = torch.ones(size, dtype=torch.long)
                for row in range(size[0]):
                    mask[row, choice.randint(1, size[1]) :] = 0
            form = choice.choice(["dict", "tuple", "tensor"]) if mask is None else choice.choice(["dict", "tuple"])
            if form == "dict":
                batches.append({"input_ids": given} | ({} if mask is None else {"attention_mask": mask}))
            else:
                batches.append(given if form == "tensor" else (given,) if mask is None else (given, mask))
            masks.append(mask)
        model: nn.Module = inner
        wrapper = choice.choice(["", "", "around", "parallel", "twice"])
        if wrapper == "parallel":
            model = nn.DataParallel(model)
        for _ in range({"around": 1, "twice": 2}.get(wrapper, 0)):
            model = Around(model)
        model.train(choice.random() < 0.3)
    places = {module: name for name, module in model.named_modules()}
    streams = {f"{places[piece]}.{name}": stream for piece in pieces for name, stream in piece.streams.items()}
    if not tokens:
        streams[places[inner.enter]] = "plain"
    return Sample(model, batches, streams, masks, frozenset(kind.__name__ for kind in kinds if kind in ODD))


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Another dtype, with memory shared as before."""
    bases: dict[int, Tensor] = {}
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    start = parameter.untyped_storage().data_ptr()
                    if start not in bases:
                        whole = torch.empty(0, dtype=parameter.dtype).set_(parameter.untyped_storage())
                        bases[start] = whole.to(dtype)
                    view = bases[start].as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())
                    made[id(parameter)] = nn.Parameter(view, parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
