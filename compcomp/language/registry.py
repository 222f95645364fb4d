"""Register techniques by name, each with the module of its kernel and the file of its class."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from typing import Any, ClassVar, Self

from compcomp import hooks
from compcomp.errors import InputError
from compcomp.language.identity import ours

Source = tuple[str, int, int]
"""A file, the time of its last change (nanoseconds) and its size (bytes)."""


def source_now(file: str) -> Source:
    """Return a file's path, time of last change and size; raise OSError if it cannot be read."""
    found = os.stat(file)
    return file, found.st_mtime_ns, found.st_size


class Registered:
    """Make a class known by its name to text, stores and other processes."""

    kernels: ClassVar[dict[type, str]] = {}
    """The module of the kernel of each registered class. A class that is defined again comes after its former
    definition."""
    kernel_module: ClassVar[str | None] = None
    """The module with its ``kernel`` function. None: the module that defines the class."""
    read_from: ClassVar[Source | None] = None
    """The file of this class at the time when the class was made, or None if there is none."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.read_from = None
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if file is not None:
            with suppress(OSError):
                cls.read_from = source_now(file)

    @classmethod
    def register(cls, technique: type[Registered], kernel: str | None = None) -> None:
        """Make a technique usable in text, and run it with the ``kernel`` function of a module.

        A class that is defined again (a module reloaded, a cell run again) replaces its former definition.

        Args:
            technique: a subclass of ``Technique``.
            kernel: the module. None: its ``kernel_module``, else the module that defines the class.

        Raises:
            InputError: another technique has this name, by which text, stores and other processes know it.
        """
        taken = cls.known().get(technique.__name__)
        if taken is not None and not _same_class(taken, technique):
            where = f"{technique.__module__}.{technique.__qualname__}"
            given = f"{where}, named like the technique of {taken.__module__}"
            raise InputError(given, "a class whose name no other technique has", "Technique.register")
        cls.kernels.pop(technique, None)  # so that it is the last of its name
        cls.kernels[technique] = kernel or _kernel_module(technique)

    @classmethod
    def known(cls) -> dict[str, type[Self]]:
        """Return all techniques of this library and all registered classes by name, in their latest definitions."""
        hooks.offered("load catalogue")()
        return {technique.__name__: technique for technique in cls.kernels}

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """Return the class of this name, registered or installed with another package; InputError if there is none."""
        known = cls.known()
        if name in known:
            return known[name]
        found: type[Self] | None = hooks.offered("find installed")(name)
        if found is None:
            names = {*known, *hooks.offered("installed names")()}
            raise InputError(f"technique {name!r}", ", ".join(sorted(names)), "sequence")
        return found

    def kernel_function(self, name: str) -> Any:
        """Return a function of the module that holds the kernel of this class; raise InputError if there is none."""
        if type(self) not in self.kernels:
            raise InputError(type(self).__name__, "a technique registered with a kernel", f"Technique.{name}")
        module = self.kernels[type(self)]
        found = getattr(importlib.import_module(module), name, None)
        if found is None:
            raise InputError(f"{module} without one", f"a module with a function {name}(technique, layer)", f"{self}")
        return found


def _kernel_module(technique: type[Registered]) -> str:
    """Return the module that a class names for its kernel, or its own module.

    A user's class that extends a class of this library does not inherit its kernel.
    """
    home = next(kind for kind in technique.__mro__ if "kernel_module" in vars(kind))
    inherits = ours(technique.__module__) or not ours(home.__module__)
    named: str | None = vars(home)["kernel_module"] if inherits else None
    return named or technique.__module__


def _same_class(one: type[Registered], other: type[Registered]) -> bool:
    """Return True if two classes are the same, or two definitions of the same class."""
    if one is other or one.__qualname__ != other.__qualname__:
        return one is other
    files = [None if kind.read_from is None else kind.read_from[0] for kind in (one, other)]
    return one.__module__ == other.__module__ or (files[0] is not None and files[0] == files[1])
