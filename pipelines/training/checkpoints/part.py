"""One process's part of a checkpoint: a safetensors file laid out in memory.

Tensors are copied straight to their offsets in the file, and this memory is hashed and written.
"""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

METADATA = "ediffi"

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Piece:
    """The rows of one tensor that a part holds."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    """Shape of these rows, not of the whole tensor."""

    rows: tuple[int, int] | None = None
    """(first row, rows of the whole tensor); None if the piece is the whole tensor."""

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class Part:
    """The bytes of the file, and its tensors as views of them; reused by every save."""

    def __init__(self, pieces: Mapping[str, Piece], *, pinned: bool = False) -> None:
        """
        Args:
            pieces: tensor name → what this process writes of it.
            pinned: page-lock the memory, so that a GPU copies into it directly.
        """
        self.pieces = dict(pieces)
        # Widest dtype first, as safetensors does it, so that every tensor is aligned.
        order = sorted(self.pieces, key=lambda n: (-self.pieces[n].dtype.itemsize, n))
        entries: dict[str, Any] = {}
        end = 0
        for name in order:
            piece = self.pieces[name]
            start, end = end, end + piece.nbytes
            entries[name] = {
                "dtype": DTYPES[piece.dtype],
                "shape": list(piece.shape),
                "data_offsets": [start, end],
            }
        rows = {n: p.rows for n, p in sorted(self.pieces.items()) if p.rows}
        about = {"__metadata__": {METADATA: json.dumps({"rows": rows})}}
        text = json.dumps({**about, **entries}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 64 + 56)  # tensor data starts at a multiple of 64 bytes
        head = len(text).to_bytes(8, "little") + text
        self.data = bytearray(len(head) + end)
        self.data[: len(head)] = head
        self.views = {
            name: self._view(len(head) + entries[name]["data_offsets"][0], self.pieces[name])
            for name in order
        }
        if pinned:
            _pin(self)

    def _view(self, offset: int, piece: Piece) -> Tensor:
        count = piece.nbytes // piece.dtype.itemsize
        if not count:
            return torch.empty(piece.shape, dtype=piece.dtype)
        flat = torch.frombuffer(self.data, dtype=piece.dtype, count=count, offset=offset)
        return flat.view(piece.shape)

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy every tensor into the file's memory, and wait for copies from a GPU."""
        if not self.views:
            return
        sources = [tensors[name].detach() for name in self.views]
        torch._foreach_copy_(list(self.views.values()), sources, non_blocking=True)
        if any(t.is_cuda for t in sources):
            torch.cuda.current_stream().synchronize()


def _pin(part: Part) -> None:
    """Page-lock a part's memory for as long as the part lives.

    Torch's own pinned memory would round the size up to a power of two.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(part.data))
    cudart = torch.cuda.cudart()
    torch.cuda.check_error(cudart.cudaHostRegister(address, len(part.data), 0))
    weakref.finalize(part, cudart.cudaHostUnregister, address).atexit = False
