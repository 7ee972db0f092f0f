"""Rows that earlier shards of a pool hold already: found by their content, and copied.

A source shard that changed by a row is another shard, which is made whole; but of its rows only
those are encoded that no earlier shard has. A row is known by its picture's bytes and its caption,
whatever its key, its place and its file are by now: what else becomes of it is the recipe's, and a
pool has one recipe. How it is done:

- Beside each shard lies a file of its rows' contents in their order (``.rows``, :class:`Contents`).
  It also has what a copy needs and the shard lacks, and the rows that CLIP's filter dropped, which
  are not encoded again either.
- A job looks only into shards that may matter: those of the version made last of the node that it
  no longer has, and for each source shard those of its name. Contents of the former go into a
  sorted index of 12 bytes a row (:class:`Earlier`), which tells the actors where to look. Above
  :data:`MOST_ROWS` it is thinned to contents of small value; a shard is then found by some of its
  rows, and all of them in it.
- An actor reads the contents of the few shards that it needs, then their rows (:class:`Copier`).
  What is lost or damaged there is encoded as if it had never been.

What is copied are packed bytes. An encoder's last bits depend on how many texts or pictures it is
given at once, so a data set that grew and the same one embedded at once agree byte for byte in all
but those: embeddings agree to the rounding of their precision. Nothing is identified by the bytes
of an embedding: shards are by their source's content, versions by their shards' names.
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
from pipelines.data.pool import each, is_whole, shard_path
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version
from pipelines.store.remote import StorageError
from pipelines.store.shards import Header, Kept, Sums, pixels_at

ROWS = ".rows"

MEANING = b"ediffi row 1"
"""Part of every content. Count it up where the same picture or caption is to become something
else, by another decoder, say: rows of before are then not copied."""

CONTENT_BYTES = 16
MOST_ROWS = 2**22  # of the index: 50 MB
MOST_NAMED = 64
"""Earlier shards of one name that are looked into: of a file that is written anew every hour there
are thousands."""

Heads = np.ndarray[Any, np.dtype[np.uint64]]


def content_of(picture: bytes, caption: str) -> bytes:
    """What a row is known by.

    Args:
        picture: :func:`picture_id` of the file's bytes.
        caption: as :func:`pipelines.data.captions.checked` returns it.
    """
    said = picture + caption.encode()
    return hashlib.blake2b(said, digest_size=CONTENT_BYTES, person=MEANING).digest()


def picture_id(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=32).digest()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The rows of a shard, and behind them those that CLIP's filter dropped."""

    contents: Sequence[bytes]
    scores: Sequence[float]
    """CLIP's of each, in double precision."""

    sums: Mapping[str, Sequence[Sums]]
    """Embedding → of each row of the shard, as :func:`pipelines.store.shards.write` has them."""

    sha256: str
    """Of the shard; empty where it has no rows."""

    def with_dropped(self, dropped: Mapping[bytes, float]) -> Contents:
        """With the contents and scores of rows that CLIP's filter dropped."""
        return replace(
            self,
            contents=[*self.contents, *dropped],
            scores=[*self.scores, *dropped.values()],
        )

    def write(self, store: Store, shard: str) -> None:
        dropped = len(self.contents) - len(next(iter(self.sums.values()), ()))
        columns: dict[str, Any] = {
            "content": pa.array(self.contents, pa.binary(CONTENT_BYTES)),
            "score": pa.array(self.scores, pa.float64()),
        }
        for name, sums in self.sums.items():
            for i, of in enumerate(("signal", "error")):
                values = [*(s[i] for s in sums), *([None] * dropped)]
                columns[f"{name}.{of}"] = pa.array(values, pa.float64())
        table = pa.table(columns).replace_schema_metadata({"sha256": self.sha256})
        sink = io.BytesIO()
        pq.write_table(table, sink, use_dictionary=False, write_statistics=False)
        store.write(rows_path(shard), sink.getvalue())

    @staticmethod
    def read(store: Store, shard: str) -> Contents | None:
        """None if there are none, or they cannot be read."""
        table = _table(store, shard)
        if table is None:
            return None
        names = [n.removesuffix(".signal") for n in table.column_names if n.endswith(".signal")]
        rows = len(table) if not names else len(table) - table[f"{names[0]}.signal"].null_count
        return Contents(
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


def rows_path(shard: str) -> str:
    """Where the contents lie, by the shard's path."""
    return shard.removesuffix(".parquet") + ROWS


def _table(store: Store, shard: str, columns: list[str] | None = None) -> pa.Table | None:
    data = store.read(rows_path(shard))
    try:
        return data and pq.ParquetFile(pa.BufferReader(data)).read(columns)
    except (pa.ArrowException, OSError):  # damaged: as if it were not there
        return None


def _heads(store: Store, shard: str) -> Heads:
    """The first eight bytes of each content."""
    table = _table(store, shard, ["content"])
    raw = b"".join(table["content"].to_pylist()) if table else b""
    return np.frombuffer(raw, ">u8")[:: CONTENT_BYTES // 8].astype(np.uint64)


@dataclass(frozen=True)
class Earlier:
    """Where a job's rows may be copied from; travels to every actor."""

    named: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Source shard's name → earlier shards of it, by their paths."""

    paths: Sequence[str] = ()
    """Shards of the version before that are not in this one."""

    heads: Heads = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of their contents, sorted."""

    shards: np.ndarray[Any, np.dtype[np.uint32]] = field(
        default_factory=lambda: np.empty(0, np.uint32)
    )
    """For each head, which of ``paths``."""

    is_thin: bool = False
    """Whether some contents are not in the index."""

    def holding(self, content: bytes) -> list[str]:
        """Shards that may hold a content."""
        head = np.uint64(int.from_bytes(content[:8], "big"))
        start, end = (int(np.searchsorted(self.heads, head, side)) for side in ("left", "right"))
        return [self.paths[i] for i in self.shards[start:end].tolist()]

    @staticmethod
    def of(
        store: Store,
        pool: str,
        shards: Iterable[SourceShard],
        todo: Sequence[SourceShard],
        last: Version | None,
        there: Mapping[str, int] | None = None,
    ) -> Earlier:
        """For a job that is to make some shards.

        What a killed job left behind changes it no more than it must: the same rows are copied
        when the next one makes the rest.

        Args:
            shards: all that the new version is to have.
            last: the version that the node made before, if there is one.
            there: the pool's files, if it has been listed.
        """
        if not todo:
            return Earlier()
        there = store.files(pool) if there is None else there
        with_rows = [name.removesuffix(ROWS) for name in there if name.endswith(ROWS)]
        if not with_rows:
            return Earlier()
        current = {shard_path(pool, s.name, s.identity, "parquet") for s in shards}
        earlier = [p for name in with_rows if (p := f"{pool}/{name}.parquet") not in current]
        names = {shard.name for shard in todo}
        named: dict[str, list[str]] = {}
        for path in earlier:
            name = path.rpartition("/")[2].rpartition("-")[0]  # what follows is its content's hash
            if name in names and len(named.setdefault(name, [])) < MOST_NAMED:
                named[name].append(path)
        before = set(last.table["path"].to_pylist()) if last else set()
        paths = [path for path in earlier if path in before]
        return Earlier(named, paths, *_index(each(paths, lambda path: _heads(store, path))))


def _index(found: Iterable[Heads]) -> tuple[Heads, Any, bool]:
    """All heads sorted, the number of each one's shard, and whether some had to be left out."""
    heads, shards, rows, limit = [], [], 0, 2**64
    for number, some in enumerate(found):
        some = some[some < limit] if limit < 2**64 else some
        heads.append(some)
        shards.append(np.full(len(some), number, np.uint32))
        rows += len(some)
        while rows > MOST_ROWS:
            limit //= 2
            few = [h < limit for h in heads]
            heads = [h[f] for h, f in zip(heads, few, strict=True)]
            shards = [s[f] for s, f in zip(shards, few, strict=True)]
            rows = sum(map(len, heads))
    all_heads = np.concatenate(heads) if heads else np.empty(0, np.uint64)
    all_shards = np.concatenate(shards) if shards else np.empty(0, np.uint32)
    order = np.argsort(all_heads, kind="stable")
    return all_heads[order], all_shards[order], limit < 2**64


@dataclass(frozen=True)
class Known:
    """A row of an earlier shard, or one that CLIP's filter dropped there."""

    shard: str
    row: int | None
    """None if it was dropped."""

    score: float
    sums: Mapping[str, Sums]


class Lost(Exception):
    """An earlier shard turned out not to be there as it should."""

    def __init__(self, shard: str) -> None:
        super().__init__(shard)
        self.shard = shard


class Copier:
    """What earlier shards hold of one source shard's rows."""

    def __init__(self, store: Store, earlier: Earlier, name: str) -> None:
        self.store, self.earlier, self.name = store, earlier, name
        self.lost: set[str] = set()
        """Shards not to be copied from, as :meth:`rows` found."""

        self._known: dict[bytes, Known] | None = None
        self._looked: set[str] = set()

    def look_for(self, contents: Iterable[bytes]) -> None:
        """Finds the shards that hold any of some contents, where the index has not all rows."""
        for content in contents:
            self.find(content)

    def find(self, content: bytes) -> Known | None:
        """A row of this content, if an earlier shard has it."""
        if self._known is None:
            self._known = {}
            for shard in self.earlier.named.get(self.name, ()):
                self._look(shard)
        if content not in self._known:
            for shard in self.earlier.holding(content):
                self._look(shard)
        return self._known.get(content)

    def without(self, shard: str) -> None:
        """Begins anew without a shard."""
        self.lost.add(shard)
        self._known, self._looked = None, set()

    def _look(self, shard: str) -> None:
        if shard in self._looked or shard in self.lost:
            return
        self._looked.add(shard)
        facts = self.store.read_json(shard.removesuffix("parquet") + "json")
        found = Contents.read(self.store, shard)
        if not facts or not found or not is_whole(facts, self.store.size):
            return
        if facts.get("sha256", "") != found.sha256:  # by another actor, whose rows may be others
            return
        assert self._known is not None
        for i, (content, score) in enumerate(zip(found.contents, found.scores, strict=True)):
            row = i if i < facts["rows"] else None
            sums = {name: of[i] for name, of in found.sums.items()} if row is not None else {}
            self._known.setdefault(content, Known(shard, row, score, sums))

    def rows(self, found: Sequence[Known], captions: Sequence[str]) -> list[dict[str, Any]]:
        """The values of some rows that are in shards, packed: a dict for each, by column.

        Raises:
            Lost: a shard that they are in is gone or damaged.
        """
        values: list[dict[str, Any]] = [{} for _ in found]
        by_shard: dict[str, list[int]] = {}
        for i, known in enumerate(found):
            by_shard.setdefault(known.shard, []).append(i)
        for shard, mine in by_shard.items():
            at = [known.row for i in mine if (known := found[i]).row is not None]
            try:
                header, table = _rows(self.store, shard, at)
            except StorageError:  # the bucket is away, which makes no row new
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                raise Lost(shard) from error
            if table["caption"].to_pylist() != [captions[i] for i in mine]:
                raise Lost(shard)
            for i, row in zip(mine, table.to_pylist(), strict=True):
                values[i] = {"header": header, **_kept(row, header, found[i].sums)}
        return values


def _rows(store: Store, shard: str, at: Sequence[int]) -> tuple[Header, pa.Table]:
    """Some rows of a shard, in the order asked; ValueError, OSError or ArrowException if it is
    damaged."""
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


def _kept(
    row: Mapping[str, Any], header: Header, sums: Mapping[str, Sums]
) -> dict[str, Kept | None]:
    values: dict[str, Kept | None] = {}
    for e in header.embeddings:
        shape = (row[f"{e.name}_length"], e.dim) if e.kind == "sequence" else (e.dim,)
        values[e.name] = Kept(row[e.name], shape, sums[e.name])
    for side in header.resolutions:
        name = pixels_at(side)
        height, width = (row.get(f"{name}_{of}", side) for of in ("height", "width"))
        data = row[name]
        values[name] = None if data is None else Kept(data, (height, width, 3))
    return values
