"""Define techniques and the sequences that they form with ``P >> Q``.

A technique has three parts that must not be confused. Proofs use its contracts
(:mod:`compcomp.language.contracts`). The search for counterexamples starts from its hints
(:mod:`compcomp.language.hints`). Tests run on its fixtures (:mod:`compcomp.language.fixtures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
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
    "has_fields",
    "run",
    "run_kernel",
    "source_now",
    "unknowns",
]

Kernel = Callable[[Any, LayerState], LayerState]


class Technique(Registered):
    """Represent one compression technique with its parameters.

    A technique is a frozen dataclass; those of this library are in ``compcomp.encodings``. A subclass defines either
    ``steps()``, from which the encoding follows, or its own ``encode``. The registry finds its torch kernel by module
    path, so that no encoding imports torch.
    """

    # Contracts: proofs depend on these, on steps() and encode(), and on the needs_* properties.

    declared: ClassVar[Declared] = Declared()
    """The contracts, if they are the same for all parameters; see :meth:`promises`."""
    examples: ClassVar[dict[str, tuple[object, ...]]] = {}
    """The parameters that a claim may leave open (Any), with at least two values of each. Proofs use contracts that are
    declared for Any at these values and at other numbers of the same kind."""
    whole_model: ClassVar[bool] = False
    """True if the technique acts on all layers of a model together. The module of its kernel then also defines
    ``kernel_model``, which maps a :class:`compcomp.layers.whole.WholeModel` to the states of its layers. The encoding
    holds for each of these layers, or for a matrix that stands for several (the technique's docstring says which)."""

    # Fixtures: test inputs. hints() returns the hints. No verdict depends on either.

    fixtures: ClassVar[Fixtures] = Fixtures()

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # for type checkers: subclasses are dataclasses

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.fixtures = fixtures_of(cls)
        if (own := cls.__dict__.get("__post_init__")) is not None:
            cls.__post_init__ = _after_plain(own)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        """Convert numpy scalars among the parameters to Python numbers, the only ones that text can express.

        It runs before the ``__post_init__`` of a subclass.
        """
        for f in fields(self):
            if f.name in vars(self):
                object.__setattr__(self, f.name, _plain(getattr(self, f.name)))

    def steps(self) -> tuple[Step, ...]:
        """Return the technique as selections and maps with a shared context; empty if it is neither."""
        return ()

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        """Return how many units of a group are dropped, and the group's size, for a layer of this shape (out, in).

        By default both are read off the last selection. Returns None if the technique drops no share of a group, or if
        the share is open (Any).
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
        """Return values that make counterexamples easier to find. No verdict depends on them."""
        return Hints()

    @property
    def is_deterministic(self) -> bool:
        """True if the contracts and the conventions of the steps leave no free choice."""
        return not any(map(leaves_free, self.steps())) and self.promises().deterministic

    @property
    def is_homogeneous(self) -> bool:
        """True if scaling the layer scales the result, according to the contracts and to every step."""
        return all(getattr(step, "homogeneous", True) for step in self.steps()) and self.promises().homogeneous

    @property
    def needs_inputs(self) -> bool:
        """True if the result depends on the calibration inputs."""
        return any(getattr(step, "needs_inputs", False) for step in self.steps())

    @property
    def needs_magnitudes(self) -> bool:
        """True if the result depends on magnitudes of single inputs, which the Gram matrix does not determine."""
        return False

    @property
    def needs_tokens(self) -> bool:
        """True if the result depends on the inputs themselves, which Gram matrix and magnitudes do not determine."""
        return self.promises().changes_inputs

    @property
    def partitions(self) -> Items[Partition]:
        """The partitions into groups that the weights must admit."""
        return [step.partition for step in self.steps()]

    @property
    def unit(self) -> int:
        """The number that must divide the number of columns of a layer."""
        return lcm(*(partition.size or 1 for partition in self.partitions))

    @property
    def row_unit(self) -> int:
        """The number that must divide the number of rows of a layer."""
        return 1

    def encode(self, layer: LayerState) -> LayerState:
        """Return the layer after this technique, on terms. Weight, mask and grid have shape (out, in).

        Raises:
            InputError: the technique does not fit the shape of the weight.
        """
        self.check(layer.weight.shape)
        steps = self.steps()
        for step in steps:
            layer = step.apply(layer)
        return layer if steps else self.encode_as_a_whole(layer)

    def encode_as_a_whole(self, layer: LayerState) -> LayerState:
        """Return the layer after a technique that has no steps for its parameters, on terms.

        A technique that has steps for some of its parameters overrides this, and not :meth:`encode`: what its steps say
        then stays what it does.
        """
        return layer

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise InputError if the technique does not fit a weight of this shape (out, in)."""
        for partition in self.partitions:
            partition.check((shape[0], shape[1]), self)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if the technique fits a weight of this shape (out, in)."""
        try:
            self.check(shape)
        except InputError:
            return False
        return True

    def feasible(self, before: LayerState, after: LayerState) -> Term | None:
        """Return a term that is true if the encoding allows ``after`` from ``before`` for some free choices.

        The default, None, is for kernels that agree with the encoding when it takes the first option of every free
        choice. A technique whose kernel chooses in another way, by training for example, overrides this method and
        checks every field of the state that it may set. The conformance test applies it to the kernel's result, in
        floats.

        Args:
            before: the state that the technique is applied to.
            after: the state that the kernel returned.
        """
        return None

    def kernel(self) -> Kernel:
        """Return the torch kernel: ``kernel(technique, layer)`` with tensors in the layer's fields."""
        found: Kernel = self.kernel_function("kernel")
        return found

    def parts(self) -> Mapping[str, Technique]:
        """Return the technique's effect on each kind of layer that shares units with others, by the name of the part.

        The names say what is removed there, such as the rows of the layers that write neurons and the columns of the
        layer that reads them. All of these layers together decide which units are removed. For one of them, only what
        the part *promises* holds; in some model the technique does exactly what the part does. Techniques with parts
        of the same names act on the same units. Empty for all other techniques.
        """
        return {}

    @property
    def has_kernel(self) -> bool:
        """True if there is a torch kernel for the technique."""
        return type(self) in self.kernels or type(self).kernel is not Technique.kernel

    def kernel_model(self) -> Callable[[Any, Any], Mapping[str, LayerState]]:
        """Return the torch kernel of a technique that acts on a whole model.

        Raises:
            InputError: the technique acts on single layers.
        """
        if not self.whole_model:
            raise InputError(type(self).__name__, "a registered technique for whole models", "Technique.kernel_model")
        found: Callable[[Any, Any], Mapping[str, LayerState]] = self.kernel_function("kernel_model")
        return found

    def __str__(self) -> str:
        shown = []
        for f in fields(self):
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
    """Return the layer after the technique, on terms. Every application of an encoding to a state goes through here.

    The technique receives the layer in the coordinates of its weight (:meth:`LayerState.working`). The transform of
    the layer is put back on its result.
    """
    view = layer.working()
    return layer.taken_back(view, technique.encode(view))


def run_kernel(technique: Technique, layer: LayerState, kernel: Kernel | None = None) -> LayerState:
    """Return the layer after the technique's torch kernel, or after ``kernel`` if it is given; see :func:`run`."""
    view = layer.working()
    return layer.taken_back(view, (kernel or technique.kernel())(technique, view))


def has_fields(technique: object) -> bool:
    """Return True for a dataclass, as every technique should be; the class of a user may be none."""
    return is_dataclass(technique)


def unknowns(technique: Technique) -> tuple[str, ...]:
    """Return the names of the parameters that are Any."""
    return tuple(name for name in type(technique).examples if getattr(technique, name) is ANY)


@dataclass(frozen=True)
class Sequence:
    """Hold techniques in the order in which they are applied: ``P >> Q`` applies P first."""

    techniques: tuple[Technique, ...] = field(default=())

    def encode(self, layer: LayerState) -> LayerState:
        """Return the layer after all techniques, applied in order, on terms."""
        for technique in self.techniques:
            layer = run(technique, layer)
        return layer

    def trace(self, layer: LayerState) -> list[LayerState]:
        """Return all states from the given layer on, one more than there are techniques."""
        states = [layer]
        for technique in self.techniques:
            states.append(run(technique, states[-1]))
        return states

    def kernel(self, layer: LayerState) -> LayerState:
        """Return the layer after the torch kernels of all techniques, applied in order."""
        for technique in self.techniques:
            layer = run_kernel(technique, layer)
        return layer

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if every technique fits a weight of this shape (out, in)."""
        return all(technique.fits(shape) for technique in self.techniques)

    def at(self, values: Mapping[str, object]) -> Sequence:
        """Return the sequence with a value, by name, for each parameter that is Any."""
        known = (replace(t, **{n: values[n] for n in unknowns(t)}) for t in self.techniques)
        return Sequence(tuple(known))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise InputError if a technique does not fit a weight of this shape (out, in)."""
        for technique in self.techniques:
            technique.check(shape)

    @property
    def needs_inputs(self) -> bool:
        """True if the result of some technique depends on the calibration inputs."""
        return any(t.needs_inputs for t in self.techniques)

    @property
    def is_deterministic(self) -> bool:
        """True if no technique leaves a free choice, so that equal inputs give equal results."""
        return all(t.is_deterministic for t in self.techniques)

    @property
    def changes_inputs(self) -> bool:
        """True if some technique changes the layer's inputs."""
        return any(t.promises().changes_inputs for t in self.techniques)

    @property
    def changes_basis(self) -> bool:
        """True if some technique changes the basis of the layer's inputs."""
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
    """Return a sequence as it is, and a technique as a sequence of one.

    Raises:
        InputError: the argument is neither.
    """
    if isinstance(given, Technique):
        return Sequence((given,))
    if isinstance(given, Sequence):
        return given
    raise InputError(f"{given!r}", "a Technique or a Sequence such as P >> Q", "claim")
