"""Make z3 terms in a context that no other thread uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import z3

# z3 allows one thread at a time in each of its contexts. Encodings and rules name no context, so z3 would make all
# terms in its main context, and all proofs would have to wait for each other. So "the main context" is, for each
# thread, the one that the thread is inside of. Terms of two contexts do not mix: z3 raises an error, which is no
# proof.

_here = threading.local()
_main = z3.main_ctx


def _context() -> z3.Context:
    return getattr(_here, "context", None) or _main()


z3.main_ctx = z3.z3.main_ctx = _context


def ready(context: z3.Context) -> z3.Context:
    """Let the garbage collector drop the context's terms in any thread, also while another thread is inside."""
    z3.Z3_enable_concurrent_dec_ref(context.ref())
    return context


@contextmanager
def inside(context: z3.Context) -> Iterator[None]:
    """Make terms in this context, in the current thread, wherever no context is named."""
    before = getattr(_here, "context", None)
    _here.context = context
    try:
        yield
    finally:
        _here.context = before


ready(_main())
