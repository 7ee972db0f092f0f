"""Identities of file contents, cached so that a plan does not hash terabytes every time.

Hashes are cached in a small SQLite file under the user's cache folder, which may be deleted at any
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.data.files import File, Location, NotAFile

SETTLED_S = 2.0
"""A file modified within this time may change again with the same time stamp: it is hashed but not
cached."""

CACHE = ".cache/ediffi/identities.sqlite"
CHUNK_BYTES = 2**20

SAVE_EVERY_S = 10.0
"""How often new hashes are saved, so that an interrupted plan loses little work."""

KEYS_PER_QUERY = 500  # SQLite accepts at most 999


def identify(location: Location, files: list[File]) -> str:
    """Identity of some files: a hash of their paths in the data set and of their content.

    Local files count by the sha256 of their content, so a copied or touched data set keeps its
    identity. Files in an object store count by checksum (ETag) and size, which need no reading;
    the same file uploaded again in other parts counts as changed. Where the store has no
    checksum, the file is read.

    Raises:
        ValueError: A local file cannot be read.
    """
    return identify_each(location, [files])[0]


def identify_each(location: Location, groups: Sequence[list[File]]) -> list[str]:
    """:func:`identify` of many groups of files, with one cache look-up and few cache writes."""
    if not location.is_local:
        return [
            _digest(
                [
                    (f.path, f"{f.stamp[0]}/{f.bytes}" if f.stamp else _read(location, f))
                    for f in files
                ]
            )
            for files in groups
        ]
    keys = [_key(location, files) for files in groups]
    known = _load_cached(keys)
    fresh: dict[str, str] = {}
    saved_s = time.monotonic()
    try:
        for key, files in zip(keys, groups, strict=True):
            if key in known:
                continue
            known[key] = _digest([(f.path, _read(location, f)) for f in files])
            newest_s = max((time_ns / 1e9 for f in files for time_ns in f.stamp), default=0)
            if time.time() - newest_s > SETTLED_S:
                fresh[key] = known[key]
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                _save(fresh)
                fresh, saved_s = {}, time.monotonic()
    finally:
        _save(fresh)
    return [known[key] for key in keys]


def _key(location: Location, files: list[File]) -> str:
    full = [(location.full(f.path), f"{f.bytes} {f.stamp}") for f in files]
    return _digest([*full, ("in", location.folder)])


def _load_cached(keys: Sequence[str]) -> dict[str, str]:
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, sqlite3.Error), _cache() as cache:
        for at in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[at : at + KEYS_PER_QUERY]
            marks = ",".join("?" * len(some))
            known.update(cache.execute(f"SELECT * FROM identities WHERE files IN ({marks})", some))
    return known


def _save(fresh: Mapping[str, str]) -> None:
    """Save in one transaction: each transaction costs a flush of the disk, some 10 ms."""
    if not fresh:
        return
    with contextlib.suppress(OSError, sqlite3.Error), _cache() as cache, cache:
        cache.executemany("INSERT OR REPLACE INTO identities VALUES (?, ?)", fresh.items())


def _digest(parts: list[tuple[str, str]]) -> str:
    whole = hashlib.sha256()
    for name, value in parts:
        whole.update(f"{len(name)} {name} {value}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{whole.hexdigest()}"


def _read(location: Location, file: File) -> str:
    content = hashlib.sha256()
    try:
        with location.open(file.path) as handle:
            while chunk := handle.read(CHUNK_BYTES):
                content.update(chunk)
    except FileNotFoundError:  # a broken link; reading the row reports it
        return "missing"
    except NotAFile:  # a pipe; likewise
        return "no file"
    except OSError as error:
        raise ValueError(
            f"{location.full(file.path)} cannot be read ({error}); make it readable or move it away"
        ) from error
    return content.hexdigest()


def _cache() -> contextlib.closing[sqlite3.Connection]:
    path = Path.home() / CACHE
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(path, timeout=10)
    cache.execute("CREATE TABLE IF NOT EXISTS identities (files TEXT PRIMARY KEY, content TEXT)")
    return contextlib.closing(cache)
