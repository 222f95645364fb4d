"""The layers of a model that can be compressed: every ``nn.Linear``, and transformers' ``Conv1D``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.models.patterns import Names, Patterns, patterns_of

IGNORE = ("lm_head",)
"""Layers left alone unless asked for: the output head, whatever the model calls it."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight that the model multiplies its activations with, and the modules that do so.

    ``name``: qualified name of the first of ``modules`` in the model. Several modules are one layer when they
    share the weight. ``transposed``: the module stores in x out (``Conv1D``).
    """

    name: str
    modules: tuple[nn.Module, ...]
    transposed: bool

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
        """(out, in)."""
        rows, columns = self.weight.shape
        return rows, columns

    def set(self, weight: Tensor) -> None:
        """Copy a weight (out x in, any dtype and device) into the module's own, rounded to its dtype."""
        for module in self.modules:  # usually one; or several that hold one and the same parameter
            own: Tensor = module._parameters["weight"]  # type: ignore[assignment]
            own.detach().copy_(weight.T if self.transposed else weight)


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself where ``torch.compile`` has wrapped it: hooks on a compiled one may not run."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        raise InputError(f"a {type(model).__name__}", "a torch.nn.Module", "model")
    return inner


def find_layers(model: nn.Module, targets: Patterns = None, ignore: Patterns = IGNORE) -> tuple[Layer, ...]:
    """The compressible layers, in the order in which the model names them.

    ``targets`` and ``ignore`` are patterns (:meth:`compcomp.models.patterns.Names.matches`): a layer's qualified name,
    parts of it or its class (``"model.layers.0"``, ``"q_proj"``, ``"Conv1D"``), with shell wildcards, or a regular
    expression after ``"re:"``. ``targets=None`` takes all, ``ignore=None`` leaves none alone.
    ``"lm_head"`` in ``ignore`` also means what the model itself calls its output head. Always left alone is
    a weight that a module of another kind uses too, such as an output head tied to the embedding.

    Raises InputError when no layer is left, a target matches no layer, an entry of ``ignore`` but ``"lm_head"`` matches
    no module, or a layer's weight cannot be compressed: not finite, on the meta device, quantized, or computed from
    other parameters.
    """
    model = unwrap(model)
    wanted = None if targets is None else patterns_of(targets, "targets")
    unwanted = patterns_of(ignore, "ignore")
    names = Names(model)
    if unmatched := names.without_match(p for p in unwanted if p not in IGNORE):
        given = f"{unmatched[0]!r}, which matches no module"
        raise InputError(given, "names or classes of modules, parts of names, or 're:' and an expression", "ignore")
    head = _output_head(model) if "lm_head" in unwanted else None
    used = set[str]()
    found, shared = [], 0
    for members, foreign in _weights(model):
        hits = {p for p in wanted or () for name, _ in members if names.matches(p, name)}
        used |= hits
        if wanted is not None and not hits:
            continue
        if any(names.matches(p, name) for p in unwanted for name, _ in members):
            continue
        if any(module is head for _, module in members):
            continue
        if foreign:
            shared += 1
            continue
        found.append(_layer(members))
    if unmatched := [p for p in wanted or () if p not in used]:
        given = f"{unmatched[0]!r}, which matches no Linear layer"
        raise InputError(given, "names or classes of layers", "targets")
    if not found:
        raise InputError(_none_left(shared, wanted, unwanted), "a model with nn.Linear or Conv1D", "model")
    for layer in found:
        _check_weight(layer)
    return tuple(found)


def layers_by_name(model: nn.Module) -> dict[str, Layer]:
    """Every compressible layer, unfiltered and unchecked, under each of its names."""
    groups = [members for members, _ in _weights(unwrap(model))]
    return {name: _layer(members) for members in groups for name, _ in members}


def is_from_transformers(module: nn.Module, name: str) -> bool:
    """Whether the module is of this class of transformers, which need not be installed."""
    classes = type(module).__mro__
    return any(c.__name__ == name and c.__module__.startswith("transformers.") for c in classes)


def check_sequence(layers: Iterable[Layer], sequence: Technique | Sequence) -> None:
    """Raise InputError, naming the layer, where a technique does not fit a layer's shape."""
    for layer in layers:
        try:
            as_sequence(sequence).check(layer.shape)
        except InputError as error:
            raise InputError(error.given, error.allowed, f"layer {layer.name}: {error.where}") from None


def nothing_dropped(layers: Iterable[Layer], sequence: Technique | Sequence) -> list[str]:
    """A line for each technique whose share of some layers is less than one of the units that it drops."""
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
    """The model in eval mode; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _layer(members: list[tuple[str, nn.Module]]) -> Layer:
    modules = tuple(dict.fromkeys(module for _, module in members))
    return Layer(members[0][0], modules, is_from_transformers(modules[0], "Conv1D"))


def _weights(model: nn.Module) -> list[tuple[list[tuple[str, nn.Module]], bool]]:
    """Each weight of a compressible module: (name, module) of all that use it, and whether others do too."""
    groups: dict[object, list[tuple[str, nn.Module]]] = {}
    elsewhere = set[object]()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear) or is_from_transformers(module, "Conv1D"):
            weight = module._parameters.get("weight")
            groups.setdefault(id(module) if weight is None else _storage(weight), []).append((name, module))
        else:
            elsewhere.update(_storage(p) for p in module._parameters.values() if p is not None)
    return [(members, key in elsewhere) for key, members in groups.items()]


def _storage(tensor: Tensor) -> object:
    """Equal for parameters that are one and the same memory."""
    if not _is_plain(tensor) or tensor.device.type == "meta" or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.numel()


def _is_plain(tensor: Tensor) -> bool:
    """Not a subclass: those hold quantized, distributed or not yet initialised weights."""
    return type(tensor) in (Tensor, nn.Parameter) and type(tensor.data) is Tensor


def _output_head(model: nn.Module) -> object:
    get = getattr(model, "get_output_embeddings", None)
    try:
        return get() if callable(get) else None
    except (AttributeError, NotImplementedError):
        return None


def _none_left(shared: int, wanted: tuple[str, ...] | None, unwanted: tuple[str, ...]) -> str:
    chosen = "" if wanted is None else f" among targets {', '.join(wanted)}"
    chosen += f" beside ignore {', '.join(unwanted)}" if unwanted else ""
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
    if not _is_plain(weight) or weight.dtype not in DTYPES or weight.ndim != 2:
        kind = f"{type(weight).__name__} of {str(weight.dtype).removeprefix('torch.')}"
        raise InputError(f"a weight that is a {kind}", allowed, where)
    if 0 in weight.shape:
        given = f"a weight of shape {layer.shape[0]}x{layer.shape[1]}"
        raise InputError(given, "at least 1x1 (out x in)", where)
    if not bool(torch.isfinite(weight).all()):
        raise InputError("weights that are not finite", "finite weights", where)
