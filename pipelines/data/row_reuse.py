"""Reuse rows of earlier shards: found by a hash of their content, and copied instead of encoded.

When one row of a source shard changes, the whole shard is written again, but only rows that no
earlier shard has are encoded. A row is identified by its picture's bytes and its caption; its key
and file may change. Everything else depends on the recipe, and a pool has one recipe.

- Beside each shard, a ``.rows`` file lists its rows' content hashes in order
  (:class:`RowsSidecar`). It also has what a copy needs and the shard lacks, and the rows that
  CLIP's filter dropped, so that those are not encoded again either.
- A job considers only shards that may help: for each source shard, earlier shards of the same
  name; and shards of the node's previous version that the new version no longer has. The hashes
  of the latter go into a sorted index of 12 bytes per row (:class:`ReuseIndex`). Above
  :data:`MAX_INDEXED_ROWS`, the index keeps only hashes below a threshold: a shard is then found
  by some of its rows, and all of its rows are taken from its sidecar.
- An actor reads the sidecars of the few shards that it needs, then their rows
  (:class:`RowCopier`). Lost or damaged rows are encoded like new ones.

Packed bytes are copied. An encoder's last bits depend on the batch, so a data set that grew and the
same one embedded at once are equal byte for byte, except that embeddings agree only to the rounding
of their precision. Nothing is identified by the bytes of an embedding: shards are identified by
their source's content, and versions by their shards' names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.formats.shard import SourceShard
from pipelines.data.shard_pool import is_complete, prefetch, shard_path
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version
from pipelines.store.remote import StorageError
from pipelines.store.shards import Header, PackedValue, PackingSums, pixels_column

SIDECAR_SUFFIX = ".rows"

HASH_VERSION = b"ediffi row 1"
"""Part of every content hash. Increase the number when the same picture or caption gives another
result, for example with another decoder: older rows are then not reused."""

CONTENT_BYTES = 16
MAX_INDEXED_ROWS = 2**22  # 50 MB
MAX_SHARDS_PER_NAME = 64
"""How many earlier shards of one name are considered: a source file that is rewritten every hour
has thousands."""

Prefixes = np.ndarray[Any, np.dtype[np.uint64]]


def content_hash(picture: bytes, caption: str) -> bytes:
    """The hash that identifies a row.

    Args:
        picture: :func:`image_hash` of the picture file's bytes.
        caption: Cleaned by :func:`pipelines.data.captions.clean_caption`.
    """
    data = picture + caption.encode()
    return hashlib.blake2b(data, digest_size=CONTENT_BYTES, person=HASH_VERSION).digest()


def image_hash(image: bytes) -> bytes:
    """Hash of a picture file's bytes."""
    return hashlib.blake2b(image, digest_size=32).digest()


@dataclass(frozen=True, kw_only=True)
class RowsSidecar:
    """The ``.rows`` file of a shard: its rows in order, then those that CLIP's filter dropped."""

    contents: Sequence[bytes]
    """Content hash of each row."""

    scores: Sequence[float]
    """CLIP score of each row, in double precision."""

    sums: Mapping[str, Sequence[PackingSums]]
    """Embedding → packing errors of each row of the shard, without the dropped rows."""

    sha256: str
    """Hash of the shard; empty if it has no rows."""

    def with_dropped(self, dropped: Mapping[bytes, float]) -> RowsSidecar:
        """Append rows that CLIP's filter dropped: content hash → CLIP score."""
        return replace(
            self,
            contents=[*self.contents, *dropped],
            scores=[*self.scores, *dropped.values()],
        )

    def write(self, store: Store, shard: str) -> None:
        """Write the sidecar of the shard at this path."""
        dropped = len(self.contents) - len(next(iter(self.sums.values()), ()))
        columns: dict[str, Any] = {
            "content": pa.array(self.contents, pa.binary(CONTENT_BYTES)),
            "score": pa.array(self.scores, pa.float64()),
        }
        for name, sums in self.sums.items():
            for i, part in enumerate(("signal", "error")):
                values = [*(s[i] for s in sums), *([None] * dropped)]
                columns[f"{name}.{part}"] = pa.array(values, pa.float64())
        table = pa.table(columns).replace_schema_metadata({"sha256": self.sha256})
        sink = io.BytesIO()
        pq.write_table(table, sink, use_dictionary=False, write_statistics=False)
        store.write(sidecar_path(shard), sink.getvalue())

    @staticmethod
    def read(store: Store, shard: str) -> RowsSidecar | None:
        """The sidecar of a shard; None if it is missing or damaged."""
        table = _table(store, shard)
        if table is None:
            return None
        names = [n.removesuffix(".signal") for n in table.column_names if n.endswith(".signal")]
        rows = len(table) if not names else len(table) - table[f"{names[0]}.signal"].null_count
        return RowsSidecar(
            contents=table["content"].to_pylist(),
            scores=table["score"].to_pylist(),
            sums={
                name: list(
                    zip(
                        table[f"{name}.signal"][:rows].to_pylist(),
                        table[f"{name}.error"][:rows].to_pylist(),
                        strict=True,
                    )
                )
                for name in names
            },
            sha256=table.schema.metadata[b"sha256"].decode(),
        )


def sidecar_path(shard: str) -> str:
    """Path of a shard's sidecar."""
    return shard.removesuffix(".parquet") + SIDECAR_SUFFIX


def _table(store: Store, shard: str, columns: list[str] | None = None) -> pa.Table | None:
    data = store.read(sidecar_path(shard))
    try:
        return data and pq.ParquetFile(pa.BufferReader(data)).read(columns)
    except (pa.ArrowException, OSError):  # damaged: treated as missing
        return None


def _prefixes(store: Store, shard: str) -> Prefixes:
    """The first eight bytes of each content hash."""
    table = _table(store, shard, ["content"])
    raw = b"".join(table["content"].to_pylist()) if table else b""
    return np.frombuffer(raw, ">u8")[:: CONTENT_BYTES // 8].astype(np.uint64)


@dataclass(frozen=True)
class ReuseIndex:
    """Which earlier shards a job may copy rows from; sent to every actor."""

    by_name: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name of a source shard → paths of its earlier shards."""

    paths: Sequence[str] = ()
    """Shards of the previous version that the new one no longer has."""

    prefixes: Prefixes = field(default_factory=lambda: np.empty(0, np.uint64))
    """Sorted prefixes of these shards' content hashes."""

    shards: np.ndarray[Any, np.dtype[np.uint32]] = field(
        default_factory=lambda: np.empty(0, np.uint32)
    )
    """For each prefix, the index of its shard in ``paths``."""

    is_sampled: bool = False
    """Whether the index has only some of the rows; see :data:`MAX_INDEXED_ROWS`."""

    def shards_with(self, content: bytes) -> list[str]:
        """Paths of shards that may have a row with this content hash."""
        prefix = np.uint64(int.from_bytes(content[:8], "big"))
        start, end = (
            int(np.searchsorted(self.prefixes, prefix, side)) for side in ("left", "right")
        )
        return [self.paths[i] for i in self.shards[start:end].tolist()]

    @staticmethod
    def build(
        store: Store,
        pool: str,
        shards: Iterable[SourceShard],
        todo: Sequence[SourceShard],
        last: Version | None,
        listing: Mapping[str, int] | None = None,
    ) -> ReuseIndex:
        """Build the index for a job.

        Shards that a killed job left behind do not change it: the job that resumes copies the
        same rows.

        Args:
            shards: All source shards of the new version.
            todo: Those that are not yet in the pool.
            last: The node's previous version, if there is one.
            listing: The pool's files and their bytes, if already listed.
        """
        if not todo:
            return ReuseIndex()
        listing = store.files(pool) if listing is None else listing
        with_rows = [
            name.removesuffix(SIDECAR_SUFFIX) for name in listing if name.endswith(SIDECAR_SUFFIX)
        ]
        if not with_rows:
            return ReuseIndex()
        current = {shard_path(pool, s.name, s.identity, "parquet") for s in shards}
        earlier = [p for name in with_rows if (p := f"{pool}/{name}.parquet") not in current]
        names = {shard.name for shard in todo}
        by_name: dict[str, list[str]] = {}
        for path in earlier:
            name = path.rpartition("/")[2].rpartition("-")[0]  # the rest is a content hash
            if name in names and len(by_name.setdefault(name, [])) < MAX_SHARDS_PER_NAME:
                by_name[name].append(path)
        previous = set(last.table["path"].to_pylist()) if last else set()
        paths = [path for path in earlier if path in previous]
        return ReuseIndex(
            by_name, paths, *_index(prefetch(paths, lambda path: _prefixes(store, path)))
        )


def _index(found: Iterable[Prefixes]) -> tuple[Prefixes, Any, bool]:
    """All prefixes sorted, each one's shard number, and whether some had to be left out."""
    prefixes, shards, rows, limit = [], [], 0, 2**64
    for number, some in enumerate(found):
        some = some[some < limit] if limit < 2**64 else some
        prefixes.append(some)
        shards.append(np.full(len(some), number, np.uint32))
        rows += len(some)
        while rows > MAX_INDEXED_ROWS:
            limit //= 2
            few = [h < limit for h in prefixes]
            prefixes = [h[f] for h, f in zip(prefixes, few, strict=True)]
            shards = [s[f] for s, f in zip(shards, few, strict=True)]
            rows = sum(map(len, prefixes))
    all_prefixes = np.concatenate(prefixes) if prefixes else np.empty(0, np.uint64)
    all_shards = np.concatenate(shards) if shards else np.empty(0, np.uint32)
    order = np.argsort(all_prefixes, kind="stable")
    return all_prefixes[order], all_shards[order], limit < 2**64


@dataclass(frozen=True)
class ReusableRow:
    """A row of an earlier shard, or one that CLIP's filter dropped from it."""

    shard: str
    row: int | None
    """Row number in the shard; None if the row was dropped."""

    score: float
    """CLIP score."""

    sums: Mapping[str, PackingSums]


class ShardLost(Exception):
    """An earlier shard is missing or damaged."""

    def __init__(self, shard: str) -> None:
        super().__init__(shard)
        self.shard = shard


class RowCopier:
    """Finds and copies one source shard's rows from earlier shards."""

    def __init__(self, store: Store, reuse: ReuseIndex, name: str) -> None:
        self.store, self.reuse, self.name = store, reuse, name
        self.lost: set[str] = set()
        """Shards that :meth:`rows` found missing or damaged."""

        self._known: dict[bytes, ReusableRow] | None = None
        self._loaded: set[str] = set()

    def find_all(self, contents: Iterable[bytes]) -> None:
        """Load every shard that holds any of these rows; needed if the index is sampled."""
        for content in contents:
            self.find(content)

    def find(self, content: bytes) -> ReusableRow | None:
        """An earlier row with this content hash, or None."""
        if self._known is None:
            self._known = {}
            for shard in self.reuse.by_name.get(self.name, ()):
                self._load(shard)
        if content not in self._known:
            for shard in self.reuse.shards_with(content):
                self._load(shard)
        return self._known.get(content)

    def exclude(self, shard: str) -> None:
        """Start over without a lost shard."""
        self.lost.add(shard)
        self._known, self._loaded = None, set()

    def _load(self, shard: str) -> None:
        if shard in self._loaded or shard in self.lost:
            return
        self._loaded.add(shard)
        record = self.store.read_json(shard.removesuffix("parquet") + "json")
        found = RowsSidecar.read(self.store, shard)
        if not record or not found or not is_complete(record, self.store.size):
            return
        if record.get("sha256", "") != found.sha256:  # rewritten by another actor
            return
        assert self._known is not None
        for i, (content, score) in enumerate(zip(found.contents, found.scores, strict=True)):
            row = i if i < record["rows"] else None
            sums = (
                {name: values[i] for name, values in found.sums.items()} if row is not None else {}
            )
            self._known.setdefault(content, ReusableRow(shard, row, score, sums))

    def rows(self, found: Sequence[ReusableRow], captions: Sequence[str]) -> list[dict[str, Any]]:
        """Read the packed values of earlier rows.

        Args:
            found: Rows from :meth:`find`, none of them dropped.
            captions: Their captions, as a check.

        Returns:
            For each row, its header and a packed value for every column.

        Raises:
            ShardLost: A shard is missing or damaged.
            StorageError: The bucket is unavailable.
        """
        values: list[dict[str, Any]] = [{} for _ in found]
        by_shard: dict[str, list[int]] = {}
        for i, known in enumerate(found):
            by_shard.setdefault(known.shard, []).append(i)
        for shard, mine in by_shard.items():
            at = [known.row for i in mine if (known := found[i]).row is not None]
            try:
                header, table = _rows(self.store, shard, at)
            except StorageError:  # an unavailable bucket does not mean that the shard is lost
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                raise ShardLost(shard) from error
            if table["caption"].to_pylist() != [captions[i] for i in mine]:
                raise ShardLost(shard)
            for i, row in zip(mine, table.to_pylist(), strict=True):
                values[i] = {"header": header, **_packed_values(row, header, found[i].sums)}
        return values


def _rows(store: Store, shard: str, at: Sequence[int]) -> tuple[Header, pa.Table]:
    """Read rows of a shard in the given order.

    Raises:
        ValueError, OSError, pyarrow.ArrowException: The shard is missing or damaged.
    """
    if store.is_local:
        source = pa.memory_map(store.full(shard))
    elif (data := store.read(shard)) is not None:
        source = pa.BufferReader(data)
    else:
        raise FileNotFoundError(store.full(shard))
    file = pq.ParquetFile(source, page_checksum_verification=True)
    header = Header.from_metadata(file.metadata.metadata)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    which = np.searchsorted(ends, at, "right").tolist()
    groups = sorted(set(which))
    table = file.read_row_groups(groups, use_threads=False)
    starts = np.cumsum([0, *(sizes[g] for g in groups)])
    shift = {g: int(starts[i] - (ends[g] - sizes[g])) for i, g in enumerate(groups)}
    taken = [row + shift[group] for group, row in zip(which, at, strict=True)]
    return header, table.take(taken)


def _packed_values(
    row: Mapping[str, Any], header: Header, sums: Mapping[str, PackingSums]
) -> dict[str, PackedValue | None]:
    """The packed value of every column of a row, by column."""
    values: dict[str, PackedValue | None] = {}
    for e in header.embeddings:
        shape = (row[f"{e.name}_length"], e.dim) if e.kind == "sequence" else (e.dim,)
        values[e.name] = PackedValue(row[e.name], shape, sums[e.name])
    for side in header.resolutions:
        name = pixels_column(side)
        height, width = (row.get(f"{name}_{axis}", side) for axis in ("height", "width"))
        data = row[name]
        values[name] = None if data is None else PackedValue(data, (height, width, 3))
    return values
