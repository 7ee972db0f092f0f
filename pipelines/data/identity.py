"""The identity of files' content, without reading terabytes at every plan.

What was hashed is remembered in a small SQLite file under the user's cache folder. It may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from pathlib import Path

from pipelines.data.places import File, Place

SETTLED_S = 2.0
"""A file this fresh may change again within the tick of its clock: hashed, but not remembered."""

CACHE = ".cache/ediffi/identities.sqlite"
CHUNK_BYTES = 2**20


def identify(place: Place, files: list[File]) -> str:
    """Identity of some files: of their paths in the data set, and of their content.

    A local file's content goes in by its sha256, so a copied or touched data set stays the same.
    One in an object store by its checksum (ETag) and size, which cost no reading; the same file
    uploaded anew in other parts counts as changed. A store that has no checksum is read.
    """
    if place.is_local:
        return _remembered(place, files)
    return _digest(
        [(f.path, f"{f.stamp[0]}/{f.bytes}" if f.stamp else _read(place, f)) for f in files]
    )


def _remembered(place: Place, files: list[File]) -> str:
    full = [(place.full(f.path), f"{f.bytes} {f.stamp}") for f in files]
    key = _digest([*full, ("in", place.folder)])
    with contextlib.suppress(OSError, sqlite3.Error), _cache() as cache:
        for (known,) in cache.execute("SELECT content FROM identities WHERE files = ?", (key,)):
            return str(known)
    content = _digest([(f.path, _read(place, f)) for f in files])
    newest_s = max((time_ns / 1e9 for f in files for time_ns in f.stamp), default=0)
    if time.time() - newest_s > SETTLED_S:
        with contextlib.suppress(OSError, sqlite3.Error), _cache() as cache:
            cache.execute("INSERT OR REPLACE INTO identities VALUES (?, ?)", (key, content))
            cache.commit()
    return content


def _digest(parts: list[tuple[str, str]]) -> str:
    whole = hashlib.sha256()
    for name, value in parts:
        whole.update(f"{len(name)} {name} {value}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{whole.hexdigest()}"


def _read(place: Place, file: File) -> str:
    content = hashlib.sha256()
    try:
        with place.open(file.path) as handle:
            while chunk := handle.read(CHUNK_BYTES):
                content.update(chunk)
    except FileNotFoundError:  # a link that leads nowhere; reading the row will say so
        return "missing"
    except OSError as error:
        raise ValueError(
            f"{place.full(file.path)} cannot be read ({error}); make it readable or move it away"
        ) from error
    return content.hexdigest()


def _cache() -> contextlib.closing[sqlite3.Connection]:
    path = Path.home() / CACHE
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(path, timeout=10)
    cache.execute("CREATE TABLE IF NOT EXISTS identities (files TEXT PRIMARY KEY, content TEXT)")
    return contextlib.closing(cache)
