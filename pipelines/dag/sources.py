"""Identify what a pipeline reads from outside: the user's own data and encoders."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ediffi_core.published import PACKAGE, resolve_source
from pipelines.data.files import list_files
from pipelines.data.formats.shard import SourceShard
from pipelines.data.identity import identify as identify_files
from pipelines.data.sources import list_shards
from pipelines.spec.data import Source
from pipelines.spec.evaluation import FeatureNetwork
from pipelines.spec.gpus import ASSUMED
from pipelines.spec.pipeline import Spec


def identify_all(spec: Spec, assume: bool = False) -> dict[str, Any]:
    """Identify every source that no node makes.

    Args:
        assume: for a source with ``pairs:``, assume a data set of that size instead of reading it.

    Returns:
        ``train`` and ``validation``, where the spec gives paths, as :func:`identify` returns them;
        ``encoders``: role → identity; ``features``: name → :func:`identify_features`.

    Raises:
        ValueError: A source cannot be read.
    """
    splits = {"train": spec.data.train, "validation": spec.data.validation}
    found = {
        split: _identify_or_assume(split, source) if assume else identify(source)
        for split, source in splits.items()
        if source.path
    }
    named: dict[str, str | None] = {n: m.model for n, m in spec.encoders.more.items()}
    if not spec.encoders.make:
        named |= {**spec.encoders.settings({"t5", "clip"}), "scorer": spec.evaluate.clip}
    found["encoders"] = {role: identify_encoder(name) for role, name in named.items() if name}
    found["features"] = {
        name: identify_features(name, given, assume=assume)
        for name, given in spec.evaluate.features.items()
    }
    return found


def _identify_or_assume(split: str, source: Source) -> dict[str, Any]:
    if source.pairs:
        return assumed(source.pairs)
    try:
        return identify(source)
    except (ValueError, OSError) as e:
        key = f"data.{split}.pairs"
        raise ValueError(
            f"`{key}:` is missing, and the data cannot be counted: {e}; write `{key}:` with the "
            "number of pairs to plan without the data"
        ) from e


def identify_encoder(name: str) -> str:
    """Identify an encoder.

    Returns:
        The name of a published model, with its revision if it is given; ``name==version`` for one
        inside an installed package; a hash of the contents of a local folder, so that moving the
        folder changes nothing.
    """
    if name.startswith(PACKAGE):
        resolve_source(name)
        package = name.removeprefix(PACKAGE).partition("/")[0]
        with contextlib.suppress(PackageNotFoundError):  # a folder on the path has no version
            return f"{name}=={version(package)}"
    folder = Path(resolve_source(name))
    if not folder.is_dir():
        return name
    location, files = list_files(str(folder), follow_links=True)  # a cache's are links
    return identify_files(location, files)


def identify_features(name: str, given: FeatureNetwork, *, assume: bool = False) -> dict[str, Any]:
    """Identify a network of ``evaluate.features``.

    Args:
        name: its name there.
        assume: let a file of weights that is not there be ``assumed``.

    Returns:
        Its settings, with the identity of the weights' file (its name and content) or of CLIP's
        folder instead of their paths. A CLIP without ``model`` is the one that conditions, which
        is not identified here.

    Raises:
        ValueError: The file of weights does not exist, or cannot be read.
    """
    found = {k: v for k, v in given.settings().items() if v is not None}
    if given.kind == "clip" and given.model:
        found["model"] = identify_encoder(given.model)
    if given.weights:
        path = Path(given.weights).expanduser()
        if path.is_file():
            found["weights"] = identify_files(*list_files(str(path), follow_links=True))
        elif assume:
            found["weights"] = "assumed"
        else:
            raise ValueError(
                f"`evaluate.features.{name}.weights`: there is no file {given.weights}; write the "
                "path of one"
            )
    return found


def identify(source: Source, among: Collection[str] | None = None) -> dict[str, Any]:
    """Identify a data set.

    Args:
        among: leave out all other files; as :func:`pipelines.data.listing.files_of` names them.

    Returns:
        ``shards`` (their number), ``bytes``, ``identity`` (a hash) and ``listed`` (the shards).

    Raises:
        ValueError: The data set cannot be read.
    """
    shards = list_shards(source, among)
    return {
        "shards": len(shards),
        "bytes": sum(s.bytes for s in shards),
        "identity": digest_of(shards),
        "listed": shards,
    }


def assumed(pairs: int) -> dict[str, Any]:
    """Stand-in for a data set of ``pairs`` pairs that was not read; as :func:`identify`."""
    size = round(pairs * ASSUMED.pair_bytes)
    return {"shards": 0, "bytes": size, "identity": "assumed", "listed": [], "pairs": pairs}


def digest_of(shards: list[SourceShard]) -> str:
    """Hash of all shards' names and content identities, 16 hex digits."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.name} {shard.identity}\n".encode())
    return digest.hexdigest()[:16]
