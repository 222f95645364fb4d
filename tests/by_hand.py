"""Compressing a model by hand: hooks collect what layers see, and each layer's weight goes through the kernels alone.

Written with torch alone, as what the library does to whole models is compared with it. Of the library it knows the
kernels and the state of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState

Kept = Callable[[str, Tensor], Tensor]
"""The inputs of the layer of this name (any shape x features) as tokens x features, without padding."""


def everything(name: str, inputs: Tensor) -> Tensor:
    """All inputs."""
    return inputs.reshape(-1, inputs.shape[-1])


def seen(model: nn.Module, names: Sequence[str], batches: Sequence[Any], kept: Kept = everything) -> dict[str, Tensor]:
    """The Gram matrix (in x in, float64) of the inputs of each of these layers, in eval mode."""
    grams: dict[str, Tensor] = {}

    def add(name: str, inputs: Tensor) -> None:
        x = kept(name, inputs).detach().double()
        grams[name] = grams.get(name, torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)) + x.T @ x

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            add(name, args[0] if args else next(iter(kwargs.values())))

        return look

    def routed(name: str) -> Callable[..., None]:
        def look(experts: Any, args: tuple[Any, ...]) -> None:
            for own, number, x in of_experts(experts, *args):
                if f"{name}.{own}.{number}" in names:
                    add(f"{name}.{own}.{number}", x)

        return look

    modules = dict(model.named_modules())
    handles = [modules[n].register_forward_pre_hook(hook(n), with_kwargs=True) for n in names if n in modules]
    fused = {n.rsplit(".", 2)[0] for n in names if n not in modules}
    handles += [modules[n].register_forward_pre_hook(routed(n)) for n in sorted(fused)]
    for name in (n for n in names if n.endswith("mixer.dt_proj")):  # Mamba multiplies with its weight itself
        mixer: Any = modules[name.rpartition(".")[0]]

        def steps(_: nn.Module, __: Any, output: Tensor, name: str = name, width: int = mixer.time_step_rank) -> None:
            add(name, output[..., :width])

        handles.append(mixer.x_proj.register_forward_hook(steps))
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        for batch in batches:
            run(model, batch)
    for handle in handles:
        handle.remove()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return grams


def of_experts(experts: Any, hidden: Tensor, chosen: Tensor, _: Tensor) -> Iterator[tuple[str, int, Tensor]]:
    """Of every expert of transformers that has tokens (tokens x features) the inputs of both of its weights."""
    for number in range(experts.num_experts):
        x = hidden[(chosen == number).any(dim=-1)]
        if not len(x):
            continue
        up = experts.gate_up_proj[number]
        inside = x @ (up if experts.is_transposed else up.T)
        if experts.has_bias:
            inside = inside + experts.gate_up_proj_bias[number]
        yield "gate_up_proj", number, x
        yield "down_proj", number, experts._apply_gate(inside)


def stored(model: nn.Module, name: str) -> Tensor:
    """The weight of a layer as its module stores it, as a view: that of a Linear layer, or of one of fused experts."""
    modules: dict[str, Any] = dict(model.named_modules())
    if name in modules:
        return modules[name].weight.detach()  # type: ignore[no-any-return]
    path, own, number = name.rsplit(".", 2)
    return getattr(modules[path], own).detach()[int(number)]  # type: ignore[no-any-return]


def turned(model: nn.Module, name: str) -> bool:
    """Whether a layer's weight is stored in x out."""
    modules: dict[str, Any] = dict(model.named_modules())
    if name in modules:
        return not isinstance(modules[name], nn.Linear)
    return bool(modules[name.rsplit(".", 2)[0]].is_transposed)


def blocks(model: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """The layers of these names, block by block: members of the outermost module lists, and layers outside alone."""
    lists: list[str] = []
    for name, module in model.named_modules():
        outermost = isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists)
        if outermost and any(layer.startswith(f"{name}.") for layer in names):
            lists.append(name)
    found: dict[str, list[str]] = {}
    for layer in names:
        outer = next((name for name in lists if layer.startswith(f"{name}.")), None)
        block = layer if outer is None else ".".join(layer.split(".")[: outer.count(".") + 2])
        found.setdefault(block, []).append(layer)
    return list(found.values())


def sequential(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any], order: Sequence[Technique], kept: Kept = everything
) -> dict[str, Tensor]:
    """The weights, as stored, of these layers after an order, each calibrated behind the compressed blocks before it.

    The whole model runs once for each block. Afterwards it is as it was.
    """
    before = {name: stored(model, name).clone() for name in names}
    found: dict[str, Tensor] = {}
    for block in blocks(model, names):
        grams = seen(model, block, batches, kept)
        for name in block:
            other = turned(model, name)
            result = compressed(before[name].T if other else before[name], grams[name], order)
            found[name] = result.T if other else result
        with torch.no_grad():
            for name in block:
                stored(model, name).copy_(found[name])
    with torch.no_grad():
        for name, weight in before.items():
            stored(model, name).copy_(weight)
    return found


def run(model: nn.Module, batch: Any) -> Any:
    """What a model makes of a batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def compressed(weight: Tensor, gram: Tensor | None, order: Sequence[Technique]) -> Tensor:
    """A weight (out x in) after these techniques, one after another, in its dtype."""
    dense = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32).clone()
    state = LayerState.dense(dense, gram=gram)
    for technique in order:
        state = replace(technique.kernel()(technique, state), reference=dense, gram=gram)
    found: Any = state.weight
    if state.format.factors is not None:
        found = found.double() + state.format.factors.left.double() @ state.format.factors.right.double()
    assert state.format.transform is None
    return found.to(weight.dtype)  # type: ignore[no-any-return]


def memory(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers by each of their names, tied ones under all."""
    return {name: tensor.detach().clone() for name, tensor in _everything(model)}


def places(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Of every parameter and buffer what object and what memory it is, its layout, and whether it wants a gradient."""
    return {
        name: (id(tensor), tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.requires_grad)
        for name, tensor in _everything(model)
    }


def modes(model: nn.Module) -> list[tuple[str, bool, int]]:
    """Of every module its mode, and how many hooks it has."""
    return [
        (name, module.training, len(module._forward_hooks) + len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that differ in any bit but the sign of zero (NaN equals NaN), or are in one alone."""
    differing = sorted(one.keys() ^ other.keys())
    return differing + [name for name in one if name in other and not _equal(one[name], other[name])]


def _everything(model: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = list(model.named_parameters(remove_duplicate=False))
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool((torch.isnan(one) & torch.isnan(other) | (one == other)).all())
