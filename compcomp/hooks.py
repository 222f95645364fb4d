"""What a room uses of rooms above it, which it must not import: functions by name, offered by `compcomp/__init__.py`.

Each is loaded when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_offers: dict[str, Callable[[], Any]] = {}


def offer(name: str, load: Callable[[], Any]) -> None:
    """Make what ``load`` returns known under this name. The last offer of a name counts."""
    _offers[name] = load


def offered(name: str) -> Any:
    """What is offered under this name; LookupError where nothing is."""
    if name not in _offers:
        raise LookupError(f"nobody offers {name}")
    return _offers[name]()
