"""Read batches of pictures and their conditioning, for training and evaluation.

Rows of a version are read by their position in the training order, or by number. Memory holds a
bounded number of row groups, so a data set may be of any size.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from pipelines.store import columns
from pipelines.store.artifacts import Store
from pipelines.store.columns import Bytes
from pipelines.store.dataset import Version
from pipelines.store.order import Order
from pipelines.store.shard_file import RowGroup, ShardFiles
from pipelines.store.shards import pixels_column

Batch = tuple[Tensor, Conditioning]
Ints = np.ndarray[Any, np.dtype[np.int64]]

CENTRE = 0.5
_KEPT = 8  # free blocks per size


class Reader:
    """A data set version as one stage reads it: only rows with a picture for that stage.

    Row numbers run from 0 to ``len(reader)`` in the order of the version's shards.
    """

    def __init__(
        self,
        store: Store,
        version: Version | str,
        resolution: int,
        *,
        order: Order | None = None,
        seed: int = 0,
        purpose: str = "train",
        cache_bytes: int = 2 * 2**30,
        requests: int = 4,
        checksums: bool = False,
        conditioning: bool = True,
    ) -> None:
        """
        Args:
            store: The store.
            version: The version, or its folder.
            resolution: Side of the stage's pictures, in pixels.
            order: The training order, for :meth:`batch` and :meth:`stream`.
            seed: With ``purpose`` and the image index, decides which square is cropped from a full
                picture.
            purpose: Separates random draws, for example of training and validation.
            cache_bytes: Size of the row group cache. Below what :class:`Order` needs, row groups
                are read more than once; see :attr:`reads`.
            requests: Row groups requested from a bucket at once.
            checksums: Verify the checksum of every page, for untrusted disks; four times slower.
            conditioning: False to read pictures alone, with empty conditioning.

        Raises:
            ValueError: There is no such version, or it has no row for this stage.
        """
        self.version = Version.open(store, version) if isinstance(version, str) else version
        self.header, self.resolution = self.version.header, resolution
        self.embeddings = self.header.embeddings if conditioning else ()
        unread = {e.name for e in self.header.embeddings} - {e.name for e in self.embeddings}
        self.columns = [c for c in self.header.columns(resolution) if c not in unread]
        self.order, self.seed, self.purpose = order, seed, purpose
        usable = self.version.usable(resolution)
        self._starts = np.concatenate([[0], np.cumsum(usable)])
        if not len(self):
            raise ValueError(
                f"no row of {store.full(self.version.folder)} has a picture of {resolution}; "
                "its source pictures are smaller: use larger ones, or a smaller resolution"
            )
        self.files = ShardFiles(self.version, checksums=checksums)
        self._cache = _Cache(cache_bytes)
        self._memory = BufferPool()
        self._io = ThreadPoolExecutor(requests, thread_name_prefix="row-group")

    def __len__(self) -> int:
        """Rows."""
        return int(self._starts[-1])

    @property
    def reads(self) -> int:
        """Row groups read so far; ideally, each is read once per epoch by one rank."""
        return self._cache.reads

    # -- what to read --------------------------------------------------------------------------

    def batch(self, index: Any) -> Batch:
        """The images with these indices in the training stream; see :meth:`read`."""
        if self.order is None:
            raise ValueError("this reader has no order; pass `order`, or read rows by number")
        return self.read(*self.order(index), self._place(index))

    def stream(self, indices: Iterable[Any], ahead: int = 4) -> Iterator[Batch]:
        """Yield :meth:`batch` for each element of ``indices``, preparing ``ahead`` batches in
        advance."""
        # Local files cost only the copy, which a second thread would not speed up. Requests to a
        # bucket cost waiting, so there each batch has its own thread.
        workers = 1 if self.version.store.is_local else max(1, ahead)
        with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
            waiting: deque[Future[Batch]] = deque()
            made = (pool.submit(self.batch, i) for i in indices)
            try:
                waiting.extend(itertools.islice(made, max(1, ahead)))
                while waiting:
                    waiting.extend(itertools.islice(made, 1))
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def rows(self, numbers: Sequence[int] | Any, index: Any = None) -> Batch:
        """Rows by number; see :meth:`read`.

        Args:
            numbers: Row numbers, from 0 to ``len(self)`` − 1. [N]
            index: Image indices, which determine the crop of full pictures; centre crops if None.
        """
        return self.read(*self._at(numbers), None if index is None else self._place(index))

    def captions(self, numbers: Sequence[int] | Any) -> list[str]:
        """Captions of rows, by number."""
        shards, rows = self._at(numbers)
        texts = {s: self.files.strings(s, "caption") for s in np.unique(shards).tolist()}
        return [texts[s][r] for s, r in zip(shards.tolist(), rows.tolist(), strict=True)]

    def read(self, shards: Ints, rows: Ints, place: Sequence[float] | None = None) -> Batch:
        """Read rows of shards.

        Args:
            shards: Shard numbers. [N]
            rows: Row numbers in these shards. [N]
            place: Crop position of each full picture, in [0, 1); centre crops if None.

        Returns:
            Pictures [N, 3, R, R] float32 in [-1, 1], and their conditioning; the caller owns both.
            Sequences and pooled vectors have the stored dtype (float16 for int8); sequences are
            padded with zeros to the longest.

        Raises:
            ValueError: A shard is missing or damaged.
            StorageError: The machine or the storage failed.
        """
        group, row = np.divmod(rows, self.header.packing.row_group_rows)
        keys = list(zip(shards.tolist(), group.tolist(), strict=True))
        wanted = {k: self._cache.get(k, self._submit) for k in dict.fromkeys(keys)}
        groups = {k: future.result() for k, future in wanted.items()}
        found = [(groups[k], r) for k, r in zip(keys, row.tolist(), strict=True)]
        return self._pictures(found, place), self._conditioning(found)

    # -- how -----------------------------------------------------------------------------------

    def _submit(self, key: tuple[int, int]) -> Future[RowGroup]:
        if not self.version.store.is_local:
            return self._io.submit(self.files.read, *key, self.columns)
        # Reading a mapped file takes less time than handing it to another thread.
        future: Future[RowGroup] = Future()
        try:
            future.set_result(self.files.read(*key, self.columns))
        except Exception as error:
            future.set_exception(error)
        return future

    def _at(self, numbers: Any) -> tuple[Ints, Ints]:
        numbers = np.asarray(numbers, np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise ValueError(
                f"rows must be 0 to {len(self) - 1:,}, got {numbers.min()} to {numbers.max()}"
            )
        shards = np.searchsorted(self._starts, numbers, "right") - 1
        return shards, numbers - self._starts[shards]

    def _place(self, index: Any) -> Sequence[float] | None:
        if self.resolution not in self.header.packing.full:
            return None
        at = torch.as_tensor(index, dtype=torch.int64)
        found: list[float] = draws.uniform(self.seed, f"{self.purpose}/square", at, 1)[
            :, 0
        ].tolist()
        return found

    def _pictures(self, found: list[tuple[RowGroup, int]], place: Sequence[float] | None) -> Tensor:
        side, name = self.resolution, pixels_column(self.resolution)
        encoding, full = self.header.packing.pictures, side in self.header.packing.full
        pixels = self._memory(len(found) * side * side * 3).reshape(len(found), side, side, 3)
        for i, (group, row) in enumerate(found):
            size = (side, side)
            if full:
                height, width = (group.numbers[f"{name}_{of}"][row] for of in ("height", "width"))
                size = (int(height), int(width))
            picture = columns.decoded(group.value(name, row), encoding, size)
            pixels[i] = columns.square(picture, side, place[i] if place else CENTRE)
        return columns.as_images(pixels, self._memory)

    def _conditioning(self, found: list[tuple[RowGroup, int]]) -> Conditioning:
        sequences, masks, pooled = {}, {}, {}
        packing = self.header.packing
        for spec in self.embeddings:
            values = [group.value(spec.name, row) for group, row in found]
            if spec.kind == "sequence":
                sequences[spec.name], masks[spec.name] = columns.padded(
                    values, spec.dim, packing.precision, self._memory
                )
            else:
                pooled[spec.name] = columns.unpacked(np.stack(values), packing.pooled)
        return Conditioning(sequences, masks, pooled)


class BufferPool:
    """Allocates memory and reuses each block once nothing refers to it. Thread-safe.

    With malloc, a thread's heap shrinks whenever a batch is freed, so the kernel has to clear the
    pages of every new batch: a third of the time of a batch.
    """

    def __init__(self) -> None:
        # By size, a power of two. Pages at a block's end that no batch has touched take no memory.
        self._free: defaultdict[int, deque[Bytes]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def __call__(self, count: int) -> Bytes:
        size = 1 << max(0, count - 1).bit_length()
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        # Via a memoryview, so that views refer to this array and not directly to the block.
        view = np.frombuffer(block.data, np.uint8, count)
        weakref.finalize(view, free.append, block).atexit = False
        return view


@dataclass
class _Entry:
    future: Future[RowGroup]
    bytes: int = 0  # 0 until it has been read


class _Cache:
    """LRU cache of row groups, limited in bytes; concurrent requests share one read."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.reads = limit_bytes, 0
        self._held_bytes = 0
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, submit: Any) -> Future[RowGroup]:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key].future
            self.reads += 1
            future: Future[RowGroup] = submit(key)
            self._entries[key] = _Entry(future)
        future.add_done_callback(lambda done: self._arrived(key, done))
        return future

    def _arrived(self, key: Any, done: Future[RowGroup]) -> None:
        with self._lock:
            entry = self._entries[key]
            if done.cancelled() or done.exception():
                del self._entries[key]  # the next request tries again
                return
            entry.bytes = done.result().bytes
            self._held_bytes += entry.bytes
            for old, held in list(self._entries.items()):
                if self._held_bytes <= self.limit_bytes:
                    break
                if held.bytes:  # not one that is still being read
                    self._held_bytes -= held.bytes
                    del self._entries[old]
