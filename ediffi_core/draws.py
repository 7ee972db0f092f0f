"""Stateless random numbers: every draw is a function of (seed, purpose, index of the image).

A resumed run has no generator state to restore, and any number of workers draws the same values.
The generator is SplitMix64's finaliser over a counter, in integer torch operations, so the bits are
the same on every device.

In all functions ``purpose`` names an independent stream, and ``index`` is an int64 tensor [N].
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def _signed(x: int) -> int:
    """A 64-bit pattern as the int64 that torch stores it in."""
    x &= 0xFFFFFFFFFFFFFFFF
    return x - (1 << 64) if x >= 1 << 63 else x


def _shift(x: Tensor, k: int) -> Tensor:
    """Logical right shift; int64's own is arithmetic."""
    return (x >> k) & ((1 << (64 - k)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def stream_key(seed: int, purpose: str) -> int:
    """The 64-bit key of a stream; streams of other seeds and purposes are independent."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return _signed(int.from_bytes(digest[:8], "little"))


def bits(seed: int, purpose: str, index: Tensor, count: int) -> Tensor:
    """``count`` random int64 per index. [N] → [N, count]"""
    start = _mix(index.long() * _signed(_GOLDEN) + stream_key(seed, purpose))
    counter = torch.arange(1, count + 1, device=index.device)
    return _mix(start[:, None] + counter * _signed(_GOLDEN))


def uniform(seed: int, purpose: str, index: Tensor, count: int) -> Tensor:
    """``count`` uniform float64 in [0, 1) per index, multiples of 2⁻⁵³. [N] → [N, count]"""
    return _shift(bits(seed, purpose, index, count), 11).double() * 2.0**-53


def stratified(seed: int, purpose: str, index: Tensor) -> Tensor:
    """Float64 in [0, 1), evenly spread over any consecutive indices. [N] → [N]

    A golden-ratio sequence in 64-bit integers, shifted by the stream's key; exact at any index.
    """
    x = index.long() * _signed(_GOLDEN) + stream_key(seed, purpose)
    return _shift(x, 11).double() * 2.0**-53


def rotated(seed: int, purpose: str, index: Tensor, period: int) -> Tensor:
    """Float64 in [0, 1), evenly spread over each round of ``period`` indices. [N] → [N]

    Every round uses the golden-ratio sequence of :func:`stratified`, shifted by a hash of the
    round's number. An image that recurs every ``period`` indices therefore gets unrelated values.
    With one sequence for all rounds it would get nearly the same value whenever the period is near
    a Fibonacci number (144, 233).
    """
    index = index.long()
    within, round_ = index % period, index // period
    x = within * _signed(_GOLDEN) + bits(seed, f"{purpose}/round", round_, 1)[:, 0]
    return _shift(x, 11).double() * 2.0**-53


def normal(seed: int, purpose: str, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 noise per index, by Box–Muller. [N] → [N, *shape]"""
    size = math.prod(shape)
    half = (size + 1) // 2
    word = bits(seed, purpose, index, half)
    # Two 32-bit halves of one word. The radius uses a uniform in (0, 1], so its log is finite.
    radius = torch.sqrt(-2 * torch.log((_shift(word, 32) + 1).double() * 2.0**-32)).float()
    angle = ((word & 0xFFFFFFFF).double() * (2 * math.pi * 2.0**-32)).float()
    out = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return out[:, :size].reshape(-1, *shape)
