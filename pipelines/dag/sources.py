"""What a pipeline reads that no node made, and the identity of its content: data and encoders."""

from __future__ import annotations

import contextlib
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ediffi_core.published import PACKAGE, located
from pipelines.data.files import find
from pipelines.data.formats.shard import SourceShard
from pipelines.data.identity import identify as content_of
from pipelines.data.sources import list_shards
from pipelines.spec.data import Source
from pipelines.spec.gpus import ASSUMED
from pipelines.spec.pipeline import Spec


def identify_all(spec: Spec, assume: bool = False) -> dict[str, Any]:
    """The identity of every source that is not made by a node.

    Args:
        assume: takes the ``pairs:`` of a source that has them for granted, and does not look.
    """
    splits = {"train": spec.data.train, "validation": spec.data.validation}
    found = {
        split: assumed(source.pairs) if assume and source.pairs else identify(source)
        for split, source in splits.items()
        if source.path
    }
    named: dict[str, str | None] = {n: m.model for n, m in spec.encoders.more.items()}
    if not spec.encoders.make:
        named |= {**spec.encoders.model_dump(include={"t5", "clip"}), "scorer": spec.evaluate.clip}
    found["encoders"] = {role: identify_encoder(name) for role, name in named.items() if name}
    return found


def identify_encoder(name: str) -> str:
    """A published model's name, or of a folder what it holds: a moved folder is the same.

    One in a package is known by the package's version.
    """
    if name.startswith(PACKAGE):
        located(name)
        package = name.removeprefix(PACKAGE).partition("/")[0]
        with contextlib.suppress(PackageNotFoundError):  # a folder on the path, of no version
            return f"{name}=={version(package)}"
    folder = Path(located(name))
    if not folder.is_dir():
        return name
    place, files = find(str(folder))
    return content_of(place, files)


def identify(source: Source) -> dict[str, Any]:
    """What a data set holds, and how much of it; ValueError if it is not to be had."""
    shards = list_shards(source)
    return {
        "shards": len(shards),
        "bytes": sum(s.bytes for s in shards),
        "identity": digest_of(shards),
        "listed": shards,
    }


def assumed(pairs: int) -> dict[str, Any]:
    """A data set of so many pairs that nobody looked at."""
    size = round(pairs * ASSUMED.pair_bytes)
    return {"shards": 0, "bytes": size, "identity": "assumed", "listed": [], "pairs": pairs}


def digest_of(shards: list[SourceShard]) -> str:
    """Of all shards: their names, and the identity of each one's content."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.name} {shard.identity}\n".encode())
    return digest.hexdigest()[:16]
