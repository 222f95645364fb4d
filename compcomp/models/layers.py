"""Find the layers of a model that can be compressed.

They are every ``nn.Linear``, transformers' ``Conv1D``, fused experts, the projections of ``nn.MultiheadAttention``, and
an ``nn.Embedding`` that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.loss import loss_named
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.models.matrices import Index, Stored, is_embedding, is_linear, part_of, stored_in
from compcomp.models.memory import extent, is_plain, kind_of, overlap, overlaps_itself, place, stretch
from compcomp.models.patterns import Names, Patterns, patterns_of
from compcomp.models.wrappers import adapted, named_parts
from compcomp.models.wrappers import is_from_transformers as is_from_transformers
from compcomp.models.wrappers import unwrap as unwrap

IGNORE = ("lm_head",)
"""Layers left alone unless asked for: the output head, whatever name the model gives it."""

UNCALLED = {"MultiheadAttention": "out_proj", "MambaMixer": "dt_proj"}
"""Classes, by the end of their names, that multiply with the weight of a part of theirs and may not call it."""

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
        stored: The qualified name of the parameter that holds the weight.
        index: Where the weight lies in the parameter. None if it is all of it.
        inside: The modules that multiply with the weight in their ``forward``. The others are called with the inputs,
            as Linear layers are.
        others: The names of the modules but the first.
    """

    name: str
    modules: tuple[nn.Module, ...]
    transposed: bool
    followers: tuple[tuple[str, nn.Module], ...] = ()
    stored: str = "weight"
    index: Index = None
    inside: tuple[nn.Module, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def own(self) -> str:
        """The name of the parameter in its modules."""
        return self.stored.rpartition(".")[2]

    @property
    def called(self) -> tuple[nn.Module, ...]:
        """The modules that are called with the inputs. None for an embedding, which is called with ids."""
        if self.is_embedding:
            return ()
        given = (m for m in self.modules if is_linear(m))
        return tuple(m for m in given if not any(m in around._modules.values() for around in self.inside))

    @property
    def is_embedding(self) -> bool:
        """Return True if rows of the weight are looked up (tokens x features). Other modules may multiply with it."""
        return any(map(is_embedding, self.modules))

    @property
    def is_expert(self) -> bool:
        """Return True if the weight is one of several in a parameter, to which a router gives tokens."""
        return isinstance(self.index, int)

    @property
    def parameter(self) -> Tensor:
        """The parameter that holds the weight, as the module stores it."""
        weight: Tensor = self.modules[0]._parameters[self.own]  # type: ignore[assignment]
        return weight

    def held(self) -> list[Tensor]:
        """Return the parameters that hold the weight: one, unless modules have one each on the same memory."""
        found = (module._parameters.get(self.own) for module in self.modules)
        return list({id(parameter): parameter for parameter in found if parameter is not None}.values())

    @property
    def weight(self) -> Tensor:
        """A view of the weight, out x in, in the model's dtype and on its device, without gradient."""
        return self.of(self.parameter.detach())

    def of(self, parameter: Tensor) -> Tensor:
        """Return a view of the weight, out x in, in a tensor that is stored like the layer's parameter."""
        return part_of(parameter, self.index, self.transposed)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in)."""
        rows, columns = self.weight.shape
        return rows, columns

    def set(self, weight: Tensor) -> None:
        """Copy a weight (out x in, any dtype and device) into the module's own, rounded to its dtype."""
        for module in self.modules:  # usually one; or several that hold one and the same parameter
            own: Tensor = module._parameters[self.own]  # type: ignore[assignment]
            with torch.inference_mode(own.is_inference()):
                self.of(own.detach()).copy_(weight)


def find_layers(
    model: nn.Module, targets: Patterns = None, ignore: Patterns = IGNORE, *, loaded: bool = True
) -> tuple[Layer, ...]:
    """Return the compressible layers, in the order in which the model names them.

    Layers that read one weight, also its transpose, are one layer. A weight that a module of another kind uses too is
    always left alone. The parts of adapters are not layers.

    An embedding is a layer (tokens x features) only if a target asks for it, see
    :meth:`compcomp.models.patterns.Names.asks`. An output head tied to it is then the same layer, also if ``ignore``
    has ``"lm_head"``. Otherwise both are left alone.

    Args:
        model: The model.
        targets: Patterns of the layers to take, None for all. A pattern is a layer's qualified name, parts of it or its
            class (``"model.layers.0"``, ``"q_proj"``, ``"Conv1D"``), with shell wildcards, or a regular expression
            after ``"re:"`` (:meth:`compcomp.models.patterns.Names.matches`).
        ignore: Patterns of the layers to leave alone, None for none. ``"lm_head"`` also stands for the module that the
            model, or a model inside it, calls its output head.
        loaded: False for a model whose weights are not loaded: they are not looked at.

    Raises:
        InputError: No layer is left, a target matches no layer, or an entry of ``ignore`` except ``"lm_head"`` matches
            no module. Also if a layer's weight cannot be compressed. Such a weight is not finite, on the meta device,
            quantized, sparse, or computed from other parameters; it shares memory in part with another tensor of the
            model; or it has an adapter that is not merged. Also if an embedding that is asked for writes to its weight
            (``max_norm``), or its weight is used in another way too.
    """
    model = unwrap(model)
    wanted = None if targets is None else patterns_of(targets, "targets")
    unwanted = patterns_of(ignore, "ignore")
    names = Names(model)
    groups, others = _weights(model)
    parts = [name for group in groups for own in group.names for name in own]
    if unmatched := names.without_match((p for p in unwanted if p not in IGNORE), parts):
        given = f"{unmatched[0]!r}, which matches no module"
        raise InputError(given, "names or classes of modules, parts of names, or 're:' and an expression", "ignore")
    heads = _output_heads(model) if "lm_head" in unwanted else []
    used = set[str]()
    found, shared, owner = list[Layer](), 0, dict[int, Layer]()
    for group in groups:
        for every, layer in zip(group.names, _layers(group), strict=True):
            tables = [name for name, (_, module) in zip(every, group.every, strict=True) if is_embedding(module)]
            asking = {p for p in wanted or () for name in tables if names.asks(p, name)}
            hits = asking | {p for p in wanted or () for name in every if name not in tables and names.matches(p, name)}
            used |= hits
            if not hits and (wanted is not None or len(tables) == len(every)):
                continue
            left = [p for p in unwanted if not (asking and p in IGNORE)]
            if any(names.matches(p, name) for p in left for name in every):
                continue
            if not asking and any(module is head for _, module in group.every for head in heads):
                continue
            if asking:
                _check_embedding(group, layer)
            elif tables or group.foreign:
                shared += 1
                continue
            found.append(layer)
            owner.setdefault(id(group), layer)
    if unmatched := [p for p in wanted or () if p not in used]:
        given = f"{unmatched[0]!r}, which matches no Linear layer"
        raise InputError(given, "names or classes of layers, of embeddings their own", "targets")
    if not found:
        raise InputError(_none_left(shared, wanted, unwanted), "a model with nn.Linear or Conv1D", "model")
    with_adapters = adapted(model)
    for layer in found:
        if adapters := [with_adapters[module] for module in layer.modules if module in with_adapters]:
            allowed = "a merged adapter (first merge the adapter, as merge_and_unload does), or the layer in ignore"
            raise InputError(f"a weight with an adapter ({adapters[0]})", allowed, f"layer {layer.name}")
        if loaded:
            check_weight(layer)
    _check_memory(found, others, owner)
    return tuple(found)


def layers_by_name(model: nn.Module, *, embeddings: bool = False) -> dict[str, Layer]:
    """Return every compressible layer, unfiltered and unchecked, under each of its names.

    ``embeddings``: True to return embeddings too. Otherwise what is tied to one is a layer without it.
    """
    found: dict[str, Layer] = {}
    for group in _weights(unwrap(model), embeddings=embeddings)[0]:
        for every, layer in zip(group.names, _layers(group), strict=True):
            found |= dict.fromkeys(every[: len(group.members)], layer)
        for name, module in group.followers if group.stored.called else ():
            (found[name],) = _layers(_Group([(name, module)], next(stored_in(module))))
    return found


def check_order(order: Technique | Sequence, layers: Iterable[Layer], *, calibrated: bool, notes: list[str]) -> None:
    """Raise InputError unless an order can run on a model.

    It has to fit every layer, leave inputs as they are, need no single tokens, and have the calibration that it needs.

    Args:
        order: The order.
        layers: The layers of the model.
        calibrated: True if there is calibration data.
        notes: A list to extend with lines on techniques that drop nothing of a layer.
    """
    order, layers = as_sequence(order), tuple(layers)
    for layer in (one for one in layers if one.is_embedding):
        if looking := [t for t in order if t.needs_inputs or t.needs_tokens or t.whole_model]:
            raise _no_inputs(str(looking[0]), "techniques that look at one layer's weights alone", layer)
    if changing := [t for t in order if t.promises().changes_inputs]:
        allowed = "techniques that act on weights: of its inputs a model keeps Gram matrices only"
        raise InputError("a technique that changes a layer's inputs", allowed, str(changing[0]))
    if looking := [t for t in order if t.needs_tokens]:
        allowed = "techniques for which Gram matrices do: of its inputs a model keeps these and magnitudes only"
        raise InputError("a technique that looks at single tokens", allowed, str(looking[0]))
    if not calibrated and (needing := [t for t in order if t.needs_inputs]):
        raise InputError("no calibration", "calibration data", str(needing[0]))
    alone = Sequence(tuple(t for t in order if not t.whole_model))
    check_sequence(layers, alone)
    notes += [note for note in nothing_dropped(layers, alone) if note not in notes]


def check_loss(loss: str, layers: Iterable[Layer]) -> None:
    """Raise InputError if a loss looks at inputs, and a layer is an embedding."""
    for layer in layers:
        if layer.is_embedding and loss_named(loss).needs_inputs:
            raise _no_inputs(f"the loss {loss}", "a loss of weights, such as loss='weight_l2'", layer)


def _no_inputs(what: str, allowed: str, layer: Layer) -> InputError:
    """Return the error for something that looks at inputs or at the whole model, where a layer is an embedding."""
    given = f"{what} for an embedding, whose inputs are ids"
    return InputError(given, f"{allowed}; or targets without it", f"layer {layer.name}")


def readers_of(layers: Iterable[Layer]) -> list[str]:
    """Return a line for each embedding whose weight other modules have too."""
    return [
        f"layer {layer.name}: its weight is that of {', '.join(layer.others)} too, and is compressed once for all"
        for layer in layers
        if layer.is_embedding and layer.others
    ]


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


def _layers(group: _Group) -> list[Layer]:
    """Return the layers of a parameter, one for each of its matrices."""
    modules = tuple(dict.fromkeys(module for _, module in group.members))
    first, own = group.members[0][0], group.stored.own
    return [
        Layer(
            every[0],
            modules,
            group.stored.transposed,
            tuple(group.followers),
            f"{first}.{own}" if first else own,
            matrix.index,
            tuple(dict.fromkeys(group.inside)),
            tuple(dict.fromkeys(every[1 : len(group.members)])),
        )
        for every, matrix in zip(group.names, group.stored.matrices, strict=True)
    ]


@dataclass(eq=False)
class _Group:
    """The modules, by name, that share one parameter with weights.

    ``stored``: how they hold it. ``foreign``: True if something else in the model uses it too. ``followers``: modules
    that read it in another layout. ``inside``: the modules whose ``forward`` multiplies with it.
    """

    members: list[tuple[str, nn.Module]]
    stored: Stored
    foreign: bool = False
    followers: list[tuple[str, nn.Module]] = field(default_factory=list)
    inside: list[nn.Module] = field(default_factory=list)

    @property
    def every(self) -> list[tuple[str, nn.Module]]:
        """All modules that read the parameter."""
        return [*self.members, *self.followers]

    @property
    def names(self) -> list[list[str]]:
        """The names of each layer: those of its modules, and what says which of their weights it is."""
        own = "" if self.stored.called else self.stored.own
        return [
            [".".join(filter(None, (name, own, matrix.suffix))) for name, _ in self.every]
            for matrix in self.stored.matrices
        ]


@dataclass(frozen=True, eq=False)
class _Named:
    """A parameter or buffer with its name. ``group``: the weights that it holds, if it holds any."""

    name: str
    tensor: Tensor
    group: _Group | None = None


def _weights(model: nn.Module, *, embeddings: bool = True) -> tuple[list[_Group], list[_Named]]:
    """Return the parameters that hold weights of layers, and every parameter and buffer of the model.

    Two modules share one weight if they view the same memory, read the same way round. ``embeddings``: False to take
    embeddings for modules without weights of layers.
    """
    groups: dict[object, _Group] = {}
    tensors: list[_Named] = []
    foreign: list[Tensor] = []
    parts = dict(named_parts(model))
    multiplying = {
        part: module
        for module in parts.values()
        for kind, own in UNCALLED.items()
        if (part := module._modules.get(own)) is not None
        and any(c.__name__.endswith(kind) for c in type(module).__mro__)
    }
    for name, module in parts.items():
        held = {one.own: one for one in stored_in(module) if embeddings or not is_embedding(module)}
        read: dict[str, _Group] = {}
        for own, stored in held.items():
            weight = module._parameters.get(own)
            group = groups.setdefault(id(module) if weight is None else stretch(weight), _Group([], stored))
            read[own] = group
            if not group.members or _way(module, stored) == _way(group.members[0][1], group.stored):
                group.members.append((name, module))
                around = multiplying.get(module)
                group.inside += [] if stored.called and around is None else [around or module]
            else:
                group.foreign |= not (stored.called and group.stored.called)
                group.followers.append((name, module))
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                tensors.append(_Named(f"{name}.{own}" if name else own, tensor, read.get(own)))
                foreign += [] if own in read else [tensor]
    known = {id(module) for module in parts.values()}
    for name, module in model.named_modules():  # parts of adapters are no layers, but their memory counts
        if id(module) not in known:
            left_out = [p for p in [*module._parameters.values(), *module._buffers.values()] if p is not None]
            tensors += [_Named(name, tensor) for tensor in left_out]
            foreign += left_out
    elsewhere = {stretch(tensor) for tensor in foreign}
    for key, group in groups.items():
        group.foreign |= key in elsewhere
        group.members.sort(key=lambda member: not is_embedding(member[1]))  # which names the layer
    return list(groups.values()), tensors


def _way(module: nn.Module, stored: Stored) -> object:
    """Return a value that is equal for two modules that multiply with the same matrices."""
    weight = module._parameters.get(stored.own)
    read = stored.transposed, tuple(str(matrix) for matrix in stored.matrices), stored.called
    return None if weight is None else place(weight), *read


def _check_embedding(group: _Group, layer: Layer) -> None:
    """Raise InputError if an embedding cannot be a layer."""
    allowed = "an embedding whose weight only lookups and Linear layers read, as it is; or targets without it"
    if group.followers:
        given = f"a weight that {group.followers[0][0]} reads in another layout"
        raise InputError(given, allowed, f"layer {layer.name}")
    if group.foreign:
        raise InputError("a weight that a module of another kind uses too", allowed, f"layer {layer.name}")
    for module in layer.modules:
        if getattr(module, "max_norm", None) is not None:
            given = f"an embedding with max_norm={module.max_norm}, which changes its weight when it is called"
            raise InputError(given, "max_norm=None, or targets without it", f"layer {layer.name}")


def _check_memory(layers: Iterable[Layer], tensors: Iterable[_Named], owner: Mapping[int, Layer]) -> None:
    """Raise InputError if a layer's weight shares memory with another tensor of the model, or with itself.

    ``owner``: for the id of a group, the first of its layers.
    """
    for layer in layers:
        if overlaps_itself(layer.parameter):
            raise InputError("a weight whose entries share memory", "a dense matrix", f"layer {layer.name}")
    plain = [one for one in tensors if is_plain(one.tensor) and one.tensor.numel()]
    reaching: list[_Named] = []  # those that reach beyond where the next one begins
    for one in sorted(plain, key=lambda one: extent(one.tensor)[0]):
        begin = extent(one.tensor)[0]
        reaching = [other for other in reaching if extent(other.tensor)[1] > begin]
        for other in reaching:
            mine, yours = (owner.get(id(x.group)) for x in (one, other))
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


def check_weight(layer: Layer) -> None:
    """Raise InputError, naming the layer, if its weight cannot be compressed."""
    where, allowed = f"layer {layer.name}", "a dense matrix of float64, float32, bfloat16 or float16"
    weight = layer.modules[0]._parameters.get(layer.own)
    if weight is None:
        raise InputError(
            "a weight computed from other parameters",
            "a plain weight (first remove the parametrization, weight norm or pruning)",
            where,
        )
    if weight.device.type == "meta":
        raise InputError("a weight on the meta device", "a weight that is loaded", where)
    if not is_plain(weight) or weight.dtype not in DTYPES or layer.weight.ndim != 2:
        raise InputError(f"a weight that is a {kind_of(weight)}", allowed, where)
    if 0 in layer.shape:
        given = f"a weight of shape {layer.shape[0]}x{layer.shape[1]}"
        raise InputError(given, "at least 1x1 (out x in)", where)
    if not bool(torch.isfinite(layer.weight).all()):
        raise InputError("weights that are not finite", "finite weights", where)
