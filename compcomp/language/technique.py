"""Techniques, and the sequences they form."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import wraps
from math import lcm
from typing import Any, ClassVar

import numpy as np

from compcomp import hooks
from compcomp.errors import InputError
from compcomp.language.parameters import ANY
from compcomp.language.steps import Optimum, Selection, Step, leaves_free
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.terms import Term

Kernel = Callable[[Any, LayerState], LayerState]
Source = tuple[str, int, int]
"""A file, the time of its last change (nanoseconds) and its size (bytes)."""


def source_now(file: str) -> Source:
    """The file as it is now; OSError where it cannot be read."""
    found = os.stat(file)
    return file, found.st_mtime_ns, found.st_size


NO_OP = ("always", "on a grid", "plain", "plain dense")
"""When a technique may change nothing. "on a grid": the format records a grid. "plain": it records no mask, pattern,
grid, rank or cut (it may a low-rank term and a transform). "plain dense": and the effective weight equals the
reference, and the inputs are the dense ones."""


@dataclass(frozen=True)
class Declared:
    """What a technique promises, for every layer and every choice. Each promise is tested.

    Every technique promises that what it sets up holds after it ("fits"): weights that it drops are zero, a pattern is
    one of its mask, its mask drops what it removes, and in removed rows and columns the low-rank term is zero too; the
    weights have the rank, and lie on the grid (of one of which zero is no value: those that the mask keeps). And that
    its steps, where it has any, are all that it does. And that it maps equal states to equal states: of a low-rank term
    beside the weight it sees the product alone, unless it says `sees_factors`.

    keeps: invariants that survive it where they hold, out of :data:`compcomp.layers.state.INVARIANTS` and
        "factors". For the mask also, for
        any weights: the mask after it drops all that the mask before it drops. For a grid of which zero is no value:
        of the weights that the mask keeps. "factors": the low-rank term is what it was, none where there was none.
    restores: invariants that hold after it whatever the weights were: "mask", every weight is zero that the mask before
        it drops, and the mask after it drops these as well.
    never_increases: losses that are no larger after it than before it, while the inputs are the dense ones and in the
        basis that is there: of the layer as it sees it.
    any_inputs: what never_increases promises holds where the inputs have been changed as well.
    rests: where the effective weight equals the reference and the inputs are the dense ones, it returns an equal
        state: the same weight, mask, grid and inputs, and a low-rank term of the same product.
    holds_reference: then it leaves the effective weight and the inputs alone.
    leaves_weight: weight, mask, grid, rank and inputs are after it what they were before; all it may do is add a
        low-rank term beside the weight.
    changes_basis: all it does is change the basis of the inputs: the effective weight, the reference and the inputs
        are what they were, and so is every loss; weight and format change with the transform, and a plain format
        stays plain. A technique that does not say so leaves the transform alone, and never sees one: it is shown the
        layer in the basis that is there.
    changes_inputs: it acts on the inputs instead of the weight. What it makes of them depends on them alone, and
        weight, reference and format stay as they are. A technique that does not say so leaves the inputs alone.
    sees_factors: what it makes of a layer depends on more of the low-rank term than its product, such as on its rank.
    zeros: which zeros stay, whatever the format says of them. "weights": a weight that is zero is zero after it.
        "rows": where a row of the weight and that of the low-rank term are zero, both are after it. "columns": the same
        of columns.
    removes_rows: what it removes is rows, as the cut says, and of weights it drops these alone.
    removes_columns: the same of columns.
    input_bits: after it the inputs of every token, in the basis that is there, are among 2^input_bits neighbouring
        multiples of a step of the token's own, 0 one of them. None: not known.
    format_varies: numbers in the format it leaves (levels, pattern, ranks) depend on weights, inputs or shape, not on
        the technique and the numbers in the format before alone.
    homogeneous: scaling weight and reference by t > 0 scales its result by t.
    deterministic: its conventions leave nothing free ("any"): equal inputs give equal results.
    landmarks: largest magnitudes for which its rounding midpoints fall on integers (a hint for the search).
    trivial_side: layers with no more rows or columns than this lose nothing (a hint for the search).
    optimum: the weight it leaves is one of those that this admits for the weight that it finds, and none of them loses
        less against that, whatever is left free.
    no_op: circumstances, out of :data:`NO_OP`, in which it returns an equal state with the same factors, whatever is
        left free.
    idempotent: applied to a state that it returned, it returns an equal state with the same factors, whatever is left
        free; of a technique for the whole model, on every layer of a model.
    involution: applied twice in a row to a state with a plain format, it returns an equal state with the same factors.
    """

    keeps: frozenset[str] = frozenset()
    restores: frozenset[str] = frozenset()
    never_increases: frozenset[str] = frozenset()
    any_inputs: bool = False
    rests: bool = False
    holds_reference: bool = False
    leaves_weight: bool = False
    changes_inputs: bool = False
    homogeneous: bool = True
    deterministic: bool = True
    landmarks: tuple[int, ...] = ()
    trivial_side: int = 0
    changes_basis: bool = False
    optimum: Optimum | None = None
    zeros: frozenset[str] = frozenset()
    removes_rows: bool = False
    removes_columns: bool = False
    input_bits: int | None = None
    format_varies: bool = False
    sees_factors: bool = False
    no_op: frozenset[str] = frozenset()
    idempotent: bool = False
    involution: bool = False


class Technique:
    """One compression technique with its parameters: a frozen dataclass in ``compcomp.encodings``.

    A subclass gives either ``steps()``, from which the encoding follows, or its own ``encode``. Its torch
    kernel is found through the registry by module path, so that no encoding imports torch.
    """

    kernels: ClassVar[dict[type, str]] = {}
    examples: ClassVar[dict[str, tuple[object, ...]]] = {}
    """Values to try for parameters that a claim leaves open (Any)."""
    tried: ClassVar[dict[str, Items[object]]] = {}
    """Values of parameters worth testing, beside those that :data:`compcomp.language.samples.VALUES` has by name."""
    samples: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Parameters of its representatives in tables; see :func:`compcomp.language.samples.representatives`."""
    declared: ClassVar[Declared] = Declared()
    kernel_module: ClassVar[str | None] = None
    """The module with its ``kernel`` function, where it is registered without one; None is the module of the class."""
    tried_shapes: ClassVar[Items[tuple[int, int]]] = ()
    """Shapes (out, in) worth testing, beside those that are tested anyway."""
    exact_scores: ClassVar[bool] = False
    """Whether it compares sums and products of the layer's numbers alone, which floats hold where these are small
    integers: the conformance test then looks at ties of such layers as well."""
    read_from: ClassVar[Source | None] = None
    """The file of this class as it was when the class was made; None where there is none."""
    whole_model: ClassVar[bool] = False
    """Whether it acts on all layers of a model together. Its kernel's module then has ``kernel_model`` as well, from a
    :class:`compcomp.layers.whole.WholeModel` to the states of its layers, and what the encoding says of one layer
    is said of each of them, or of a matrix that stands for several (its docstring says which)."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if (own := cls.__dict__.get("__post_init__")) is not None:
            cls.__post_init__ = _after_plain(own)  # type: ignore[method-assign]
        cls.read_from = None
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if file is not None:
            with suppress(OSError):
                cls.read_from = source_now(file)

    def __post_init__(self) -> None:
        """Take numbers of numpy for numbers of Python, before a class looks at its parameters: text knows no others."""
        for f in fields(self):  # type: ignore[arg-type]
            if f.name in vars(self):
                object.__setattr__(self, f.name, _plain(getattr(self, f.name)))

    def steps(self) -> tuple[Step, ...]:
        """The technique as selections and shared-context maps; empty when it is neither."""
        return ()

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        """How many of how many units of a group go from a layer of this shape (out, in), by its share of them.

        None for a technique that drops no share, or leaves it open. By default read off its last selection.
        """
        selections = [step for step in self.steps() if isinstance(step, Selection)]
        last = selections[-1] if selections else getattr(self, "selection", None)
        if not isinstance(last, Selection) or not isinstance(last.share, Fraction) or not last.share:
            return None
        size = last.partition.group_size(shape)
        return last.count(size), size

    def promises(self) -> Declared:
        """What holds for these parameters."""
        return self.declared

    @property
    def is_deterministic(self) -> bool:
        """Whether nothing is left free, by its promises and by the conventions of its steps."""
        return not any(map(leaves_free, self.steps())) and self.promises().deterministic

    @property
    def is_homogeneous(self) -> bool:
        """Whether its result scales along with the layer, by its promises and as its steps scale."""
        return all(getattr(step, "homogeneous", True) for step in self.steps()) and self.promises().homogeneous

    @property
    def needs_inputs(self) -> bool:
        """Whether it looks at the calibration inputs."""
        return any(getattr(step, "needs_inputs", False) for step in self.steps())

    @property
    def needs_magnitudes(self) -> bool:
        """Whether it looks at the magnitudes of single inputs, which their Gram matrix does not tell."""
        return False

    @property
    def needs_tokens(self) -> bool:
        """Whether it looks at the inputs themselves, which neither Gram matrix nor magnitudes tell."""
        return self.promises().changes_inputs

    def rational(self, layer: LayerState, numbers: Items[int]) -> LayerState:
        """An exact layer like this one for which roots it takes are rational, for tests. ``numbers``: in, all > 0."""
        return layer

    @property
    def partitions(self) -> Items[Partition]:
        """The groups that its weights have to divide into."""
        return [step.partition for step in self.steps()]

    @property
    def unit(self) -> int:
        """It fits layers whose number of columns is a multiple of this."""
        return lcm(*(partition.size or 1 for partition in self.partitions))

    @property
    def row_unit(self) -> int:
        """It fits layers whose number of rows is a multiple of this."""
        return 1

    def encode(self, layer: LayerState) -> LayerState:
        """The layer after this technique, on terms. ``weight``: out x in, as are mask and grid."""
        self.check(layer.weight.shape)
        for step in self.steps():
            layer = step.apply(layer)
        return layer

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise InputError when the technique does not fit a weight of this shape (out, in)."""
        for partition in self.partitions:
            partition.check((shape[0], shape[1]), self)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the technique fits a weight of this shape (out, in)."""
        try:
            self.check(shape)
        except InputError:
            return False
        return True

    def feasible(self, before: LayerState, after: LayerState) -> Term | None:
        """Whether ``after`` is among the states that the encoding allows from ``before``, of all that it leaves free.

        None where the kernel gives what the encoding gives with the first of every free choice. A technique whose
        kernel chooses otherwise, by training for example, answers for every field of the state that it may set; the
        conformance test asks it of the kernel's result, as floats.
        """
        return None

    def kernel(self) -> Kernel:
        """The torch kernel: ``kernel(technique, layer)`` with tensors in the layer's fields."""
        if type(self) not in self.kernels:
            raise InputError(type(self).__name__, "a technique registered with a kernel", "Technique.kernel")
        name = self.kernels[type(self)]
        kernel: Kernel | None = getattr(importlib.import_module(name), "kernel", None)
        if kernel is None:
            raise InputError(f"{name} without one", "a module with a function kernel(technique, layer)", f"{self}")
        return kernel

    def parts(self) -> Mapping[str, Technique]:
        """What it is to each kind of single layer that shares units with others, by what goes there; empty elsewhere.

        Such as rows of the layers that write neurons, and columns of the layer that reads them. Which units go is for
        all of the layers to say: of what it makes of one of them holds what the part *promises*, and in some model it
        does just what the part does. Techniques with parts of the same names act on the same units.
        """
        return {}

    @property
    def has_kernel(self) -> bool:
        """Whether there is a torch kernel for it."""
        return type(self) in self.kernels or type(self).kernel is not Technique.kernel

    def kernel_model(self) -> Callable[[Any, Any], Mapping[str, LayerState]]:
        """The torch kernel of a technique that acts on a whole model."""
        if not self.whole_model or type(self) not in self.kernels:
            raise InputError(type(self).__name__, "a registered technique for whole models", "Technique.kernel_model")
        found: Callable[[Any, Any], Mapping[str, LayerState]]
        found = importlib.import_module(self.kernels[type(self)]).kernel_model
        return found

    def __str__(self) -> str:
        shown = []
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.init and value != f.default:
                shown.append(f"{f.name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __rshift__(self, other: Technique | Sequence) -> Sequence:
        return Sequence((self,)) >> other

    @staticmethod
    def register(technique: type[Technique], kernel: str | None = None) -> None:
        """Make a technique known: usable in text, and run by the ``kernel`` function of that module.

        Without one, that of its ``kernel_module``, or of the module that defines the class. A class that is defined
        again (a module reloaded, a cell run again) takes the place of the one before. Raises InputError where the name
        is that of another technique: text, stores and other processes know a technique by its name.
        """
        taken = Technique.known().get(technique.__name__)
        if taken is not None and not _same_class(taken, technique):
            where = f"{technique.__module__}.{technique.__qualname__}"
            given = f"{where}, named like the technique of {taken.__module__}"
            raise InputError(given, "a class whose name no other technique has", "Technique.register")
        Technique.kernels.pop(technique, None)  # so that it is the last of its name
        Technique.kernels[technique] = kernel or technique.kernel_module or technique.__module__

    @staticmethod
    def known() -> dict[str, type[Technique]]:
        """Every technique of this library and every registered class, by its name; of one defined again the last."""
        hooks.offered("load catalogue")()
        return {technique.__name__: technique for technique in Technique.kernels}

    @staticmethod
    def named(name: str) -> type[Technique]:
        """The technique class of this name, registered or installed beside us; InputError when there is none."""
        known = Technique.known()
        if name in known:
            return known[name]
        found: type[Technique] | None = hooks.offered("find installed")(name)
        if found is None:
            names = {*known, *hooks.offered("installed names")()}
            raise InputError(f"technique {name!r}", ", ".join(sorted(names)), "sequence")
        return found


def _after_plain(own: Callable[..., None]) -> Callable[..., None]:
    @wraps(own)
    def checked(self: Technique, *given: Any) -> None:
        Technique.__post_init__(self)
        own(self, *given)

    return checked


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.bool_ | np.integer | np.float64 | np.str_) else value


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_shown, value)) + ("," if len(value) == 1 else "") + ")"
    return str(value) if isinstance(value, Fraction) else repr(value)


def _same_class(one: type[Technique], other: type[Technique]) -> bool:
    """Whether two classes are one, or one that was defined again."""
    if one is other or one.__qualname__ != other.__qualname__:
        return one is other
    files = [None if kind.read_from is None else kind.read_from[0] for kind in (one, other)]
    return one.__module__ == other.__module__ or (files[0] is not None and files[0] == files[1])


def run(technique: Technique, layer: LayerState) -> LayerState:
    """The layer after the technique, on terms. Every use of an encoding on a state goes through here.

    The technique is shown the layer in the coordinates of its weight (:meth:`LayerState.working`); what it makes of
    that is put back behind the transform that was there.
    """
    view = layer.working()
    return layer.taken_back(view, technique.encode(view))


def run_kernel(technique: Technique, layer: LayerState, kernel: Kernel | None = None) -> LayerState:
    """The same with the torch kernel, or another in its place."""
    view = layer.working()
    return layer.taken_back(view, (kernel or technique.kernel())(technique, view))


def unknowns(technique: Technique) -> tuple[str, ...]:
    """The parameters that are Any."""
    return tuple(name for name in type(technique).examples if getattr(technique, name) is ANY)


@dataclass(frozen=True)
class Sequence:
    """Techniques in the order in which they are applied: ``P >> Q`` applies P first."""

    techniques: tuple[Technique, ...] = field(default=())

    def encode(self, layer: LayerState) -> LayerState:
        """The layer after every technique in turn, on terms."""
        for technique in self.techniques:
            layer = run(technique, layer)
        return layer

    def trace(self, layer: LayerState) -> list[LayerState]:
        """The states from the given layer on, one more than there are techniques."""
        states = [layer]
        for technique in self.techniques:
            states.append(run(technique, states[-1]))
        return states

    def kernel(self, layer: LayerState) -> LayerState:
        """The layer after every technique's torch kernel in turn."""
        for technique in self.techniques:
            layer = run_kernel(technique, layer)
        return layer

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether every technique fits a weight of this shape (out, in)."""
        return all(technique.fits(shape) for technique in self.techniques)

    def at(self, values: Mapping[str, object]) -> Sequence:
        """The sequence with a value for each parameter that is Any."""
        known = (replace(t, **{n: values[n] for n in unknowns(t)}) for t in self.techniques)  # type: ignore[type-var]
        return Sequence(tuple(known))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise InputError when a technique does not fit a weight of this shape (out, in)."""
        for technique in self.techniques:
            technique.check(shape)

    @property
    def needs_inputs(self) -> bool:
        return any(t.needs_inputs for t in self.techniques)

    @property
    def is_deterministic(self) -> bool:
        """Whether its techniques leave no free choice: equal inputs give equal results."""
        return all(t.is_deterministic for t in self.techniques)

    @property
    def changes_inputs(self) -> bool:
        """Whether some technique changes the layer's inputs."""
        return any(t.promises().changes_inputs for t in self.techniques)

    @property
    def changes_basis(self) -> bool:
        """Whether some technique changes the basis of the layer's inputs."""
        return any(t.promises().changes_basis for t in self.techniques)

    def __str__(self) -> str:
        return " >> ".join(map(str, self.techniques)) or "identity"

    def __len__(self) -> int:
        return len(self.techniques)

    def __iter__(self) -> Iterator[Technique]:
        return iter(self.techniques)

    def __rshift__(self, other: Technique | Sequence) -> Sequence:
        if not isinstance(other, Technique | Sequence):
            raise InputError(f"{other!r}", "a Technique or a Sequence", ">>")
        return Sequence(self.techniques + as_sequence(other).techniques)


def as_sequence(given: Technique | Sequence) -> Sequence:
    """A sequence of one, or the sequence itself; InputError for anything else."""
    if isinstance(given, Technique):
        return Sequence((given,))
    if isinstance(given, Sequence):
        return given
    raise InputError(f"{given!r}", "a Technique or a Sequence such as P >> Q", "claim")
