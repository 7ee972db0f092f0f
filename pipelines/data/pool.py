"""Where embedded shards lie: a folder for a recipe, a name for a content.

Versions of a data set, and pipelines, that share a recipe share the shards of equal sources.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.store.artifacts import sha256

FOLDER = "embeddings"


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
    """Whether what a shard's row tells of is there; of no rows, no file is.

    Args:
        size: path in the store → bytes of the file, None if there is none.
    """
    return not facts["rows"] or size(facts["path"]) == facts["bytes"]
