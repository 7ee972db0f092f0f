"""The shard pool: embedded shards, stored by recipe (folder) and source content (file name).

Data set versions and pipelines with the same recipe share the shards of identical sources. Beside
each shard, a JSON record says that it is complete.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipelines.data.formats.shard import SourceShard
from pipelines.store.artifacts import Store, sha256

FOLDER = "embeddings"
CONCURRENT_READS = 32
"""Small files of a pool that are read at once: a bucket takes some 20 ms for each."""

MAX_ATTEMPTS = 3
"""How often a shard with unreachable pictures is embedded before they are given up."""

A = TypeVar("A")
B = TypeVar("B")


def pool_path(recipe: Mapping[str, Any], encoders: str | None) -> str:
    """The pool's folder, relative to the store's root.

    Args:
        recipe: All settings that determine an embedded shard, given its source.
        encoders: Fingerprint of the node that makes the encoders, or None if they are given.
    """
    key = json.dumps([recipe, encoders], sort_keys=True)
    return f"{FOLDER}/{sha256(key.encode())[:16]}"


def shard_path(pool: str, name: str, identity: str, suffix: str) -> str:
    """Path of a shard (``parquet``), or of the record that says it is complete (``json``)."""
    return f"{pool}/{name}-{sha256(identity.encode())[:12]}.{suffix}"


def is_complete(record: Mapping[str, Any], size: Callable[[str], int | None]) -> bool:
    """Whether the shard that a record describes is in the pool and final.

    A shard without rows has no file. A shard that lacks pictures because their server was
    unreachable (``away``) is final after :data:`MAX_ATTEMPTS`.

    Args:
        record: The shard's JSON record.
        size: Maps a path in the store to the file's bytes, or None if there is no such file.
    """
    if record.get("away") and record["asked"] < MAX_ATTEMPTS:
        return False
    return not record["rows"] or size(record["path"]) == record["bytes"]


def complete_shards(
    store: Store,
    pool: str,
    shards: Iterable[SourceShard],
    listing: Mapping[str, int] | None = None,
) -> Iterator[tuple[SourceShard, dict[str, Any]]]:
    """Yield those of the shards that are complete in the pool, with their records, in order.

    Args:
        listing: The pool's files and their bytes, if already listed.
    """
    listing = store.files(pool) if listing is None else listing

    def row(shard: SourceShard) -> str:
        return shard_path(pool, shard.name, shard.identity, "json")

    recorded = [s for s in shards if row(s).rpartition("/")[2] in listing]
    for shard, record in zip(
        recorded, prefetch(recorded, lambda s: store.read_json(row(s))), strict=True
    ):
        # A record that vanished since the listing counts as missing.
        if record and is_complete(record, lambda path: listing.get(path.rpartition("/")[2])):
            yield shard, record


def prefetch(items: Iterable[A], read: Callable[[A], B]) -> Iterator[B]:
    """Read items concurrently and yield the results in order.

    At most :data:`CONCURRENT_READS` run at once, and twice as many are started ahead.
    """
    with ThreadPoolExecutor(CONCURRENT_READS) as threads:
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(threads.submit(read, item))
            if len(waiting) >= 2 * CONCURRENT_READS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
