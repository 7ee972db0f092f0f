"""Rows of a batch grouped by their number of tokens, so that attention skips most padding.

A batch is padded to its longest caption, and absent embeddings are masked. In batches of the demo
more than half of the tokens are such padding, to which every layer of cross-attention would compute
keys, values and scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPS = 4
"""Groups at most: each costs a call of every layer's kernels."""

FEWEST_ROWS = 4
"""Rows of a group at least, for batches that have them."""

LANES = 16
"""Numbers of tokens are multiples of it: sums over whole vectors, in which masked tokens at the end
add zeros, and no vector is cut short. :mod:`ediffi_core.invariant` relies on it."""


_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


@contextmanager
def all_rows_at_once() -> Iterator[None]:
    """Attend to all tokens, padding included, as GPUs do: to count a network's operations, which
    should not depend on the captions."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


class TokenGroup(NamedTuple):
    """Some rows of a batch with their tokens, padded to the longest of these rows only."""

    rows: Tensor  # [n] int64
    values: Tensor  # [n, T, token_dim], first the tokens to attend to
    mask: Tensor  # [n, T] bool, True where to attend


class TokenGroups(NamedTuple):
    """All rows of a batch."""

    groups: list[TokenGroup]
    inverse: Tensor
    """Of each row, its place in the groups one after another. [N] int64"""


def by_length(values: Tensor, mask: Tensor) -> TokenGroups | None:
    """Group the rows by their number of tokens, or None where it would not help.

    It does not on GPUs, where reading the numbers back would wait for the device, and where a
    compiler wants fixed shapes.

    Args:
        values: tokens [N, T, token_dim].
        mask: [N, T] bool, True where to attend.
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling() or _WHOLE.get():
        return None
    rows, length = mask.shape
    counts = mask.sum(dim=1)
    order = counts.argsort(stable=True)
    sizes: list[tuple[Tensor, int]] = []
    for some in order.chunk(max(1, min(GROUPS, rows // FEWEST_ROWS))):
        longest = -(-int(counts[some[-1]]) // LANES) * LANES
        if sizes and sizes[-1][1] == longest:
            some = torch.cat([sizes.pop()[0], some])
        sizes.append((some, longest))
    if sum(len(some) * longest for some, longest in sizes) >= rows * length:
        return None
    first = mask.int().argsort(dim=1, descending=True, stable=True)
    groups = [_group(some, longest, values, first, counts) for some, longest in sizes]
    return TokenGroups(groups, order.argsort())


def _group(rows: Tensor, longest: int, values: Tensor, first: Tensor, counts: Tensor) -> TokenGroup:
    """The rows' tokens, first those to attend to, padded to the given number."""
    order = first[rows, :longest, None].expand(-1, -1, values.shape[2])
    found = values[rows].gather(1, order)
    mask = torch.arange(longest) < counts[rows, None]
    return TokenGroup(rows, F.pad(found, (0, 0, 0, longest - found.shape[1])), mask)
