"""Decide if techniques, steps, scores and measures are the same. All such decisions use this module.

Users' classes may define an equality that leaves out a field (``compare=False``), an equality of another kind, or a
text that hides a field. So values that must be the same are never compared by ``==`` or by text. Two values are the
same if they have the same :func:`identity`, made of their class and everything that they hold. A value that may change
has no identity (:class:`Unidentified`): it is not merged with others, not reused, and not sent to other processes.
"""

from __future__ import annotations

import builtins
import dis
import sys
from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass, make_dataclass
from enum import Enum
from fractions import Fraction
from functools import cached_property, lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np

from compcomp.language.parameters import is_unknown


class Unidentified(LookupError):
    """Signal a value without identity, because it may change or cannot be inspected completely."""


def identity(value: Any) -> Hashable:
    """Return a key that is equal for two values if and only if they have the same class and hold the same values.

    Raises:
        Unidentified: the value holds something that may change (lists, dictionaries, iterators), has an equality of its
            own, or has code that changes more than its own variables.
    """
    try:
        return _of(value, ())
    except RecursionError:
        raise Unidentified("something without an end") from None


def same(one: Any, other: Any) -> bool:
    """Return True if two values are one object, or have the same identity."""
    if one is other:
        return True
    try:
        return identity(one) == identity(other)
    except Unidentified:
        return False


def all_but(step: Any, *names: str) -> tuple[Hashable, ...]:
    """Return the identity of a dataclass without the fields of these names.

    Fields that are added to the class later are included.

    Raises:
        Unidentified: a field has no identity.
    """
    return tuple((f.name, identity(getattr(step, f.name))) for f in fields(step) if f.name not in names)


def same_but(one: Any, other: Any, *names: str) -> bool:
    """Return True if two dataclasses have the same class and agree in all fields except those of these names."""
    try:
        return type(one) is type(other) and all_but(one, *names) == all_but(other, *names)
    except Unidentified:
        return False


def or_itself(value: Any) -> Hashable:
    """Return the identity of a value or, if it has none, a key that is equal only for the same object."""
    try:
        return identity(value)
    except Unidentified:
        return _One(value)


def ours(module: Any) -> bool:
    """Return True if a module of this name is part of this library, whose code does not change at run time."""
    return isinstance(module, str) and module.partition(".")[0] == "compcomp"


def is_ours(value: Any) -> bool:
    """Return True for a function of this library without a closure, and for an object of one of its classes."""
    if isinstance(value, FunctionType):  # by its globals, as its __module__ may name another module
        return ours(value.__globals__.get("__name__")) and value.__closure__ is None
    return value is not None and all(map(_our_class, type(value).__mro__[:-1]))


@lru_cache(maxsize=4096)
def _our_class(kind: type) -> bool:
    """Return True if a class is in this library, at the place that its module and name say."""
    return ours(kind.__module__) and vars(sys.modules.get(kind.__module__, object)).get(kind.__qualname__) is kind


class _One:
    """Make an object a key that is compared with ``is``, not by the equality that its class defines."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _One) and self.value is other.value


# ------------------------------------------------------------------------------------------------ values

_PLAIN = frozenset(map(id, (type(None), bool, int, str, bytes, Fraction, complex, type(Ellipsis), range)))
_BY_OBJECT = (type, ModuleType, np.ufunc, np.dtype)


def _of(value: Any, above: tuple[Any, ...]) -> Hashable:
    kind: Any = type(value)
    if id(kind) in _PLAIN:  # not by ==, which a metaclass may define
        return kind, value  # with its class, as 1, True and 1.0 are equal
    if kind is float:
        return kind, value.hex()
    if is_unknown(value):
        return ("Any",)
    if isinstance(value, np.generic):
        return kind, value.dtype.str, value.tobytes()
    if any(value is one for one in above):
        raise Unidentified("something that holds itself")
    within = (*above, value)
    if kind is tuple or kind is frozenset:
        return kind, kind(_of(item, within) for item in value)
    if isinstance(value, FunctionType):
        return _function(value, within)
    if isinstance(value, MethodType):
        return kind, _of(value.__self__, within), _of(value.__func__, within)
    if kind is partial:
        given = sorted(value.keywords.items())
        return kind, _of(value.func, within), *(_of(item, within) for item in (*value.args, *given))
    if isinstance(value, BuiltinFunctionType):
        if value.__self__ is None or isinstance(value.__self__, ModuleType):
            return kind, _One(value)
        raise Unidentified(f"a method of {type(value.__self__).__name__}")
    if isinstance(value, _BY_OBJECT):
        return ("object", _One(value))
    return _instance(value, within)


def _instance(value: Any, above: tuple[Any, ...]) -> Hashable:
    """Return the identity of an object: its class and all that it holds, in fields or not."""
    kind: Any = type(value)
    if isinstance(value, Enum):
        return _One(kind), value.name
    _check_class(kind, above)
    if isinstance(value, tuple):
        items: Hashable = value if _our_class(kind) else tuple(_of(item, above) for item in tuple.__iter__(value))
    else:
        items = None
    held = tuple((name, _of(item, above)) for name, item in sorted(_held(value)))
    return _One(kind), items, held


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """Return the attributes of an object, except the values of cached properties."""
    kind: Any = type(value)
    for name in _our_slots(kind) if is_ours(value) else _slots(kind):
        if hasattr(value, name):
            yield name, getattr(value, name)
    for name, item in getattr(value, "__dict__", {}).items():
        if not isinstance(getattr(kind, name, None), cached_property):
            yield name, item


def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of the slots of a class and of its bases."""
    every = (item for base in kind.__mro__ for item in vars(base).items())
    return tuple(name for name, slot in every if isinstance(slot, MemberDescriptorType))


@lru_cache(maxsize=4096)
def _our_slots(kind: type) -> tuple[str, ...]:
    """Return the same for a class of this library, which does not change."""
    return _slots(kind)


# ------------------------------------------------------------------------------------------------ code

_FIRST = frozenset({"__init__", "__post_init__", "__new__", "__setstate__", "__init_subclass__", "__set_name__"})
"""Methods that make an object, which may set its attributes."""
_REACHES = frozenset(
    {"setattr", "delattr", "__setattr__", "__delattr__", "__dict__", "vars", "globals", "exec", "eval"}
)
_CHANGES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"})
_RANDOM = frozenset({"random", "secrets", "time", "uuid"})
_OF_PYTHON = 1 << 9
"""The flag of classes that are not part of a compiled module (Py_TPFLAGS_HEAPTYPE)."""
_CONTAINERS = (list, dict, set, bytearray, np.ndarray)


def _function(value: FunctionType, above: tuple[Any, ...]) -> Hashable:
    """Return the identity of a function: its code, its globals and all that it holds.

    So a function that is written twice is two functions.

    Raises:
        Unidentified: its code changes more than its own variables, or a variable of its closure is not set.
    """
    if is_ours(value):
        return FunctionType, _One(value)
    _check_code(value, above)
    try:
        held = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:
        raise Unidentified(f"{value.__qualname__}, of which a variable is not set yet") from None
    given = (*(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items()), *sorted(vars(value).items()))
    parts = (_content(item, above) for item in (*held, *given))
    return FunctionType, value.__code__, _One(value.__globals__), *parts


def _content(value: Any, above: tuple[Any, ...]) -> Hashable:
    """Return the identity of a value that a function holds. A function that calls itself holds itself."""
    return ("itself",) if any(value is one for one in above) else _of(value, above)


def _check_code(value: FunctionType, above: tuple[Any, ...]) -> None:
    """Raise Unidentified if a function changes or reads something that may differ at its next call."""
    why, names = _effects(value.__code__)
    if why is not None:
        raise Unidentified(f"{value.__qualname__}, which {why}")
    for name in names:
        found = value.__globals__.get(name, getattr(builtins, name, None))
        if isinstance(found, ModuleType):
            if found.__name__ in _RANDOM:
                raise Unidentified(f"{value.__qualname__}, which uses {found.__name__}")
        elif not (isinstance(found, type) or (callable(found) and is_ours(found))) and not any(
            found is one for one in above
        ):
            _of(found, (*above, value))


@lru_cache(maxsize=4096)
def _effects(code: CodeType) -> tuple[str | None, tuple[str, ...]]:
    """Return what code changes besides its own variables (None if nothing), and the global names that it reads."""
    names: dict[str, None] = {}
    for part in _nested(code):
        if reached := _REACHES.intersection(part.co_names):
            return f"uses {min(reached)}", ()
        for step in dis.get_instructions(part):
            outer = step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars
            if outer or step.opname in _CHANGES:
                return f"changes {step.argval}", ()
            if step.opname == "LOAD_GLOBAL":
                names[step.argval] = None
    return None, tuple(names)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _check_class(kind: type, above: tuple[Any, ...]) -> None:
    """Raise Unidentified if a class compares, makes or changes its objects in ways of its own."""
    for base in kind.__mro__[:-1]:
        if _our_class(base) or base.__module__ in ("typing", "abc") or base is tuple:
            continue
        own = vars(base)
        if "__eq__" in own and not _fieldwise(base):
            raise Unidentified(f"{kind.__name__}, which has an equality of its own")
        new = own.get("__new__")
        made = new is None or isinstance(getattr(new, "__func__", new), FunctionType)
        if not made or "__getattribute__" in own or not base.__flags__ & _OF_PYTHON:
            raise Unidentified(f"{kind.__name__}, whose objects hold more than can be seen")
        for name, attribute in own.items():
            _check_attribute(kind, name, attribute, above)


def _check_attribute(kind: type, name: str, attribute: Any, above: tuple[Any, ...]) -> None:
    function = attribute
    if isinstance(attribute, property):
        function = attribute.fget
    elif isinstance(attribute, cached_property):
        function = attribute.func
    elif isinstance(attribute, staticmethod | classmethod):
        function = attribute.__func__
    if isinstance(function, FunctionType):
        known = name in _FIRST or _generated(function) or any(function is one for one in above)
        if not known:
            _check_code(function, (*above, function))
        return
    known = name.startswith("__") or name in _DECLARED
    if not known and (isinstance(attribute, _CONTAINERS) or hasattr(attribute, "__next__")):
        raise Unidentified(f"{kind.__name__}.{name}, which may change")


_DECLARED = frozenset({"examples", "kernels"})
"""Class attributes of techniques that are dictionaries."""


def _generated(function: FunctionType) -> bool:
    """Return True if ``dataclass`` generated the function."""
    return function.__code__.co_filename == "<string>" and function.__name__.startswith("__")


def _fieldwise(kind: type) -> bool:
    """Return True if the equality of a class is the one that ``dataclass`` generates for it."""
    function = vars(kind)["__eq__"]
    if not (isinstance(function, FunctionType) and is_dataclass(kind)):
        return False
    code, plain = function.__code__, _equality(tuple(f.name for f in fields(kind) if f.compare))
    return (code.co_code, code.co_names, code.co_consts) == (plain.co_code, plain.co_names, plain.co_consts)


@lru_cache(maxsize=512)
def _equality(names: tuple[str, ...]) -> CodeType:
    function: Any = vars(make_dataclass("_Plain", names))["__eq__"]
    found: CodeType = function.__code__
    return found
