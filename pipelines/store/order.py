"""The endless row order of training: a pure function of (seed, image index).

One epoch shows every row once. The order has three parts, each with random access, even at 10⁹ rows
in 10⁶ shards:

1. Row groups are permuted by (seed, epoch), and their rows concatenated.
2. That sequence is cut into ``lanes`` of equal length. The epoch's first ``run`` images come from
   the first lane, the next ``run`` from the second, and so on; after the last lane, the first one
   continues.
3. Within a lane, rows are shuffled in windows of ``window`` rows.

With ``lanes × run`` images in a global batch, a rank that takes the same slice of every batch
follows its own lanes and reads every row group once, and the order is the same for any number of
ranks. For that it must cache 1.5 × ``lanes of the rank × (window / group_rows + 2)`` row groups; a
third of them are no longer needed. Windows of different lanes start at different steps, which
spreads the reads over time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_FEISTEL_ROUNDS = 8  # even, so that halves of unequal width end up where they started
_REMEMBERED = 4  # cached epochs, and cached sets of windows
_LISTED = 1 << 16  # row groups; permuting this many takes some 10 ms per epoch


class Order:
    """Maps image indices of the training stream to (shard, row in the shard)."""

    def __init__(
        self,
        usable: Ints,
        *,
        group_rows: int,
        seed: int,
        lanes: int = 1,
        run: int = 1,
        window: int = 256,
    ) -> None:
        """
        Args:
            usable: How many rows of each shard to show, counted from its first row. [shards]
            group_rows: Rows of a Parquet row group; the last usable one of a shard may have fewer.
            seed: Seed of the order.
            lanes: ``lanes × run`` should be the global batch, for the fewest reads. Use at least as
                many lanes as ranks, and far fewer than row groups.
            run: Consecutive images from one lane.
            window: Rows of a lane that are shuffled together.

        Raises:
            ValueError: There are no rows, or a parameter is below 1.
        """
        self.usable = np.asarray(usable, np.int64)
        self.rows = int(self.usable.sum())
        if self.rows < 1 or min(group_rows, lanes, run, window) < 1:
            raise ValueError(
                f"an order needs rows, and group_rows, lanes, run and window of at least 1; got "
                f"{self.rows} rows, {group_rows}, {lanes}, {run} and {window}"
            )
        self.group_rows, self.seed, self.lanes = group_rows, seed, lanes
        self.run, self.window = run, window
        whole = self.usable // group_rows
        self._first_whole = np.concatenate([[0], np.cumsum(whole)])  # per shard, then the total
        self._partial = np.flatnonzero(
            self.usable % group_rows
        )  # shards that end in a partial group
        # Rows left after the last full turn through all lanes go to the first lanes.
        turns, left = divmod(self.rows, lanes * run)
        lane = np.arange(lanes, dtype=np.int64)
        self._lane_rows = turns * run + np.clip(left - lane * run, 0, run)
        self._lane_start = np.cumsum(self._lane_rows) - self._lane_rows
        golden = (lane.astype(np.uint64) * np.uint64(_GOLDEN)) >> np.uint64(32)
        self._phase = ((golden * np.uint64(window)) >> np.uint64(32)).astype(np.int64)
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[tuple[int, int], tuple[Words, np.ndarray[Any, Any]]] = {}
        self._lock = threading.Lock()

    def __call__(self, index: Any) -> tuple[Ints, Ints]:
        """Locate images of the stream.

        Args:
            index: Image indices, from 0 and without end. [N]

        Returns:
            Shard numbers [N], and row numbers in these shards [N].
        """
        index = np.asarray(index, np.int64)
        epoch, position = np.divmod(index, self.rows)
        shard, row = np.empty_like(index), np.empty_like(index)
        with self._lock:
            for e in np.unique(epoch).tolist():
                mine = epoch == e
                shard[mine], row[mine] = self._locate(
                    self._epoch(e), self._shuffled(e, position[mine])
                )
        return shard, row

    # -- 1: row groups -------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            key = _key(self.seed, epoch, 0)
            number = np.arange(len(self._partial), dtype=np.uint64)
            partial = self._partial[np.argsort(_mixed(number, key), kind="stable")]
            # Partial groups are inserted anywhere between whole ones. The two kinds are permuted
            # separately, so that the order of many whole groups can be computed, not listed.
            wholes = int(self._first_whole[-1])
            before = np.sort(_mixed(number, _mix(key + 1)) % np.uint64(wholes + 1)).astype(np.int64)
            sizes = self.usable[partial] % self.group_rows
            starts = np.cumsum(sizes) - sizes + before * self.group_rows
            few = wholes <= _LISTED
            listed = permuted(np.arange(wholes), wholes, key) if few else None
            found = _Epoch(key, partial, sizes, starts, before, listed)
            self._epochs = dict([*self._epochs.items(), (epoch, found)][-_REMEMBERED:])
        return self._epochs[epoch]

    def _locate(self, epoch: _Epoch, position: Ints) -> tuple[Ints, Ints]:
        """Positions in the epoch's sequence of row groups → shards and rows."""
        last = np.searchsorted(epoch.starts, position, "right") - 1  # partial group at or before it
        none = last < 0
        last = np.maximum(last, 0)
        if len(epoch.starts):
            past = np.where(none, position, position - epoch.starts[last] - epoch.sizes[last])
            whole = np.where(none, 0, epoch.before[last]) + past // self.group_rows
        else:
            past, whole = position, position // self.group_rows
        in_partial = past < 0
        shard, row = np.empty_like(position), np.empty_like(position)
        if in_partial.any():
            at = last[in_partial]
            shard[in_partial] = epoch.partial[at]
            row[in_partial] = self.usable[epoch.partial[at]] + past[in_partial]
        if not in_partial.all():
            group = self._group(epoch, whole[~in_partial])
            found = np.searchsorted(self._first_whole, group, "right") - 1
            shard[~in_partial] = found
            row[~in_partial] = (group - self._first_whole[found]) * self.group_rows + (
                past[~in_partial] % self.group_rows
            )
        return shard, row

    def _group(self, epoch: _Epoch, whole: Ints) -> Ints:
        """Which whole row groups are at these positions among the whole ones."""
        if epoch.listed is not None:
            return epoch.listed[whole]
        return permuted(whole, int(self._first_whole[-1]), epoch.key)

    # -- 2 and 3: lanes and windows ------------------------------------------------------------

    def _shuffled(self, epoch: int, position: Ints) -> Ints:
        """Positions in the stream of one epoch → positions in its sequence of row groups."""
        turn, within = np.divmod(position, self.lanes * self.run)
        lane, ahead = np.divmod(within, self.run)
        step = turn * self.run + ahead
        number = (step + self._phase[lane]) // self.window
        out = np.empty_like(position)
        for w in np.unique(number).tolist():
            mine = number == w
            start = np.maximum(w * self.window - self._phase[lane[mine]], 0)
            order = self._window(epoch, w, lane[mine])
            out[mine] = start + order[lane[mine], step[mine] - start]
        return self._lane_start[lane] + out

    def _window(self, epoch: int, number: int, lanes: Ints) -> np.ndarray[Any, Any]:
        """Row order in the window of this number, filled for ``lanes``. [lanes, window]"""
        known = self._windows.get((epoch, number))
        if known is None:
            shape = (self.lanes, self.window)
            known = np.zeros(self.lanes, bool), np.empty(shape, np.int32)
            self._windows = dict([*self._windows.items(), ((epoch, number), known)][-_REMEMBERED:])
        filled, order = known
        lanes = np.unique(lanes[~filled[lanes]])
        if len(lanes):
            begin = number * self.window - self._phase[lanes]
            rows = np.minimum(begin + self.window, self._lane_rows[lanes]) - np.maximum(begin, 0)
            column = np.arange(self.window)
            counter = (lanes[:, None] * self.window + column).astype(np.uint64)
            draws = _mixed(counter, _key(self.seed, epoch, number + 1))
            draws[column >= rows[:, None]] = _MASK  # positions past the window's end sort last
            order[lanes] = np.argsort(draws, axis=1, kind="stable")
            filled[lanes] = True
        return order


@dataclass(frozen=True)
class _Epoch:
    key: int
    partial: Ints  # shards that end in a partial group, in this epoch's order
    sizes: Ints  # rows of each partial group
    starts: Ints  # its position in the sequence
    before: Ints  # whole groups before it
    listed: Ints | None  # the permutation of whole groups, where they are few


def permuted(x: Ints, n: int, key: int) -> Ints:
    """Evaluate a keyed permutation of 0 … n-1 at ``x``: a Feistel network with cycle walking."""
    bits = max(6, (n - 1).bit_length())  # fewer would shuffle small n poorly
    keys = [_mix(key + i * _GOLDEN) for i in range(2, 2 + _FEISTEL_ROUNDS)]
    out, walking = x.astype(np.uint64), np.ones(len(x), bool)
    while walking.any():
        right_bits = bits // 2
        left_bits = bits - right_bits
        now = out[walking]
        left, right = now >> np.uint64(right_bits), now & np.uint64((1 << right_bits) - 1)
        for k in keys:
            left, right = right, left ^ (_mixed(right, k) & np.uint64((1 << left_bits) - 1))
            left_bits, right_bits = right_bits, left_bits
        out[walking] = (left << np.uint64(right_bits)) | right
        walking[walking] = out[walking] >= n
    return out.astype(np.int64)


def _mix(x: int) -> int:
    """SplitMix64's finaliser."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mixed(counter: Words, key: int) -> Words:
    """A pseudorandom 64-bit word for each counter and the key."""
    x = counter * np.uint64(_GOLDEN) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, epoch: int, use: int) -> int:
    return _mix(_mix(_mix(seed) + epoch * _GOLDEN) + use * _GOLDEN)
