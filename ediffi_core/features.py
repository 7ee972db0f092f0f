"""Feature vectors of many pictures as streams, and sums over all pairs of them.

A million feature vectors do not fit in memory, so every measure reads them block by block, as
often as it needs. Results do not depend on the sizes of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 2048
"""Feature vectors in a block; a tile of two blocks has 32 MiB in float64."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Two blocks of vectors [N, D] and [M, D] → the kernel of all pairs [N, M]."""


class Features:
    """Feature vectors of one set of pictures, in a fixed order."""

    def __init__(
        self,
        read: Callable[[], Iterator[Tensor]],
        *,
        count: int,
        name: str = "",
        sha256: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            read: starts to read from the first vector: yields tensors [n, D], of any n. It is
                called for every pass.
            count: number of vectors.
            name: name of the network that made them.
            sha256: sha256 of that network's weights.
            device: where measures compute.
        """
        self._read, self.count, self.name, self.sha256 = read, count, name, sha256
        self.device = torch.device(device)

    @staticmethod
    def of(values: Tensor, *, name: str = "", sha256: str = "") -> Features:
        """Features [N, D] that are in memory; measures compute on their device."""
        return Features(
            lambda: iter((values,)),
            count=len(values),
            name=name,
            sha256=sha256,
            device=values.device,
        )

    def __len__(self) -> int:
        return self.count

    @cached_property
    def dim(self) -> int:
        """Width of a vector."""
        first = next(self.blocks(1), None)
        if first is None:
            raise ValueError(f"there are no {self}: no pictures")
        return int(first.shape[1])

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """The vectors in blocks [size, D] of float64, all full but the last.

        Raises:
            ValueError: There are more or fewer vectors than ``count``, their width varies, or a
                value is not finite.
        """
        held: list[Tensor] = []
        waiting = seen = 0
        for part in self._read():
            if part.ndim != 2 or (held and part.shape[1] != held[0].shape[1]):
                raise ValueError(f"{self} should all have one width, got a block {[*part.shape]}")
            if not bool(part.isfinite().all()):
                bad = int((~part.isfinite().all(dim=1)).nonzero()[0])
                raise ValueError(f"{self}: those of picture {seen + bad} are not finite")
            seen += len(part)
            for piece in part.split(size):
                held.append(piece)
                waiting += len(piece)
                while waiting >= size:
                    joined = torch.cat(held)
                    held, waiting = [joined[size:]], waiting - size
                    yield joined[:size].to(self.device, torch.float64)
        if seen != self.count:
            raise ValueError(f"{self} should be of {self.count} pictures, got {seen}")
        if waiting:
            yield torch.cat(held).to(self.device, torch.float64)

    def rows(self, index: Tensor, size: int = BLOCK) -> Tensor:
        """The vectors at some indices, in their order; reads all once. [N] → [N, D] float64"""
        found: Tensor | None = None
        start = 0
        for block in self.blocks(size):
            here = (index >= start) & (index < start + len(block))
            if found is None:
                found = block.new_empty(len(index), block.shape[1])
            at = here.nonzero().flatten().to(block.device)
            found[at] = block[(index[here] - start).to(block.device)]
            start += len(block)
        if found is None or bool(((index < 0) | (index >= start)).any()):
            raise ValueError(f"{self}: an index is outside 0 … {start - 1}")
        return found

    def __str__(self) -> str:
        return f"features {self.name}".rstrip()


def as_features(values: Tensor | Features) -> Features:
    """Features, also of a tensor [N, D]."""
    return values if isinstance(values, Features) else Features.of(values)


def check_comparable(made: Features, real: Features) -> None:
    """Raise ValueError if two sets of features are not of one network."""
    if made.sha256 != real.sha256 or made.dim != real.dim:
        raise ValueError(
            f"generated and real pictures have {made} of width {made.dim} "
            f"({made.sha256[:12] or 'no sha256'}) and {real} of width {real.dim} "
            f"({real.sha256[:12] or 'no sha256'}); compute both with one network"
        )


def check_enough(measure: str, least: int, *sets: Features) -> None:
    """Raise ValueError if a set has fewer pictures than a measure needs."""
    fewest = min(len(one) for one in sets)
    if fewest < least:
        raise ValueError(
            f"{measure} needs at least {least:,} pictures of each kind, got {fewest:,}; raise "
            "`evaluate.captions`, or remove it from `evaluate.measures`"
        )


@dataclass(frozen=True)
class Share:
    """The tiles of all pairs that one of several tasks computes: every ``of``-th."""

    index: int = 0
    of: int = 1

    def has(self, tile: int) -> bool:
        """Whether a tile belongs to this share."""
        return tile % self.of == self.index


ALL = Share()


@dataclass(frozen=True)
class KernelSums:
    """Sums of a kernel over all pairs of two sets. Sums of disjoint shares add up."""

    rows: Tensor  # [N] float64: over the second set, for each vector of the first
    columns: Tensor  # [M] float64: over the first set, for each vector of the second

    def __add__(self, other: KernelSums) -> KernelSums:
        return KernelSums(self.rows + other.rows, self.columns + other.columns)


def kernel_sums(
    a: Features, b: Features, kernel: Kernel, *, block: int = BLOCK, share: Share = ALL
) -> KernelSums:
    """Sums of a kernel over all pairs, in memory of a few tiles of ``block`` × ``block``.

    For ``a is b`` only half of the tiles are computed: the kernel is symmetric.

    Args:
        share: which tiles to compute; add up the results of all shares.

    Returns:
        The sums, on the CPU.
    """
    rows, columns = torch.zeros(len(a), dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    if a is not b:
        columns = torch.zeros(len(b), dtype=torch.float64)
    tile = 0
    for i, x in enumerate(a.blocks(block)):
        across = slice(i * block, i * block + len(x))
        for j, y in enumerate(b.blocks(block)):
            if a is b and j < i:
                continue
            tile += 1
            if not share.has(tile):
                continue
            found = kernel(x, y)
            rows[across] += found.sum(dim=1).cpu()
            down = slice(j * block, j * block + len(y))
            if a is not b:
                columns[down] += found.sum(dim=0).cpu()
            elif j > i:
                rows[down] += found.sum(dim=0).cpu()
    return KernelSums(rows, rows if a is b else columns)


def kernel_diagonal(a: Features, b: Features, kernel: Kernel, *, block: int = 64) -> Tensor:
    """The kernel of each pair (a_i, b_i), up to the end of the shorter set. [N] float64"""
    pairs = zip(a.blocks(block), b.blocks(block), strict=False)
    return torch.cat([kernel(x[: len(y)], y[: len(x)]).diagonal().cpu() for x, y in pairs])


def polynomial(dim: int, scale: float = 1.0) -> Kernel:
    """KID's kernel ``(x·y/D + 1)³`` (arXiv:1801.01401) of vectors that are divided by ``scale``."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return ((a / scale) @ (b / scale).T / dim + 1) ** 3

    return kernel


def gaussian(sigma: float) -> Kernel:
    """``exp(−‖x − y‖² / 2σ²)``, the kernel of CMMD (arXiv:2401.09603) with σ = 10."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
        return torch.exp(squares.clamp(min=0) / (-2 * sigma**2))

    return kernel
