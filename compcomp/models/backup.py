"""Keep the weights of layers on disk while a model is changed in place, so that a failure can be undone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compcomp.errors import InputError
from compcomp.models.layers import Layer


class Backup:
    """The weights that layers had, in a temporary directory. Use it as a context: at its end the files are gone.

    An exception inside the context restores the weights.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Layer, Path]] = []
        self._files = 0

    def __enter__(self) -> Self:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="compcomp.")
        except OSError as error:
            raise _no_room(tempfile.tempdir or "the temporary directory", error) from None
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
        self._kept.append((layer, self._written({"weight": layer.weight.contiguous()})))

    @contextmanager
    def unchanged(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Restore tensors that are written to meanwhile, from copies on disk. Torch counts the writes to a tensor."""
        copies = [(t, self._written({"tensor": t.detach().contiguous()}), _writes(t)) for t in tensors]
        try:
            yield
        finally:
            for tensor, path, writes in copies:
                if writes is None or _writes(tensor) != writes:
                    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                        tensor.detach().copy_(load_file(path)["tensor"])

    def restore(self) -> None:
        """Put back every weight that was kept, and forget it."""
        while self._kept:
            layer, path = self._kept.pop()
            layer.set(load_file(path)["weight"])

    def _written(self, tensors: dict[str, Tensor]) -> Path:
        """Write tensors to a new file."""
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.safetensors"
        try:
            save_file(tensors, path)
        except (OSError, SafetensorError) as error:
            raise _no_room(self._folder.name, error) from None
        return path


def _no_room(folder: str, error: OSError | SafetensorError) -> InputError:
    """Return the error for a temporary directory that cannot be written to."""
    given = f"{folder!r} ({getattr(error, 'strerror', None) or error})"
    return InputError(given, "room for the model's weights in the temporary directory (TMPDIR)", "apply")


def _writes(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to, None where torch does not count."""
    return None if tensor.is_inference() else tensor._version
