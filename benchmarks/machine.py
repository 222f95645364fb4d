"""Describe the machine, the versions and the day of a run, for the head of each results table."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """Return what a result was measured with: cores, machine, Python, the versions of ``packages``, and the date."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }


def heading(about: dict[str, Any]) -> str:
    """Return the same as one line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['cores']} cores {about['machine']}, Python {about['python']}, {versions}, {about['date']}"
