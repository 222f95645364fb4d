"""Load techniques of other packages on request, from entry points of the group ``compcomp.techniques``.

In the ``pyproject.toml`` of such a package::

    [project.entry-points."compcomp.techniques"]
    Binarize = "binarize:Binarize"

The name is that of the class, and the name in text.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from compcomp.errors import InputError
from compcomp.language.technique import Technique

GROUP = "compcomp.techniques"
LONGEST = 160
"""The number of characters of another package's error that are shown."""


def installed_names() -> list[str]:
    """Return the names of all techniques of other packages, without loading any."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_installed(name: str) -> type[Technique] | None:
    """Register and return the class of this name, or None if no package has one.

    Raises:
        InputError: the class cannot be loaded.
    """
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    return _load(points[0]) if points else None


def load_installed() -> list[str]:
    """Register the techniques of all other packages, and return one line for each that could not be loaded."""
    problems = []
    for name in installed_names():
        if any(kind.__name__ == name for kind in Technique.kernels):
            continue
        try:
            find_installed(name)
        except InputError as error:
            problems.append(str(error))
    return problems


def _load(point: EntryPoint) -> type[Technique]:
    where = f"entry point {point.name} of {point.dist.name if point.dist else 'a package'}"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # an error of a foreign module must not stop others
        raise InputError(_one_line(error), f"{point.value} to be importable", where) from error
    if not (isinstance(found, type) and issubclass(found, Technique)):
        raise InputError(point.value, "a subclass of Technique", where)
    if found.__name__ != point.name:
        raise InputError(f"class {found.__name__}", f"a class named {point.name}", where)
    if found not in Technique.kernels:
        Technique.register(found)
    return found


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
