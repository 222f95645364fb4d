"""Name techniques by text and files, so that another process or run finds the same ones.

Text determines a technique if its class makes the same technique, field by field, from that text. Module, name and
files determine its class. Nothing else is written to a store or sent to another process.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

from compcomp.errors import InputError
from compcomp.language.identity import Unidentified, identity, ours
from compcomp.language.technique import Source, Technique, source_now


class OtherFiles(LookupError):
    """Signal that this process has other files of a technique than the process that sent the job."""


_sent: set[str] = set()
"""Digests of loaded files that this process has sent to others."""
_first: dict[str, Source] = {}
"""Files that no class has recorded, as they were when they were first read."""


# ------------------------------------------------------------------------------------------------ texts


def round_trips(technique: Technique) -> bool:
    """Return True if the class of a technique makes the same technique, in every field, from its text."""
    from compcomp.language.text import technique_of

    kind = type(technique)
    try:
        known = identity(technique)
        if not is_dataclass(kind):
            return known == identity(kind())
        call = ast.parse(str(technique), mode="eval").body
        return (
            isinstance(call, ast.Call)
            and ast.unparse(call.func) == kind.__name__
            and (identity(technique_of(call, kind)) == known)
        )
    except (Unidentified, InputError, SyntaxError, ValueError, TypeError, ArithmeticError, AttributeError):
        return False


def is_named(technique: Technique) -> bool:
    """Return True if the parser reads the text of a technique as that technique.

    Its text then determines it, and its name is registered for its class.
    """
    return Technique.known().get(type(technique).__name__) is type(technique) and round_trips(technique)


# -------------------------------------------------------------------------------------- other processes


def registrations(techniques: Iterable[Technique]) -> list[list[str]] | None:
    """Return module, name and kernel of each class of techniques, with a digest of users' files, as plain data.

    Returns None if another process would not find the same techniques by their texts.
    """
    found, kinds = list(techniques), list[type[Technique]]()
    for technique in found:
        if not any(kind is type(technique) for kind in kinds):
            kinds.append(type(technique))
    if not all(_findable(kind) for kind in kinds) or not all(map(round_trips, found)):
        return None
    sources = [None if ours(kind.__module__) and ours(_kernel_of(kind)) else sources_of_kinds([kind]) for kind in kinds]
    if any(source is None and not ours(kind.__module__) for kind, source in zip(kinds, sources, strict=True)):
        return None
    _sent.update(source for source in sources if source)
    pairs = zip(kinds, sources, strict=True)
    return sorted([k.__module__, k.__name__, _kernel_of(k), *([s] if s else [])] for k, s in pairs)


def find_registered(given: Iterable[Iterable[str]]) -> None:
    """Register techniques in this process, given the result of :func:`registrations` in another.

    Raises:
        OtherFiles: this process has other files of them.
    """
    for module, name, kernel, *source in given:
        technique = getattr(importlib.import_module(module), name)
        if technique not in Technique.kernels:
            Technique.register(technique, kernel)
        if source and source[0] not in _sent and sources_of_kinds([technique]) != source[0]:
            raise OtherFiles(f"{module}.{name} has other files here")


def _findable(kind: type[Technique]) -> bool:
    return kind in Technique.kernels and "." not in kind.__qualname__ and Technique.known().get(kind.__name__) is kind


def _kernel_of(kind: type[Technique]) -> str:
    return Technique.kernels.get(kind, kind.__module__)


# ------------------------------------------------------------------------------------------------ files


def sources_of(techniques: Iterable[Technique]) -> str | None:
    """Return a digest of the classes of techniques, and of the users' files of these classes and their kernels.

    Modules that these files import are included, except those of Python and of installed packages.

    Returns None if text does not determine a technique, or if a file cannot be read or has changed since this process
    read it. In the last case it is not known which version led to a result.
    """
    found = list({id(technique): technique for technique in techniques}.values())  # the sides of a claim share theirs
    return sources_of_kinds(map(type, found)) if all(map(round_trips, found)) else None


def sources_of_kinds(kinds: Iterable[type[Technique]]) -> str | None:
    """Return the digest of :func:`sources_of` for classes, or None if a file cannot be read or has changed."""
    digest = hashlib.sha256()
    different = {(kind.__module__, kind.__qualname__, id(kind)): kind for kind in kinds}
    try:
        for (module, name, _), kind in sorted(different.items(), key=lambda item: item[0][:2]):
            digest.update(f"{module}.{name}\0".encode())
            for source in _files(kind):
                digest.update(_hash(source))
    except (OSError, LookupError, ValueError, ImportError, SyntaxError):
        return None
    return digest.hexdigest()


def _files(kind: type[Technique]) -> Iterator[Source]:
    modules: dict[str, None] = {}
    for base in kind.__mro__[:-1]:
        if not ours(base.__module__):
            read = base.__dict__.get("read_from") if issubclass(base, Technique) else _noted(_file_of(base.__module__))
            yield _unchanged(read)
            modules[base.__module__] = None
    kernel = _kernel_of(kind)
    if not ours(kernel):
        yield _unchanged(_noted(_file_of(kernel)))
        modules[kernel] = None
    for module in sorted(_used(modules)):
        yield _unchanged(_noted(_file_of(module)))


def _used(modules: Iterable[str]) -> set[str]:
    """Return the user's modules that these modules import, directly or through others.

    Modules of Python and of installed packages are left out.
    """
    given = set(modules)
    todo, found = list(given), set[str]()
    while todo:
        module = todo.pop()
        for name in _imports(_noted(_file_of(module)), getattr(sys.modules.get(module), "__package__", "") or ""):
            if name not in found | given and _own(name):
                found.add(name)
                todo.append(name)
    return found


@cache
def _imports(source: Source, package: str) -> frozenset[str]:
    """Return all modules that a file imports, anywhere in it, and imported names that may be modules."""
    found = set[str]()
    for node in ast.walk(ast.parse(Path(source[0]).read_bytes())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            found.update((base, *(f"{base}.{alias.name}" for alias in node.names)))
    return frozenset(found)


def _own(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    return not ours(module) and bool(file) and not any(Path(str(file)).is_relative_to(path) for path in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _file_of(module: str) -> str:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    spec = None if loaded else find_spec(module)
    file = loaded or (spec.origin if spec else None)
    if not file:
        raise LookupError(module)
    return file


def _noted(file: str) -> Source:
    return _first.setdefault(file, source_now(file))


def _unchanged(read: Source | None) -> Source:
    if read is None or source_now(read[0]) != read:
        raise LookupError("no file, or another than was read")
    return read


@cache
def _hash(source: Source) -> bytes:
    return hashlib.sha256(Path(source[0]).read_bytes()).digest()
