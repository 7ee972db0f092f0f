"""Keys that a version has in several shards, at any number of rows.

Shards are made apart from each other, so that a key is repeated shows only when they are put
together: it is counted then, and no row is dropped. Beside each shard lies a file of its keys'
64-bit hashes, sorted. They are dealt by their first bits into parts on the driver's disk, 12 bytes
a row, and each part is sorted in memory. Of a billion rows two hashes agree by chance in one
version of 37: the count may then be one too high.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.pool import each
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version

EXAMPLES = 5
PART_ROWS = 2**22  # some 150 MB while they are sorted

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
RECORD = np.dtype([("hash", "<u8"), ("shard", "<u4")])


def hashed(keys: Iterable[str]) -> bytes:
    """The keys' hashes, sorted, as they lie beside a shard."""
    raw = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.sort(np.frombuffer(raw, "<u8")).tobytes()


def keys_path(shard: str) -> str:
    """Where the hashes lie, by the shard's path."""
    return shard.removesuffix(".parquet") + ".keys"


def find(version: Version) -> dict[str, Any]:
    """How many rows have a key that came before, in the order of the version's shards.

    Returns:
        ``rows``, and ``examples``: the ``key`` of some, the shard it came in ``first`` and one
        that has it ``again``.
    """
    store, paths = version.store, version.table["path"].to_pylist()
    rows, found = 0, list[tuple[Any, Any]]()
    with tempfile.TemporaryDirectory(prefix="ediffi-keys-") as scratch:
        parts = _dealt(
            each(paths, lambda path: _hashes(store, path)),
            max(1, -(-int(version.column("rows").sum()) // PART_ROWS)),
            Path(scratch),
        )
        for part in parts:
            part = part[np.argsort(part["hash"], kind="stable")]  # of equal ones in order of shards
            first = np.r_[True, part["hash"][1:] != part["hash"][:-1]][: len(part)]
            again = np.flatnonzero(~first)
            rows += len(again)
            seconds = again[first[again - 1]][: EXAMPLES - len(found)]
            found += [(part[i - 1].copy(), part[i].copy()) for i in seconds]
    names = version.table["name"].to_pylist() if found else []
    return {
        "rows": rows,
        "examples": [
            {
                "key": _key(store, paths[a["shard"]], int(a["hash"])),
                "first": names[a["shard"]],
                "again": names[b["shard"]],
            }
            for a, b in found
        ],
    }


def _dealt(shards: Iterable[Hashes], parts: int, scratch: Path) -> Iterator[Any]:
    """All hashes with their shards' numbers, in parts of which each has some of the values."""
    bounds = np.array([(i * 2**64) // parts for i in range(1, parts)], np.uint64)
    paths = [scratch / str(i) for i in range(parts)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for number, hashes in enumerate(shards):
            records = np.empty(len(hashes), RECORD)
            records["hash"], records["shard"] = hashes, number
            for file, some in zip(files, np.split(records, np.searchsorted(hashes, bounds))):
                file.write(some.tobytes())
    for path in paths:
        yield np.fromfile(path, RECORD)
        path.unlink()


def _hashes(store: Store, shard: str) -> Hashes:
    data = store.read(keys_path(shard))
    return np.frombuffer(hashed(_keys(store, shard)) if data is None else data, "<u8")


def _keys(store: Store, shard: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = store.read(shard)
    if data is None:
        raise ValueError(f"shard {store.full(shard)} is not there; run its embed node again")
    keys: list[str] = pq.ParquetFile(pa.BufferReader(data)).read(["key"])["key"].to_pylist()
    return keys


def _key(store: Store, shard: str, hash_: int) -> str:
    return next(k for k in _keys(store, shard) if np.frombuffer(hashed([k]), "<u8")[0] == hash_)
