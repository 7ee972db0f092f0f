"""Where embedded shards lie: a folder for a recipe, a name for a content.

Versions of a data set, and pipelines, that share a recipe share the shards of equal sources.
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
AT_ONCE = 32
"""Small files of a pool that are asked for together: a bucket answers each in some 20 ms."""

ASKED_MOST = 3
"""As often is a shard embedded for pictures whose server was away; then they count as gone."""

A = TypeVar("A")
B = TypeVar("B")


def pool_of(recipe: Mapping[str, Any], encoders: str | None) -> str:
    """The folder, from the store's root.

    Args:
        recipe: all settings that determine what becomes of a source shard.
        encoders: the fingerprint of the node that makes them, if one does.
    """
    said = json.dumps([recipe, encoders], sort_keys=True)
    return f"{FOLDER}/{sha256(said.encode())[:16]}"


def shard_path(pool: str, name: str, identity: str, ending: str) -> str:
    """A shard (``parquet``), or the row that says it is done (``json``)."""
    return f"{pool}/{name}-{sha256(identity.encode())[:12]}.{ending}"


def is_whole(facts: Mapping[str, Any], size: Callable[[str], int | None]) -> bool:
    """Whether what a shard's row tells of is there, and is all there will be; of no rows, no file
    is. Pictures whose server was away (``away``) are asked for another time.

    Args:
        size: path in the store → bytes of the file, None if there is none.
    """
    if facts.get("away") and facts["asked"] < ASKED_MOST:
        return False
    return not facts["rows"] or size(facts["path"]) == facts["bytes"]


def whole_in(
    store: Store,
    pool: str,
    shards: Iterable[SourceShard],
    there: Mapping[str, int] | None = None,
) -> Iterator[tuple[SourceShard, dict[str, Any]]]:
    """Those of the shards that are in the pool, whole, each with its row; in their order.

    Reads the rows many at a time.

    Args:
        there: the pool's files and sizes, if it has been listed.
    """
    there = store.files(pool) if there is None else there

    def row(shard: SourceShard) -> str:
        return shard_path(pool, shard.name, shard.identity, "json")

    begun = [s for s in shards if row(s).rpartition("/")[2] in there]
    for shard, facts in zip(begun, each(begun, lambda s: store.read_json(row(s))), strict=True):
        # Gone since the listing, it is as if it had never been there.
        if facts and is_whole(facts, lambda path: there.get(path.rpartition("/")[2])):
            yield shard, facts


def each(items: Iterable[A], read: Callable[[A], B]) -> Iterator[B]:
    """What is read of each, in order, :data:`AT_ONCE` at a time; no more wait than that twice."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(threads.submit(read, item))
            if len(waiting) >= 2 * AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
