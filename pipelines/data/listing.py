"""The files that a data set had when its embedding began, kept in the node's folder.

A node that continues reads these, so that a file which has arrived since changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.data.formats.shard import SourceShard
from pipelines.store.artifacts import Store

FILE = "listing.json"


def files_of(shards: Iterable[SourceShard]) -> set[str]:
    """The files that shards are read from: their paths, after their folders' prefixes."""
    return {
        shard.prefix + path
        for shard in shards
        for path in (shard.path, *shard.files)
        if path  # a folder of pictures may have no caption file
    }


def keep(store: Store, folder: str, identity: str, shards: Iterable[SourceShard]) -> None:
    """Keep a data set's files in the folder of the node that embeds it, unless they are there.

    Args:
        identity: of the data set, as of :func:`pipelines.dag.sources.identify`.
    """
    path = f"{folder}/{FILE}"
    if store.size(path) is None:
        store.write_json(path, {"identity": identity, "files": sorted(files_of(shards))})


def kept(store: Store, folder: str) -> Mapping[str, Any] | None:
    """``identity`` and ``files`` that :func:`keep` has kept; None if it has kept none."""
    found: Mapping[str, Any] | None = store.read_json(f"{folder}/{FILE}")
    return found
