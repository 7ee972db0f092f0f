"""Find keys that occur in several shards of a version, at any number of rows.

Shards are made independently, so duplicates between them show only once the version is assembled.
They are counted then; no row is dropped. Each shard has a file of its keys' sorted 64-bit hashes.
These are partitioned by their first bits on the driver's disk, 12 bytes per row, and each part is
sorted in memory. Among a billion rows, two hashes collide in one version out of 37; the count is
then one too high.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.shard_pool import prefetch
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version

EXAMPLES = 5
PART_ROWS = 2**22  # some 150 MB during the sort

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
RECORD = np.dtype([("hash", "<u8"), ("shard", "<u4")])


def hash_keys(keys: Iterable[str]) -> bytes:
    """The keys' hashes, sorted: the content of the file beside a shard."""
    raw = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.sort(np.frombuffer(raw, "<u8")).tobytes()


def keys_path(shard: str) -> str:
    """Path of the hashes of a shard's keys."""
    return shard.removesuffix(".parquet") + ".keys"


def find_duplicates(version: Version) -> dict[str, Any]:
    """Count the rows whose key occurs in an earlier shard of the version.

    Returns:
        ``rows``: their number. ``examples``: for a few of them, the ``key``, the ``first`` shard
        that has it and another one (``again``).

    Raises:
        ValueError: A shard is missing.
    """
    store, paths = version.store, version.table["path"].to_pylist()
    rows, hits = 0, list[tuple[Any, Any]]()
    with tempfile.TemporaryDirectory(prefix="ediffi-keys-") as scratch:
        parts = _partition(
            prefetch(paths, lambda path: _hashes(store, path)),
            max(1, -(-int(version.column("rows").sum()) // PART_ROWS)),
            Path(scratch),
        )
        for part in parts:
            # Stable: equal hashes stay in shard order.
            part = part[np.argsort(part["hash"], kind="stable")]
            first = np.r_[True, part["hash"][1:] != part["hash"][:-1]][: len(part)]
            repeats = np.flatnonzero(~first)
            rows += len(repeats)
            second_hits = repeats[first[repeats - 1]][: EXAMPLES - len(hits)]
            hits += [(part[i - 1].copy(), part[i].copy()) for i in second_hits]
    names = version.table["name"].to_pylist() if hits else []
    return {
        "rows": rows,
        "examples": [
            {
                "key": _key(store, paths[a["shard"]], int(a["hash"])),
                "first": names[a["shard"]],
                "again": names[b["shard"]],
            }
            for a, b in hits
        ],
    }


def _partition(shards: Iterable[Hashes], parts: int, scratch: Path) -> Iterator[Any]:
    """Partition all hashes by value, each with its shard's number."""
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
    return np.frombuffer(hash_keys(_keys(store, shard)) if data is None else data, "<u8")


def _keys(store: Store, shard: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = store.read(shard)
    if data is None:
        raise ValueError(f"shard {store.full(shard)} is missing; run its embed node again")
    keys: list[str] = pq.ParquetFile(pa.BufferReader(data)).read(["key"])["key"].to_pylist()
    return keys


def _key(store: Store, shard: str, hash_: int) -> str:
    return next(k for k in _keys(store, shard) if np.frombuffer(hash_keys([k]), "<u8")[0] == hash_)
