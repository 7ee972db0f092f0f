"""Random numbers without a state: every draw is a function of (seed, purpose, index of the image).

So a killed run resumes with nothing to restore, and any number of workers sees one stream. The
generator is SplitMix64's finaliser over a counter, written in integer torch operations: the bits
are the same on every device.
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
    """The 64-bit key of one stream of draws; other purposes and seeds are independent of it."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return _signed(int.from_bytes(digest[:8], "little"))


def bits(seed: int, purpose: str, index: Tensor, count: int) -> Tensor:
    """``count`` random int64 for every image index. [N] → [N, count]"""
    start = _mix(index.long() * _signed(_GOLDEN) + stream_key(seed, purpose))
    counter = torch.arange(1, count + 1, device=index.device)
    return _mix(start[:, None] + counter * _signed(_GOLDEN))


def uniform(seed: int, purpose: str, index: Tensor, count: int) -> Tensor:
    """Float64 in [0, 1) on a grid of 2⁻⁵³. [N] → [N, count]"""
    return _shift(bits(seed, purpose, index, count), 11).double() * 2.0**-53


def stratified(seed: int, purpose: str, index: Tensor) -> Tensor:
    """Float64 in [0, 1), evenly spread over any run of consecutive indices. [N] → [N]

    A golden-ratio sequence in 64-bit integers, shifted by the stream's key: exact at any index.
    """
    x = index.long() * _signed(_GOLDEN) + stream_key(seed, purpose)
    return _shift(x, 11).double() * 2.0**-53


def rotated(seed: int, purpose: str, index: Tensor, period: int) -> Tensor:
    """Float64 in [0, 1), evenly spread over each round of ``period`` indices. [N] → [N]

    The golden-ratio sequence of :func:`stratified` in every round, shifted anew by a hash of the
    round's number. So what comes again every ``period`` indices, a picture of a small data set,
    meets unrelated values; with one sequence for all rounds it meets nearly the same value again
    wherever the period is near a Fibonacci number (144, 233).
    """
    index = index.long()
    place, turn = index % period, index // period
    x = place * _signed(_GOLDEN) + bits(seed, f"{purpose}/round", turn, 1)[:, 0]
    return _shift(x, 11).double() * 2.0**-53


def normal(seed: int, purpose: str, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 noise for every image index. [N] → [N, *shape] (Box–Muller)"""
    size = math.prod(shape)
    half = (size + 1) // 2
    word = bits(seed, purpose, index, half)
    # Two 32-bit halves of one word: the radius' uniform lies in (0, 1], so its log is finite.
    radius = torch.sqrt(-2 * torch.log((_shift(word, 32) + 1).double() * 2.0**-32)).float()
    angle = ((word & 0xFFFFFFFF).double() * (2 * math.pi * 2.0**-32)).float()
    out = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return out[:, :size].reshape(-1, *shape)
