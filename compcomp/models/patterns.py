"""Match patterns that select layers: names, parts of names, classes, shell wildcards and regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn

from compcomp.errors import InputError
from compcomp.models.wrappers import named_parts, unwrap

Patterns = str | Iterable[str] | None

REGEX = "re:"
"""The prefix of a regular expression, as in compressed-tensors."""

ALLOWED = "a pattern or a list of patterns such as 'q_proj'"


def patterns_of(given: Patterns, where: str) -> tuple[str, ...]:
    """Return the patterns as a tuple of texts. None means none. Raises InputError for anything else."""
    if given is None:
        return ()
    if isinstance(given, str):
        given = (given,)
    if isinstance(given, bytes | Mapping | type) or not isinstance(given, Iterable):
        raise InputError(repr(given)[:60], ALLOWED, where)
    patterns = tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(repr(pattern)[:60], ALLOWED, where)
        if pattern.startswith(REGEX):
            try:
                re.compile(pattern.removeprefix(REGEX))
            except re.error as error:
                raise InputError(f"{pattern[:60]!r} ({error})", "a regular expression after 're:'", where) from None
    return patterns


class Names:
    """Every module of a model by name, and the texts of each that a pattern may match."""

    def __init__(self, model: nn.Module) -> None:
        every = dict(unwrap(model).named_modules(remove_duplicate=False)) | dict(named_parts(model))
        modules = list(every.items())
        self._classes = {name: _classes(module) for name, module in modules}
        self._holders = {name for name, module in modules if any(True for _ in module.children())}

    def matches(self, pattern: str, name: str) -> bool:
        """Return True if a pattern selects the module of this qualified name.

        A pattern may match the name, any run of its parts ("self_attn", "layers.0"), or the class of the module or of
        one around it: a pattern that selects a module selects all modules inside. A regular expression is matched with
        the beginning of the qualified name, and with nothing else.
        """
        if pattern.startswith(REGEX):
            return re.match(pattern.removeprefix(REGEX), name) is not None
        return any(fnmatchcase(one, pattern) for one in self._names(name))

    def asks(self, pattern: str, name: str) -> bool:
        """Return True if a pattern selects the module of this name by its own name or class.

        It then selects no other module at the same place: "embed_tokens" does not, "model", "model.*" and "*" do.
        """
        home = name.rpartition(".")[0]
        others = [f"{home}.{own}" if home else own for own in ("other", "999")] if name else []
        return self.matches(pattern, name) and not any(self.matches(pattern, other) for other in others)

    def without_match(self, patterns: Iterable[str], more: Iterable[str] = ()) -> list[str]:
        """Return the patterns that select no module of the model, and none of more names of its parts."""
        every = dict.fromkeys([*self._classes, *more])
        return [p for p in patterns if not any(self.matches(p, name) for name in every)]

    def _names(self, name: str) -> Iterator[str]:
        parts = name.split(".") if name else []
        for start in range(len(parts)):
            for stop in range(start + 1, len(parts) + 1):
                whole = start == 0 or (stop == len(parts) and name not in self._holders)
                if stop - start > 1 or whole or not parts[start].isdigit():  # "0" alone does not say which list
                    yield ".".join(parts[start:stop])
        for stop in range(len(parts) + 1):
            yield from self._classes.get(".".join(parts[:stop]), ())


def _classes(module: nn.Module) -> list[str]:
    """Return the names of the module's classes below nn.Module."""
    names = [c.__name__ for c in type(module).__mro__]
    return names[: names.index("Module")]
