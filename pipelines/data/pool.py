"""Where embedded shards lie: a folder for a recipe, a name for a content.

Versions of a data set, and pipelines, that share a recipe share the shards of equal sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FOLDER = "embeddings"


def pool_of(recipe: Mapping[str, Any], encoders: str | None) -> str:
    """The folder, from the store's root.

    Args:
        recipe: all settings that determine what becomes of a source shard.
        encoders: the fingerprint of the node that makes them, if one does.
    """
    said = json.dumps([recipe, encoders], sort_keys=True)
    return f"{FOLDER}/{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def shard_path(pool: str, name: str, identity: str, ending: str) -> str:
    """A shard (``parquet``), or the row that says it is done (``json``)."""
    return f"{pool}/{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.{ending}"
