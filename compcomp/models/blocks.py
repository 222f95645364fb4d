"""Find the blocks of a model: the modules that run one after another, and hold its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import nn

from compcomp.errors import InputError
from compcomp.models.layers import Layer
from compcomp.models.lockstep import Stage
from compcomp.models.patterns import Names, Patterns, patterns_of
from compcomp.models.wrappers import is_from_transformers, named_parts, unwrap

Holds = Callable[[nn.Module], bool]
"""Returns True for a module that may be a block."""


def find_blocks(
    model: nn.Module,
    layers: Iterable[Layer],
    blocks: Patterns = None,
    *,
    each: bool = False,
    every: bool = False,
) -> list[Stage]:
    """Return the blocks of a model that hold layers, in the order in which the model names them.

    The blocks of a transformers model are the members of its outermost lists of modules: the layers of a decoder, of an
    encoder, the stages of a vision tower. A layer outside of them, such as a pooler, is a block of its own, except an
    embedding, which is in no block. Any other model is one block, unless ``blocks`` names others.

    Args:
        model: The model.
        layers: The layers to compress.
        blocks: Patterns of the blocks' names or classes, written like ``targets`` of
            :func:`compcomp.models.layers.find_layers`. None to find them as described.
        each: True to take every layer as a block.
        every: True to return the blocks without layers too.

    Raises:
        InputError: A pattern matches no module with layers.
    """
    model, layers = unwrap(model), tuple(layers)
    parts = dict(named_parts(model))
    runs = {layer.name: (*layer.called, *layer.inside) for layer in layers if not layer.is_embedding}
    where = {id(module): name for name, modules in runs.items() for module in modules}
    if each:
        chosen = dict[str, nn.Module]()
    else:

        def holds(module: nn.Module) -> bool:
            found = module.parameters() if every else (part for part in module.modules() if id(part) in where)
            return any(True for _ in found)

        chosen = _named(model, parts, holds, blocks) if blocks is not None else dict(_listed(model, parts, holds))
    if not chosen and not each:
        return [Stage("", model, tuple(layer.name for layer in layers))]
    inside = {id(part): name for name, module in chosen.items() for part in module.modules()}
    for name, module in parts.items():  # what is outside of every block
        if id(module) in where and id(module) not in inside:
            chosen[name], inside[id(module)] = module, name
    position = {id(module): number for number, module in enumerate(parts.values())}
    ordered = sorted(chosen.items(), key=lambda item: position[id(item[1])])
    runs |= {layer.name: layer.modules for layer in layers if layer.is_embedding}
    homes = {name: {inside.get(id(module)) for module in modules} for name, modules in runs.items()}
    return [
        Stage(name, module, tuple(layer for layer, home in homes.items() if home == {name})) for name, module in ordered
    ]


def merged_around(model: nn.Module, stages: Sequence[Stage], repeated: Stage) -> list[Stage]:
    """Return the blocks with one that repeats replaced by the module around it, and all that this holds."""
    name, lists = repeated.name, (nn.ModuleList, nn.ModuleDict)  # which are never called themselves
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(name), lists):
            break
    around = model.get_submodule(name)
    inside = set(around.modules())
    found, layers = list[Stage](), list[str]()
    for stage in stages:
        if stage.module in inside:
            layers += stage.layers
        else:
            found.append(stage)
    place = next(k for k, stage in enumerate(stages) if stage.module in inside)
    return [*found[:place], Stage(name, around, tuple(layers)), *found[place:]]


def _listed(model: nn.Module, parts: dict[str, nn.Module], holds: Holds) -> Iterator[tuple[str, nn.Module]]:
    """Yield the members, with layers in them, of the outermost module lists of transformers models."""
    own = {id(part) for m in parts.values() if is_from_transformers(m, "PreTrainedModel") for part in m.modules()}
    taken = set[int]()
    for name, module in parts.items():
        if id(module) in own and isinstance(module, nn.ModuleList) and id(module) not in taken:
            for key, member in module.named_children():
                if holds(member):
                    taken |= {id(part) for part in member.modules()}
                    yield f"{name}.{key}" if name else key, member


def _named(model: nn.Module, parts: dict[str, nn.Module], holds: Holds, blocks: Patterns) -> dict[str, nn.Module]:
    """Return the outermost modules that patterns select."""
    patterns, names = patterns_of(blocks, "blocks"), Names(model)
    found: dict[str, nn.Module] = {}
    taken, used = set[int](), set[str]()
    for name, module in parts.items():
        hits = {pattern for pattern in patterns if names.matches(pattern, name)}
        if hits and id(module) not in taken and holds(module):
            used |= hits
            taken |= {id(part) for part in module.modules()}
            found[name] = module
    if unused := [pattern for pattern in patterns if pattern not in used]:
        raise InputError(f"{unused[0]!r}, which matches no module with layers", "names or classes of modules", "blocks")
    return found
