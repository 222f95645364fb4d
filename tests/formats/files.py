"""Small checkpoints that are written by hand, from the published layouts, without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

NAME = "model.layers.0.mlp.up_proj"


def write(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Path:
    """Write model.safetensors and config.json to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        k: torch.from_numpy(np.array(v, order="C")) if isinstance(v, np.ndarray) else v for k, v in tensors.items()
    }
    save_file({k: v.contiguous() for k, v in given.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack the integers of each row into int32s, the first in the lowest bits, as one row of bits."""
    rows, count = codes.shape
    packs = np.zeros((rows, -(-count * bits // 32)), np.int64)
    for row in range(rows):
        number = sum(int(code) << (bits * place) for place, code in enumerate(codes[row]))
        for pack in range(packs.shape[1]):
            packs[row, pack] = (number >> (32 * pack)) & 0xFFFFFFFF
    return packs.astype(np.uint32).view(np.int32)


def compressed_tensors(
    codes: np.ndarray, scales: np.ndarray, bits: int, zeros: np.ndarray | None = None
) -> dict[str, Any]:
    """Return pack-quantized tensors of signed codes (out x in); zero points are packed along the rows."""
    half = 1 << (bits - 1)
    found = {
        f"{NAME}.weight_packed": packed(codes + half, bits),
        f"{NAME}.weight_scale": scales,
        f"{NAME}.weight_shape": np.array(codes.shape, np.int64),
    }
    if zeros is not None:
        found[f"{NAME}.weight_zero_point"] = packed((zeros + half).T, bits).T
    return found


def gptq(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, order: np.ndarray, bits: int) -> dict[str, Any]:
    """Return the GPTQ layout of unsigned codes (in x out), with scales and zeros (groups x out)."""
    return {
        f"{NAME}.qweight": packed(codes.T, bits).T,
        f"{NAME}.qzeros": packed(zeros - 1, bits),
        f"{NAME}.scales": scales.astype(np.float16),
        f"{NAME}.g_idx": order.astype(np.int32),
    }


def awq(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> dict[str, Any]:
    """Return the AWQ layout of unsigned codes (in x out): the j-th int32 holds outputs 8 j + 0, 2, 4, 6, 1, 3, 5, 7."""

    def pack(matrix: np.ndarray) -> np.ndarray:
        turned = matrix.reshape(len(matrix), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return packed(turned.reshape(len(matrix), -1), 4)

    return {f"{NAME}.qweight": pack(codes), f"{NAME}.qzeros": pack(zeros), f"{NAME}.scales": scales.astype(np.float16)}


def gguf(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]], cut: int = 0) -> Path:
    """Write a GGUF file of version 3. Of each tensor: its shape, the number of its type, its bytes."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 3)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("general.alignment") + struct.pack("<II", 4, 32)
    head += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    body = b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", side) for side in reversed(shape)) + struct.pack("<IQ", kind, len(body))
        body += raw + b"\0" * (-len(raw) % 32)
    head += b"\0" * (-len(head) % 32)
    whole = head + body
    path.write_bytes(whole[: len(whole) - cut])
    return path
