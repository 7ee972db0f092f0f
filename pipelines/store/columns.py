"""Pack tokens, vectors and pictures into bytes for a shard, and unpack them into batches."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rgb import FORMATS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

Allocator = Callable[[int], Bytes]
"""Number of bytes → uninitialized memory that the caller owns."""

ITEM_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
SCALE_BYTES = 4  # int8: each token is preceded by its float32 scale


def allocate(count: int) -> Bytes:
    """Newly allocated, uninitialized memory."""
    return np.empty(count, np.uint8)


# -- tokens and vectors ------------------------------------------------------------------------


def dtype_of(precision: str) -> torch.dtype:
    """The floating-point type of ``fp16``, ``bf16`` or ``fp32``."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def packed(values: Tensor, precision: str) -> bytes:
    """Pack values [..., dim] into little-endian bytes.

    ``int8`` stores each token as a float32 scale (its largest magnitude / 127) and rounded
    multiples of it.

    Raises:
        ValueError: A value is not finite, or too large for the precision.
    """
    import torch

    values = values.detach().cpu()
    if not is_representable(values, precision):
        raise ValueError(f"values that are not finite in {precision}")
    if precision == "int8":
        values = values.float()
        scale = values.abs().amax(dim=-1, keepdim=True) / 127
        steps = (values / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        return torch.cat([scale.view(torch.uint8), steps.view(torch.uint8)], -1).numpy().tobytes()
    values = values.to(dtype_of(precision)).contiguous()
    return values.view(torch.uint8).numpy().tobytes()


def is_representable(values: Tensor, precision: str) -> bool:
    """Whether the precision can store all values: finite, and in the range of its type."""
    dtype = dtype_of("fp16" if precision == "int8" else precision)  # int8 is read as fp16
    return bool(values.to(dtype).isfinite().all())


def token_bytes(dim: int, precision: str) -> int:
    """Bytes of one packed token of ``dim`` values."""
    return dim + SCALE_BYTES if precision == "int8" else dim * ITEM_BYTES[precision]


def unpacked(raw: Bytes, precision: str) -> Tensor:
    """Unpack uint8 [..., bytes per token] into values [..., dim] of the stored dtype.

    ``int8`` becomes float16.
    """
    import torch

    data = torch.from_numpy(raw)
    if precision != "int8":
        return data.view(dtype_of(precision))
    scale = data[..., :SCALE_BYTES].contiguous().view(torch.float32)
    return (data[..., SCALE_BYTES:].view(torch.int8) * scale).half()


def padded(
    rows: Sequence[Bytes], dim: int, precision: str, memory: Allocator = allocate
) -> tuple[Tensor, Tensor]:
    """Unpack rows of any length, padded with zeros → tokens [N, L, dim] and their mask [N, L]."""
    import torch

    width = token_bytes(dim, precision)
    lengths = [len(row) // width for row in rows]
    longest = max(lengths, default=0)
    raw = memory(len(rows) * longest * width).reshape(len(rows), longest * width)
    for target, row in zip(raw, rows, strict=True):
        target[: len(row)] = row
        target[len(row) :] = 0
    mask = torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    return unpacked(raw.reshape(len(rows), longest, width), precision), mask


# -- pictures ----------------------------------------------------------------------------------


def encoded(pixels: Bytes, encoding: str, jpeg_quality: int) -> bytes:
    """Encode a picture [H, W, 3] uint8 as raw, PNG or JPEG bytes."""
    if encoding == "raw":
        return pixels.tobytes()
    from PIL import Image

    sink = io.BytesIO()
    if encoding == "png":
        Image.fromarray(pixels).save(sink, "PNG", compress_level=6)
    else:
        Image.fromarray(pixels).save(sink, "JPEG", quality=jpeg_quality, subsampling=0)
    return sink.getvalue()


def decoded(data: Bytes, encoding: str, size: tuple[int, int]) -> Bytes:
    """Decode a picture → [H, W, 3] uint8. ``size``: (height, width), used for raw pictures only."""
    if encoding == "raw":
        return data.reshape(*size, 3)
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data.tobytes()), formats=FORMATS).convert("RGB"))


def square(pixels: Bytes, side: int, place: float) -> Bytes:
    """Crop a square from a picture whose shortest side is ``side``.

    Args:
        pixels: [H, W, 3] uint8.
        side: Side of the square, in pixels.
        place: Position of the crop along the longer side, in [0, 1); 0.5 is the centre.
    """
    height, width = pixels.shape[:2]
    top = int(place * (height - side + 1))
    left = int(place * (width - side + 1))
    return pixels[top : top + side, left : left + side]


def as_images(pixels: Bytes, memory: Allocator = allocate) -> Tensor:
    """[N, H, W, 3] uint8 → [N, 3, H, W] float32 in [-1, 1]."""
    import torch

    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    x = torch.from_numpy(memory(4 * pixels.size)).view(torch.float32).view(channels_first.shape)
    return x.copy_(channels_first).div_(127.5).sub_(1)
