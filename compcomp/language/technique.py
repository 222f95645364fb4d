"""Techniques, and the sequences they form: ``P >> Q`` makes either of the other, so both are here.

A technique has three parts that must not be confused: contracts (:mod:`compcomp.language.contracts`), on which proofs
rest; hints (:mod:`compcomp.language.hints`), where the search looks first; and fixtures
(:mod:`compcomp.language.fixtures`), on which it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import wraps
from math import lcm
from typing import Any, ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language.contracts import Declared as Declared
from compcomp.language.fixtures import Fixtures as Fixtures
from compcomp.language.fixtures import fixtures_of
from compcomp.language.hints import Hints as Hints
from compcomp.language.parameters import ANY
from compcomp.language.registry import Registered, Source, source_now
from compcomp.language.steps import Selection, Step, leaves_free
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.terms import Term

__all__ = [
    "Declared",
    "Fixtures",
    "Hints",
    "Kernel",
    "Sequence",
    "Source",
    "Technique",
    "as_sequence",
    "run",
    "run_kernel",
    "source_now",
    "unknowns",
]

Kernel = Callable[[Any, LayerState], LayerState]


class Technique(Registered):
    """One compression technique with its parameters: a frozen dataclass in ``compcomp.encodings``.

    A subclass gives either ``steps()``, from which the encoding follows, or its own ``encode``. Its torch
    kernel is found through the registry by module path, so that no encoding imports torch.
    """

    # Contracts: proofs rest on these, on steps() and encode(), and on the properties that say what it looks at.

    declared: ClassVar[Declared] = Declared()
    """What it promises, where that is the same for all parameters."""
    examples: ClassVar[dict[str, tuple[object, ...]]] = {}
    """The parameters that a claim may leave open (Any), with at least two values of each. What is declared of Any is
    relied on at these values, and at numbers of the kind that they are."""
    whole_model: ClassVar[bool] = False
    """Whether it acts on all layers of a model together. Its kernel's module then has ``kernel_model`` as well, from a
    :class:`compcomp.layers.whole.WholeModel` to the states of its layers, and what the encoding says of one layer
    is said of each of them, or of a matrix that stands for several (its docstring says which)."""

    # Fixtures: what it is tested on. Hints are what hints() returns. Neither has a part in any verdict.

    fixtures: ClassVar[Fixtures] = Fixtures()

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.fixtures = fixtures_of(cls)
        if (own := cls.__dict__.get("__post_init__")) is not None:
            cls.__post_init__ = _after_plain(own)  # type: ignore[method-assign]

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
        """Return the contracts for these parameters."""
        return self.declared

    def hints(self) -> Hints:
        """Return what makes counterexamples easier to find. No verdict depends on it."""
        return Hints()

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
        """Return the torch kernel: ``kernel(technique, layer)`` with tensors in the layer's fields."""
        found: Kernel = self.kernel_function("kernel")
        return found

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
        """Return the torch kernel of a technique that acts on a whole model."""
        if not self.whole_model:
            raise InputError(type(self).__name__, "a registered technique for whole models", "Technique.kernel_model")
        found: Callable[[Any, Any], Mapping[str, LayerState]] = self.kernel_function("kernel_model")
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
