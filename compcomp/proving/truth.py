"""While encodings are read, a z3 equation has no truth value, as no other z3 comparison has."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import z3

# z3 answers bool(x == y) by whether both sides look alike. An encoding with `if w == 0`, `in` or numpy.where would then
# be read as if no weight were 0, and claims be proved of something else. Elsewhere z3 keeps its ways.

_here = threading.local()
_of_z3 = z3.AstRef.__bool__


def _truth(term: Any) -> bool:
    if getattr(_here, "strict", False) and z3.is_eq(term):
        raise TypeError("a symbolic equation has no truth value: write If, And, Or, Not of compcomp.terms")
    return bool(_of_z3(term))


z3.AstRef.__bool__ = _truth


@contextmanager
def strict() -> Iterator[None]:
    """In this thread."""
    before = getattr(_here, "strict", False)
    _here.strict = True
    try:
        yield
    finally:
        _here.strict = before
