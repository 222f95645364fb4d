"""Inspect a checkpoint: measure every layer, and say in one line what it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compcomp.errors import InputError
from compcomp.formats.checkpoint import opened
from compcomp.inspecting.expect import Expected, left_alone
from compcomp.inspecting.measure import Measured, measured
from compcomp.language.scheme import Scheme
from compcomp.record import Record


@dataclass(frozen=True, eq=False)
class Inspection(Record):
    """Hold what a checkpoint is.

    Args:
        path: the file or folder.
        format: the formats of its layers.
        layers: every matrix in it.
        other_bytes: bytes of what is no matrix, such as norms.
        problems: where claims and tensors differ, with the layer's name first.
        expected: the scheme that was asked for, as text.
        failures: of each layer that does not meet it, what is missing.
        checked: the layers that it was asked of.
    """

    path: str
    format: str
    layers: tuple[Measured, ...]
    other_bytes: int
    problems: tuple[str, ...] = ()
    expected: str | None = None
    failures: dict[str, list[str]] = field(default_factory=dict)
    checked: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True unless a scheme was asked for that some layer does not fit, or that no layer was asked for."""
        return self.expected is None or (not self.failures and bool(self.checked))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.other_bytes + sum(layer.nbytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for each weight of a matrix."""
        weights = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return 8 * sum(layer.nbytes for layer in self.layers) / max(1, weights)

    @property
    def verdict(self) -> str:
        """One line: whether what was expected holds, or what the checkpoint is."""
        if self.expected is not None:
            return self._of_expected()
        parts = [f"{len(self.layers)} matrices, {self.nbytes / 1e6:.1f} MB, {self.bits_per_weight:.2f} bits a weight"]
        inner = [layer for layer in self.layers if not left_alone(layer.name, ())]
        grids = Counter(_short(layer) for layer in inner if layer.grid is not None)
        parts += [f"{count} on {text}" for text, count in grids.most_common(3)]
        off = [layer for layer in inner if layer.grid is not None and layer.grid.off]
        if off:
            parts.append(f"weights off the grid in {len(off)} ({off[0].name} first)")
        patterned = [layer for layer in inner if layer.pattern is not None]
        for pattern in sorted({layer.pattern for layer in patterned if layer.pattern}):
            own = [layer for layer in patterned if layer.pattern == pattern]
            broken, groups = sum(layer.broken for layer in own), sum(layer.groups for layer in own)
            name = "{}:{}".format(*pattern)
            whole = f"{len(own)} are {name}"
            some = f"{len(own)} meant as {name}, of which {broken} of {groups} groups ({broken / groups:.1%}) are not"
            parts.append(some if broken else whole)
        if low := sum(layer.low_rank for layer in inner):
            parts.append(f"{low} of low rank")
        if branches := sum(layer.branch_rank > 0 for layer in inner):
            parts.append(f"{branches} low-rank branches")
        dense = [layer for layer in inner if layer.is_dense]
        parts.append("none left dense" if not dense else f"{len(dense)} left dense")
        if self.problems:
            parts.append(f"{len(self.problems)} claims that the tensors do not hold")
        return "; ".join(parts)

    def _of_expected(self) -> str:
        if not self.checked:
            return f"DOES NOT FIT: {self.expected}: no layer to ask it of"
        if not self.failures:
            return f"FITS: {self.expected} in all of {len(self.checked)} layers"
        name, missing = next(iter(self.failures.items()))
        rest = len(self.failures) - 1
        more = f", and {rest} more" if rest else ""
        return (
            f"DOES NOT FIT: {self.expected} fails in {len(self.failures)} of {len(self.checked)} layers: "
            f"{name} ({'; '.join(missing)}){more}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return all of it as data."""
        return {
            "path": self.path,
            "format": self.format,
            "verdict": self.verdict,
            "bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "other_bytes": self.other_bytes,
            "problems": list(self.problems),
            "expected": self.expected,
            "fits": self.fits if self.expected is not None else None,
            "failures": self.failures,
            "checked": list(self.checked),
            "layers": [layer.to_json() for layer in self.layers],
        }


def _short(layer: Measured) -> str:
    assert layer.grid is not None
    grid = layer.grid
    return f"a {grid.kind} grid of {grid.bits} bits" + (f" in groups of {grid.group}" if grid.group else "")


def inspect(
    path: str | os.PathLike[str],
    expect: str | None = None,
    *,
    ignore: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Measure the weights of a checkpoint, layer by layer, without loading it as a model (docs/inspecting.md).

    Safetensors (plain floats, compressed-tensors, GPTQ, AWQ, bitsandbytes), GGUF, folders of PEFT, and what
    ``plan.save`` writes are read. Rows are read in blocks, so memory does not grow with the model.
    Nothing in the folder is executed, and pickles are not opened.

    Args:
        path: a file or a folder.
        expect: a scheme that every layer has to fit, such as ``"2:4 W4g64"``: the parts of ``A fits ...``, and ``g64``
            for groups of 64 weights that share a step.
        ignore: layers that it is not asked of, in addition to embeddings and the output head: names, their last
            parts, or patterns with ``*``.
        progress: is called with the number of layers that are done, and of all.

    Raises:
        InputError: The path holds nothing that is read, or a file is damaged.
    """
    expected = None if expect is None else Expected.of(expect)
    given = [ignore] if isinstance(ignore, str) else list(ignore)
    contents = opened(Path(path))
    layers, problems, failures, checked = [], list(contents.problems), dict[str, list[str]](), []
    for number, layer in enumerate(contents.layers):
        asked = expected is not None and not left_alone(layer.name, given)
        scheme = expected.scheme if expected is not None and asked else Scheme()
        try:
            found = measured(layer, scheme.pattern, scheme.rank)
        except OSError as error:
            raise InputError(f"{str(path)!r} ({error.strerror})", "files that can be read", "inspect") from None
        except (ValueError, IndexError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            given = f"{layer.name!r}, whose tensors do not fit together ({str(error)[:80]})"
            raise InputError(given, "what its format defines", "inspect") from None
        layers.append(found)
        problems += [f"{found.name}: {problem}" for problem in found.problems]
        if found.not_finite:
            problems.append(f"{found.name}: {found.not_finite} weights are infinite or NaN")
        if expected is not None and asked:
            checked.append(found.name)
            if missing := list(expected.failures(found)):
                failures[found.name] = missing
        if progress is not None:
            progress(number + 1, len(contents.layers))
    return Inspection(
        str(path),
        contents.format,
        tuple(layers),
        contents.other_bytes,
        tuple(problems),
        expect,
        failures,
        tuple(checked),
    )
