"""Compare measured layers with a scheme that they are expected to fit, such as ``2:4 W4g64``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from compcomp.errors import InputError
from compcomp.inspecting.measure import Measured
from compcomp.language.scheme import ALLOWED, Scheme
from compcomp.language.size import DENSE

LEFT_ALONE = ("embed*", "*embed_tokens", "*embed_in", "*embed_out", "*wte", "*wpe", "*lm_head", "shared")
"""Layers that nothing is expected of: embeddings and the output head, also under the names of GGUF."""
OF_GGUF = ("token_embd", "output", "position_embd")


@dataclass(frozen=True)
class Expected:
    """Hold a scheme, and the group size of its grid if it names one.

    Args:
        text: as it was given.
        scheme: the scheme.
        group: the weights that share a step; None: any number.
    """

    text: str
    scheme: Scheme
    group: int | None = None

    @classmethod
    def of(cls, text: str) -> Expected:
        """Read a text such as ``2:4 W4g64``; raise InputError for one that cannot be checked in files."""
        parts, group = [], None
        for part in text.split():
            match = re.fullmatch(r"(W\d{1,2})g(\d{1,6})(A\d{1,2})?", part)
            if match and (group is not None or int(match[2]) < 1):
                raise InputError(repr(part), "one group size, at least 1", "--expect")
            group = int(match[2]) if match else group
            parts.append(match[1] + (match[3] or "") if match else part)
        try:
            scheme = Scheme.of(" ".join(parts))
        except InputError as error:
            raise InputError(error.given, f"{ALLOWED}, and W4g64", "--expect") from None
        if scheme.inputs < DENSE:
            raise InputError(repr(text), "a scheme of weights: files hold no inputs", "--expect")
        return cls(text, scheme, group)

    def failures(self, layer: Measured) -> Iterator[str]:
        """Yield what the layer does not meet, each as a short text."""
        if layer.sparsity is None:
            yield f"{layer.format} is not read"
            return
        scheme = self.scheme
        if layer.not_finite:
            yield f"{layer.not_finite} weights are infinite or NaN"
        yield from self._of_grid(layer)
        if scheme.pattern is not None:
            n, m = scheme.pattern
            if layer.shape[1] % m:
                yield f"{layer.shape[1]} columns are no groups of {m}"
            elif layer.pattern == scheme.pattern and layer.broken:
                share = layer.broken / layer.groups
                yield f"{layer.broken} of {layer.groups} groups ({share:.1%}) are not {n}:{m}"
        if scheme.sparsity and layer.sparsity is not None:
            count = layer.shape[0] * layer.shape[1]
            if round(layer.sparsity * count) < int(count * scheme.sparsity):
                yield f"{layer.sparsity:.1%} of the weights are zero"
        if scheme.rank is not None and (layer.rank or 0) > scheme.rank:
            yield f"the rank is {'at least ' if layer.rank_is_least else ''}{layer.rank}"
        if scheme.branch_rank and layer.branch_rank > scheme.branch_rank:
            yield f"the low-rank branch has rank {layer.branch_rank}"

    def _of_grid(self, layer: Measured) -> Iterator[str]:
        bits, grid = self.scheme.weights, layer.grid
        if bits >= DENSE or layer.sparsity == 1:
            return
        if grid is None:
            yield f"on no grid of {bits} bits"
            return
        if grid.bits > bits:
            yield f"on a grid of {grid.bits} bits"
        if grid.off:
            where = ", ".join(f"row {row} column {column}" for row, column in grid.first[:3])
            yield f"{grid.off} of {grid.groups} groups off the grid" + (f" ({where})" if where else "")
        if self.group is not None and (grid.group == 0 or grid.group % self.group):
            yield f"groups of {grid.group}" if grid.group else "steps that consecutive weights do not share"


def left_alone(name: str, ignore: Iterable[str]) -> bool:
    """Return True if nothing is expected of the layer of this name.

    Args:
        name: the layer's name.
        ignore: names, last parts of names, or patterns with ``*``, in addition to embeddings and the output head.
    """
    if name in OF_GGUF:
        return True
    return any(fnmatch.fnmatchcase(name, pattern) or name.endswith(f".{pattern}") for pattern in (*LEFT_ALONE, *ignore))
