"""Read encodings strictly while claims are decided: equations have no truth value, and floats are no numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import z3

from compcomp.terms import NO_FLOATS

# z3 answers bool(x == y) by whether both sides look alike. An encoding with `if w == 0`, `in` or numpy.where would
# then be read as if no weight were 0, and claims be proved of something else. And it reads the float 0.1 as 1/10,
# which it is not. Elsewhere, and in other threads, z3 is unchanged.

_here = threading.local()
_bool_of_z3, _real_of_z3 = z3.AstRef.__bool__, z3.RealVal


def _truth(term: Any) -> bool:
    if getattr(_here, "strict", False) and not z3.is_true(term) and not z3.is_false(term):
        raise TypeError("a symbolic comparison has no truth value: write If, And, Or, Not, Max, Min of compcomp.terms")
    return bool(_bool_of_z3(term))


def _real(value: Any, ctx: Any = None) -> Any:
    if getattr(_here, "strict", False) and isinstance(value, float | np.floating):
        raise TypeError(NO_FLOATS)
    return _real_of_z3(value, ctx)


z3.AstRef.__bool__ = _truth
z3.RealVal = z3.z3.RealVal = _real  # z3 converts numbers in terms by the latter


@contextmanager
def strict() -> Iterator[None]:
    """Raise TypeError for z3 terms in a boolean context and for floats in formulas, in the current thread."""
    before = getattr(_here, "strict", False)
    _here.strict = True
    try:
        yield
    finally:
        _here.strict = before
