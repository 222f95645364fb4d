"""Offer functions by name to packages that must not import the packages that define them.

``compcomp/__init__.py`` makes the offers. Each function is loaded when it is first requested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_offers: dict[str, Callable[[], Any]] = {}


def offer(name: str, load: Callable[[], Any]) -> None:
    """Offer the object that ``load`` returns under this name. A later offer of the same name replaces it."""
    _offers[name] = load


def offered(name: str) -> Any:
    """Return the object that is offered under this name; raise LookupError if there is none."""
    if name not in _offers:
        raise LookupError(f"nobody offers {name}")
    return _offers[name]()
