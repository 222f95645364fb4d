"""Find the layers of a model that can be compressed: every ``nn.Linear``, and transformers' ``Conv1D``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.models.memory import extent, is_plain, kind_of, overlap, overlaps_itself, place, stretch
from compcomp.models.patterns import Names, Patterns, patterns_of
from compcomp.models.wrappers import adapted, named_parts
from compcomp.models.wrappers import is_from_transformers as is_from_transformers
from compcomp.models.wrappers import unwrap as unwrap

IGNORE = ("lm_head",)
"""Layers left alone unless asked for: the output head, whatever name the model gives it."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight that the model multiplies its activations with, and the modules that use it.

    Attributes:
        name: The qualified name of the first of ``modules`` in the model.
        modules: The modules that share the weight in one layout. They are one layer.
        transposed: True if the module stores in x out (``Conv1D``).
        followers: By name, the modules that read the same memory in another layout, such as a decoder with the
            transpose of its encoder's weight. They change with the layer, and its measurements do not cover them.
    """

    name: str
    modules: tuple[nn.Module, ...]
    transposed: bool
    followers: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def parameter(self) -> Tensor:
        """The weight as the module stores it."""
        weight: Tensor = self.modules[0]._parameters["weight"]  # type: ignore[assignment]
        return weight

    @property
    def weight(self) -> Tensor:
        """A view of the weight, out x in, in the model's dtype and on its device, without gradient."""
        weight = self.parameter.detach()
        return weight.T if self.transposed else weight

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in)."""
        rows, columns = self.weight.shape
        return rows, columns

    def set(self, weight: Tensor) -> None:
        """Copy a weight (out x in, any dtype and device) into the module's own, rounded to its dtype."""
        for module in self.modules:  # usually one; or several that hold one and the same parameter
            own: Tensor = module._parameters["weight"]  # type: ignore[assignment]
            with torch.inference_mode(own.is_inference()):
                own.detach().copy_(weight.T if self.transposed else weight)


def find_layers(model: nn.Module, targets: Patterns = None, ignore: Patterns = IGNORE) -> tuple[Layer, ...]:
    """Return the compressible layers, in the order in which the model names them.

    Layers that read one weight, also its transpose, are one layer. A weight that a module of another kind uses too,
    such as an output head tied to the embedding, is always left alone. The parts of adapters are not layers.

    Args:
        model: The model.
        targets: Patterns of the layers to take, None for all. A pattern is a layer's qualified name, parts of it or its
            class (``"model.layers.0"``, ``"q_proj"``, ``"Conv1D"``), with shell wildcards, or a regular expression
            after ``"re:"`` (:meth:`compcomp.models.patterns.Names.matches`).
        ignore: Patterns of the layers to leave alone, None for none. ``"lm_head"`` also stands for the module that the
            model, or a model inside it, calls its output head.

    Raises:
        InputError: No layer is left, a target matches no layer, or an entry of ``ignore`` except ``"lm_head"`` matches
            no module. Also if a layer's weight cannot be compressed. Such a weight is not finite, on the meta device,
            quantized, sparse, or computed from other parameters; it shares memory in part with another tensor of the
            model; or it has an adapter that is not merged.
    """
    model = unwrap(model)
    wanted = None if targets is None else patterns_of(targets, "targets")
    unwanted = patterns_of(ignore, "ignore")
    names = Names(model)
    if unmatched := names.without_match(p for p in unwanted if p not in IGNORE):
        given = f"{unmatched[0]!r}, which matches no module"
        raise InputError(given, "names or classes of modules, parts of names, or 're:' and an expression", "ignore")
    heads = _output_heads(model) if "lm_head" in unwanted else []
    used = set[str]()
    found, shared = [], 0
    groups, others = _weights(model)
    for group in groups:
        every = [*group.members, *group.followers]
        hits = {p for p in wanted or () for name, _ in every if names.matches(p, name)}
        used |= hits
        if wanted is not None and not hits:
            continue
        if any(names.matches(p, name) for p in unwanted for name, _ in every):
            continue
        if any(module is head for _, module in every for head in heads):
            continue
        if group.foreign:
            shared += 1
            continue
        found.append(_layer(group))
    if unmatched := [p for p in wanted or () if p not in used]:
        given = f"{unmatched[0]!r}, which matches no Linear layer"
        raise InputError(given, "names or classes of layers", "targets")
    if not found:
        raise InputError(_none_left(shared, wanted, unwanted), "a model with nn.Linear or Conv1D", "model")
    with_adapters = adapted(model)
    for layer in found:
        if adapters := [with_adapters[module] for module in layer.modules if module in with_adapters]:
            allowed = "a merged adapter (first merge the adapter, as merge_and_unload does), or the layer in ignore"
            raise InputError(f"a weight with an adapter ({adapters[0]})", allowed, f"layer {layer.name}")
        _check_weight(layer)
    _check_memory(found, others)
    return tuple(found)


def layers_by_name(model: nn.Module) -> dict[str, Layer]:
    """Return every compressible layer, unfiltered and unchecked, under each of its names."""
    groups, _ = _weights(unwrap(model))
    found = {name: _layer(group) for group in groups for name, _ in group.members}
    return found | {n: _layer(_Group([(n, module)])) for group in groups for n, module in group.followers}


def check_sequence(layers: Iterable[Layer], sequence: Technique | Sequence) -> None:
    """Raise InputError, naming the layer, if a technique does not fit a layer's shape."""
    for layer in layers:
        try:
            as_sequence(sequence).check(layer.shape)
        except InputError as error:
            raise InputError(error.given, error.allowed, f"layer {layer.name}: {error.where}") from None


def nothing_dropped(layers: Iterable[Layer], sequence: Technique | Sequence) -> list[str]:
    """Return a line for each technique whose share of some layers is less than one of the units that it drops."""
    notes = []
    for technique in as_sequence(sequence):
        found = {}
        for layer in () if technique.whole_model else layers:
            count = technique.dropped(layer.shape)
            if count is not None and count[0] == 0:
                found[layer.name] = count[1]
        if found:
            name, units = next(iter(found.items()))
            more = f" and {len(found) - 1} more layers" if len(found) > 1 else ""
            notes.append(f"{technique} drops nothing of {name}{more}: its share of {units} is less than one")
    return notes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, and restore the mode of every module afterwards.

    A module with a ``train`` of its own is restored by it. Modules that add something to their weights in eval mode
    take it out again there.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # parents come before their parts, which their train() reaches too
            if trains_itself(module) and module.training != mode:
                module.train(mode)
        for module, mode in modes:
            if module.training != mode and trains_itself(module):
                module.train(mode)
        for module, mode in modes:
            module.training = mode


def trains_itself(module: nn.Module) -> bool:
    """Return True if a change of mode may change more than the mode: ``train`` is not that of torch or transformers."""
    own = "train" in vars(module) or "eval" in vars(module)
    methods = (type(module).train, type(module).eval)
    return own or any(method.__module__.split(".")[0] not in ("torch", "transformers") for method in methods)


def _layer(group: _Group) -> Layer:
    modules = tuple(dict.fromkeys(module for _, module in group.members))
    transposed = is_from_transformers(modules[0], "Conv1D")
    return Layer(group.members[0][0], modules, transposed, tuple(group.followers))


@dataclass
class _Group:
    """The modules, by name, that share one weight.

    ``foreign``: True if something else in the model uses it too. ``followers``: modules that read it in another layout.
    """

    members: list[tuple[str, nn.Module]]
    foreign: bool = False
    followers: list[tuple[str, nn.Module]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Named:
    """A parameter or buffer with its name. ``module``: the module whose weight it is, if that can be a layer."""

    name: str
    tensor: Tensor
    module: nn.Module | None = None


def _weights(model: nn.Module) -> tuple[list[_Group], list[_Named]]:
    """Return the weights of compressible modules, and every parameter and buffer of the model.

    Two modules share one weight if they view the same memory, read the same way round.
    """
    groups: dict[object, _Group] = {}
    tensors: list[_Named] = []
    foreign: list[Tensor] = []
    parts = dict(named_parts(model))
    for name, module in parts.items():
        linear = isinstance(module, nn.Linear) or is_from_transformers(module, "Conv1D")
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                read = linear and own == "weight"
                tensors.append(_Named(f"{name}.{own}" if name else own, tensor, module if read else None))
                foreign += [] if read else [tensor]
        if linear:
            weight = module._parameters.get("weight")
            group = groups.setdefault(id(module) if weight is None else stretch(weight), _Group([]))
            alike = not group.members or _way(module) == _way(group.members[0][1])
            (group.members if alike else group.followers).append((name, module))
    known = {id(module) for module in parts.values()}
    for name, module in model.named_modules():  # parts of adapters are no layers, but their memory counts
        if id(module) not in known:
            left_out = [p for p in [*module._parameters.values(), *module._buffers.values()] if p is not None]
            tensors += [_Named(name, tensor) for tensor in left_out]
            foreign += left_out
    elsewhere = {stretch(tensor) for tensor in foreign}
    for key, group in groups.items():
        group.foreign = key in elsewhere
    return list(groups.values()), tensors


def _way(module: nn.Module) -> object:
    """Return a value that is equal for two modules that multiply with the same matrix."""
    weight = module._parameters.get("weight")
    return None if weight is None else place(weight), is_from_transformers(module, "Conv1D")


def _check_memory(layers: Iterable[Layer], tensors: Iterable[_Named]) -> None:
    """Raise InputError if a layer's weight shares memory with another tensor of the model, or with itself."""
    owner: dict[nn.Module, Layer] = {}
    for layer in layers:
        owner |= dict.fromkeys([*layer.modules, *(module for _, module in layer.followers)], layer)
        if overlaps_itself(layer.parameter):
            raise InputError("a weight whose entries share memory", "a dense matrix", f"layer {layer.name}")
    plain = [one for one in tensors if is_plain(one.tensor) and one.tensor.numel()]
    reaching: list[_Named] = []  # those that reach beyond where the next one begins
    for one in sorted(plain, key=lambda one: extent(one.tensor)[0]):
        begin = extent(one.tensor)[0]
        reaching = [other for other in reaching if extent(other.tensor)[1] > begin]
        for other in reaching:
            mine, yours = (owner.get(x.module) if x.module is not None else None for x in (one, other))
            if mine is not yours and overlap(one.tensor, other.tensor):
                found, partner = (mine, other.name) if mine is not None else (yours, one.name)
                assert found is not None
                given = f"a weight that shares memory with {partner}, in another layout or in part"
                allowed = "a weight with memory of its own, or one parameter for both (or the layers in ignore)"
                raise InputError(given, allowed, f"layer {found.name}")
        reaching.append(one)


def _output_heads(model: nn.Module) -> list[object]:
    """Return the modules that the model, or a model inside it, calls its output head."""
    found = []
    for module in model.modules():
        get = getattr(type(module), "get_output_embeddings", None)
        try:
            found += [get(module)] if callable(get) else []
        except (AttributeError, NotImplementedError):
            continue
    return [head for head in found if head is not None]


def _none_left(shared: int, wanted: tuple[str, ...] | None, unwanted: tuple[str, ...]) -> str:
    chosen = "" if wanted is None else f" among targets {', '.join(wanted)}"
    chosen += f" outside ignore {', '.join(unwanted)}" if unwanted else ""
    tied = f" ({shared} left alone, as their weights are shared with other modules)" if shared else ""
    return f"no Linear layer{chosen}{tied}"


def _check_weight(layer: Layer) -> None:
    where, allowed = f"layer {layer.name}", "a dense matrix of float64, float32, bfloat16 or float16"
    weight = layer.modules[0]._parameters.get("weight")
    if weight is None:
        raise InputError(
            "a weight computed from other parameters",
            "a plain weight (first remove the parametrization, weight norm or pruning)",
            where,
        )
    if weight.device.type == "meta":
        raise InputError("a weight on the meta device", "a weight that is loaded", where)
    if not is_plain(weight) or weight.dtype not in DTYPES or weight.ndim != 2:
        raise InputError(f"a weight that is a {kind_of(weight)}", allowed, where)
    if 0 in weight.shape:
        given = f"a weight of shape {layer.shape[0]}x{layer.shape[1]}"
        raise InputError(given, "at least 1x1 (out x in)", where)
    if not bool(torch.isfinite(weight.detach()).all()):
        raise InputError("weights that are not finite", "finite weights", where)
