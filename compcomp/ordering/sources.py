"""What techniques of one's own do, as far as files tell: of code that is no longer what was read nothing is kept."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from compcomp.language.technique import Source, Technique, source_now

_first: dict[str, Source] = {}
"""Files that no class has a record of, as they were when they were first looked at."""


def sources_of(techniques: Iterable[Technique]) -> str | None:
    """A digest of the classes of these techniques, and of the files of their classes and kernels that are not ours.

    None where a file cannot be read, or has changed since this process read it: nobody can say then which of the two
    a result is of. Files of what these import are not looked at.
    """
    digest = hashlib.sha256()
    kinds = {type(technique) for technique in techniques}
    try:
        for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
            digest.update(f"{kind.__module__}.{kind.__qualname__}\0".encode())
            for source in _files(kind):
                digest.update(_hash(source))
    except (OSError, LookupError, ValueError, ImportError):
        return None
    return digest.hexdigest()


def _files(kind: type[Technique]) -> Iterator[Source]:
    for base in kind.__mro__[:-1]:
        if not _ours(base.__module__):
            read = base.__dict__.get("read_from") if issubclass(base, Technique) else _noted(_file_of(base.__module__))
            yield _unchanged(read)
    kernel = Technique.kernels.get(kind, kind.__module__)
    if not _ours(kernel):
        yield _unchanged(_noted(_file_of(kernel)))


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "compcomp"


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
