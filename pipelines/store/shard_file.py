"""Read row groups of shards from disk or a bucket, with cached open files and few requests."""

from __future__ import annotations

import copy
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.store.artifacts import Store
from pipelines.store.columns import Bytes, token_bytes
from pipelines.store.dataset import Version
from pipelines.store.remote import StorageError, attempt, is_environmental
from pipelines.store.shards import Header, pixels_column

OPEN_FILES = 256
_TAIL = 1 << 16  # bytes; most footers are shorter, and arrive with the first request
_GAP = 1 << 20  # bytes between columns that are cheaper to read than a second request
_OVERHEAD = 4096  # approximate bytes of a row group's Python objects
_PREFIX = 4  # bytes of the length before each value, in Parquet's PLAIN encoding

T = TypeVar("T")
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class RowGroup:
    """Some columns of a row group. Row i of a column is ``data[starts[i] : ends[i]]``."""

    starts: dict[str, Ints]
    ends: dict[str, Ints]
    data: dict[str, Bytes]
    numbers: dict[str, Ints]
    bytes: int
    """Memory that it holds, including offsets but not memory-mapped files."""

    def value(self, column: str, row: int) -> Bytes:
        """The packed bytes of one value."""
        return self.data[column][self.starts[column][row] : self.ends[column][row]]


@dataclass(frozen=True)
class ValueSize:
    """Size of a column's values: ``bytes`` times the row's values in the columns ``times``."""

    bytes: int
    times: tuple[str, ...] = ()


def _plain_sizes(header: Header) -> dict[str, ValueSize]:
    """Column → size of its values, for columns that may be stored uncompressed and unencoded."""
    packing = header.packing
    sizes = {}
    for e in header.embeddings:
        if e.kind == "sequence":
            sizes[e.name] = ValueSize(token_bytes(e.dim, packing.precision), (f"{e.name}_length",))
        else:
            sizes[e.name] = ValueSize(token_bytes(e.dim, packing.pooled))
    if packing.pictures == "raw":
        for side in header.resolutions:
            name = pixels_column(side)
            whole = ValueSize(3, (f"{name}_height", f"{name}_width"))
            sizes[name] = whole if side in packing.full else ValueSize(3 * side * side)
    return sizes


class ShardFiles:
    """The shards of a version. Thread-safe.

    Every error is one line that names the shard: a ValueError if it is missing or damaged, a
    StorageError if the machine or the storage failed.
    """

    def __init__(self, version: Version, *, checksums: bool = False) -> None:
        self.version, self.store, self.checksums = version, version.store, checksums
        self._plain = {} if checksums else _plain_sizes(version.header)
        self._sizes = version.column("bytes")
        self._rows = version.column("rows")
        self._open: OrderedDict[int, Future[_Open]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, group: int, columns: list[str]) -> RowGroup:
        """Read columns of a row group.

        Args:
            shard: Number of the shard in the version.
            group: Number of the row group in the shard.
            columns: Names of the columns.
        """
        return self._explain_errors(
            shard, lambda: self._file(shard).read(group, columns, self._plain)
        )

    def strings(self, shard: int, column: str) -> list[str]:
        """Read a whole column of strings."""

        def read() -> list[str]:
            file = self._file(shard)
            groups = range(file.metadata.num_row_groups)
            return [s for g in groups for s in file.table(g, [column])[column].to_pylist()]

        return self._explain_errors(shard, read)

    def _explain_errors(self, shard: int, read: Callable[[], T]) -> T:
        try:
            return read()
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            failed = isinstance(error, OSError) and is_environmental(error)
            missing = isinstance(error, FileNotFoundError)
            why = (
                "is missing"
                if missing
                else f"cannot be {'read' if failed else 'used'}: {' '.join(str(error).split())}"
            )
            with self._lock:
                self._open.pop(shard, None)
            raise (StorageError if failed else ValueError)(
                f"shard {self.store.full(self.version.path(shard))} {why}"
                + ("; run its embed node again" if missing else "")
            ) from error

    def _file(self, shard: int) -> _Open:
        with self._lock:
            opening = self._open.get(shard)
            mine = opening is None
            if opening is None:
                opening = self._open[shard] = Future()
            self._open.move_to_end(shard)
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        if mine:
            try:
                opening.set_result(self._open_file(shard))
            except BaseException as error:
                opening.set_exception(error)
        return opening.result()

    def _open_file(self, shard: int) -> _Open:
        kind = _Local if self.store.is_local else _Remote
        path, size = self.version.path(shard), int(self._sizes[shard])
        file = kind(self.store, path, size, self.checksums)
        _check(file, self.version.header, int(self._rows[shard]))
        return file


def _check(file: _Open, expected: Header, rows: int) -> None:
    found = Header.from_metadata(file.metadata.metadata)
    for what in ("encoders", "embeddings", "packing"):
        have, want = getattr(found, what), getattr(expected, what)
        if have != want:
            raise ValueError(f"its {what} are {have}, but the version's are {want}")
    if file.metadata.num_rows != rows:
        raise ValueError(f"it has {file.metadata.num_rows} rows, but the version lists {rows}")


class _Open:
    """An open shard."""

    metadata: pq.FileMetaData

    def table(self, group: int, columns: list[str]) -> pa.Table:
        """Columns of a row group, decoded by Arrow."""
        raise NotImplementedError

    def raw(self, start: int, end: int) -> tuple[Bytes, int]:
        """Bytes [start, end) of the file, and how many of them take memory."""
        raise NotImplementedError

    def prefetched(self, group: int, columns: list[str]) -> _Open:
        """The same file, with these columns of a row group fetched."""
        return self

    def read(self, group: int, columns: list[str], plain: Mapping[str, ValueSize]) -> RowGroup:
        """Read columns of a row group.

        Args:
            group: Number of the row group.
            columns: Names of the columns.
            plain: Columns that may be stored unencoded, with their value sizes. These are used in
                place: Arrow's decoder would copy them, for half of a reader's time.
        """
        found = RowGroup({}, {}, {}, {}, 0)
        factors = {n for name in columns if name in plain for n in plain[name].times}
        here = self.prefetched(group, list({*columns, *factors}))
        table = here.table(group, [n for n in {*columns, *factors} if n not in plain])
        held = table.nbytes
        for name in (n for n in columns if n in plain):
            sizes = np.full(table.num_rows, plain[name].bytes, np.int64)
            for factor in plain[name].times:
                sizes *= table[factor].fill_null(0).to_numpy()
            in_place = here._plain(group, name, sizes)
            if in_place is None:
                decoded = here.table(group, [name])
                table = table.append_column(name, decoded[name])
                held += decoded.nbytes
                continue
            found.data[name], found.starts[name], here_bytes = in_place
            found.ends[name] = found.starts[name] + sizes
            held += here_bytes
        for name in (n for n in table.column_names if n in columns):
            column = table[name]
            # combine_chunks copies even a single chunk.
            column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            if not pa.types.is_large_binary(column.type):
                found.numbers[name] = column.fill_null(0).to_numpy()
                continue
            _, offsets, data = column.buffers()
            ends = np.frombuffer(offsets, np.int64)[column.offset :]
            found.starts[name], found.ends[name] = ends[:-1], ends[1:]
            found.data[name] = np.frombuffer(data or b"", np.uint8)
        places = sum(found.starts[n].nbytes + found.ends[n].nbytes for n in found.starts)
        return replace(found, bytes=held + places + _OVERHEAD)

    def _plain(self, group: int, name: str, lengths: Ints) -> tuple[Bytes, Ints, int] | None:
        """Locate a column's values in the file; None if the column is encoded or compressed.

        In an uncompressed page without nulls, Parquet's PLAIN encoding puts a length (uint32)
        before each value. So value offsets follow from the lengths, and the stored lengths serve
        as a check.
        """
        chunk = next(
            c
            for c in map(self.metadata.row_group(group).column, range(self.metadata.num_columns))
            if c.path_in_schema == name
        )
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            return None
        start = chunk.data_page_offset
        data, held = self.raw(start, start + chunk.total_compressed_size)
        ends = len(data) - np.cumsum((lengths + _PREFIX)[::-1])[::-1] + _PREFIX + lengths
        starts = ends - lengths
        if len(starts) and starts[0] < _PREFIX:
            return None
        prefixes = data[(starts - _PREFIX)[:, None] + np.arange(_PREFIX)]
        if not np.array_equal(prefixes.copy().view("<u4")[:, 0], lengths):
            return None
        return data, starts, held


class _Local(_Open):
    """A memory-mapped file on disk."""

    def __init__(self, store: Store, path: str, size: int, checksums: bool) -> None:
        source = pa.memory_map(store.full(path))
        if source.size() != size:
            raise ValueError(f"it has {source.size()} of {size} bytes")
        self._mapped = np.frombuffer(source.read_buffer(), np.uint8)
        source.seek(0)
        self._file = pq.ParquetFile(source, page_checksum_verification=checksums)
        self.metadata = self._file.metadata
        self._lock = threading.Lock()

    def table(self, group: int, columns: list[str]) -> pa.Table:
        with self._lock:  # a ParquetFile is not thread-safe
            return self._file.read_row_group(group, columns, use_threads=False)

    def raw(self, start: int, end: int) -> tuple[Bytes, int]:
        return self._mapped[start:end], 0


class _Remote(_Open):
    """An object in a bucket: one request for the footer, then one or two per row group."""

    def __init__(self, store: Store, path: str, size: int, checksums: bool) -> None:
        self._checksums = checksums
        self._store, self._path, self._size = store, path, size
        start = max(0, size - _TAIL)
        self._parts = {start: fetch(store, path, start, size)}
        self.metadata = pq.read_metadata(_RangeFile(self._parts, self._fetch, size))

    def _fetch(self, start: int, end: int) -> bytes:
        return fetch(self._store, self._path, start, end)

    def prefetched(self, group: int, columns: list[str]) -> _Open:
        here = copy.copy(self)
        here._parts = {a: self._fetch(a, b) for a, b in self._spans(group, set(columns))}
        return here

    def table(self, group: int, columns: list[str]) -> pa.Table:
        file = pq.ParquetFile(
            _RangeFile(self._parts, self._fetch, self._size),
            metadata=self.metadata,
            page_checksum_verification=self._checksums,
        )
        return file.read_row_group(group, columns, use_threads=False)

    def raw(self, start: int, end: int) -> tuple[Bytes, int]:
        here = _cached_range(self._parts, start, end)
        return np.frombuffer(
            self._fetch(start, end) if here is None else here, np.uint8
        ), end - start

    def _spans(self, group: int, columns: set[str]) -> list[tuple[int, int]]:
        found = self.metadata.row_group(group)
        spans: list[tuple[int, int]] = []
        for i in range(found.num_columns):  # in file order
            column = found.column(i)
            if column.path_in_schema not in columns:
                continue
            start = column.dictionary_page_offset or column.data_page_offset
            end = start + column.total_compressed_size
            if spans and start - spans[-1][1] <= _GAP:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return spans


class _RangeFile(io.RawIOBase):
    """A file with some byte ranges already fetched."""

    def __init__(
        self, parts: dict[int, bytes], fetch: Callable[[int, int], bytes], size: int
    ) -> None:
        self._parts, self._fetch, self._size, self._at = parts, fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        start = self._at
        end = self._size if size is None or size < 0 else min(start + size, self._size)
        self._at = end
        here = _cached_range(self._parts, start, end)
        return self._fetch(start, end) if here is None else bytes(here)


def _cached_range(parts: Mapping[int, bytes], start: int, end: int) -> memoryview | None:
    """Bytes [start, end) from the fetched ranges, or None."""
    for at, part in parts.items():
        if at <= start and end <= at + len(part):
            return memoryview(part)[start - at : end - at]
    return None


def fetch(store: Store, path: str, start: int, end: int) -> bytes:
    """Read bytes [start, end) of an object, with retries."""

    def once() -> bytes:
        data: bytes = store.fs.cat_file(store.full(path), start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} of {end - start} bytes arrived")
        return data

    return attempt(once, store.full(path))
