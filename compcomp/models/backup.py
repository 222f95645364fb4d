"""Keep the weights of layers on disk while a model is changed in place, so that a failure can be undone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors.torch import load_file, save_file

from compcomp.errors import InputError
from compcomp.models.layers import Layer


class Backup:
    """The weights that layers had, in a temporary directory. Use it as a context: at its end the files are gone.

    An exception inside the context restores the weights.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Layer, Path]] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="compcomp.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.restore()
        finally:
            self._folder.cleanup()

    def keep(self, layer: Layer) -> None:
        """Write a layer's weight to disk, before it is changed."""
        path = Path(self._folder.name) / f"{len(self._kept)}.safetensors"
        try:
            save_file({"weight": layer.weight.contiguous()}, path)
        except OSError as error:
            given = f"{self._folder.name!r} ({error.strerror or error})"
            allowed = "room for the model's weights in the temporary directory (TMPDIR)"
            raise InputError(given, allowed, "apply") from None
        self._kept.append((layer, path))

    def restore(self) -> None:
        """Put back every weight that was kept, and forget it."""
        while self._kept:
            layer, path = self._kept.pop()
            layer.set(load_file(path)["weight"])
