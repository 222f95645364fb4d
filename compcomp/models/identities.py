"""Find blocks that add nothing to their inputs, whatever these are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def identities(blocks: Sequence[nn.Module], forward: Callable[[], Any]) -> list[bool]:
    """Return for each block if its output equals its input because of zeros in its parameters.

    ``forward`` runs the model.

    The output of such a block equals its input bitwise on the batch. It also does so with any other numbers in place of
    the parameters that are not zero. This finds zeros in all forms: written through a norm without a bias, in parallel
    branches, or from a packed layer. A contribution that is merely too small to be seen is not taken for none.
    """
    found = [True] * len(blocks)
    ran = [False] * len(blocks)
    started: dict[int, Tensor | None] = {}
    probing = False

    def before(place: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = _first((args, kwargs))
            started[place] = None if given is None else given.clone()

        return hook

    def after(place: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal probing
            given = started.get(place)
            if probing or not found[place]:
                return
            ran[place] = True
            found[place] = _same(given, _first(output))
            if found[place]:
                probing = True
                others = {name: _others(p, place) for name, p in module.named_parameters()}
                try:
                    found[place] = _same(given, _first(torch.func.functional_call(module, others, args, kwargs)))
                finally:
                    probing = False

        return hook

    with ExitStack() as stack:
        for place, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(before(place), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after(place), with_kwargs=True).remove)
        forward()
    return [one and other for one, other in zip(found, ran, strict=True)]


def _others(parameter: Tensor, seed: int) -> Tensor:
    """Return other numbers, between 1/2 and 3/2 in size and of any sign, where the parameter is not zero."""
    source = torch.Generator().manual_seed(seed)
    size = torch.rand(parameter.shape, generator=source, device="cpu") + 0.5
    sign = torch.randint(0, 2, parameter.shape, generator=source, device="cpu") * 2 - 1
    return torch.where(parameter != 0, (size * sign).to(parameter), 0)


def _first(output: Any) -> Tensor | None:
    """Return the first tensor of floats, which holds the hidden states in the inputs and outputs of blocks."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    items = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return next((found for item in items if (found := _first(item)) is not None), None)


def _same(given: Tensor | None, output: Tensor | None) -> bool:
    return given is not None and output is not None and torch.equal(given, output)
