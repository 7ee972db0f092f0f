"""The identity of files' content, without reading terabytes at every plan.

What was hashed is remembered in a small SQLite file under the user's cache folder. It may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.data.files import File, NoFile, Place

SETTLED_S = 2.0
"""A file this fresh may change again within the tick of its clock: hashed, but not remembered."""

CACHE = ".cache/ediffi/identities.sqlite"
CHUNK_BYTES = 2**20

SAVE_EVERY_S = 10.0
"""What was hashed is written this often, so that a plan that is cut short has not read in vain."""

ASKED = 500  # keys of one query; SQLite takes no more than 999


def identify(place: Place, files: list[File]) -> str:
    """Identity of some files: of their paths in the data set, and of their content.

    A local file's content goes in by its sha256, so a copied or touched data set stays the same.
    One in an object store by its checksum (ETag) and size, which cost no reading; the same file
    uploaded anew in other parts counts as changed. A store that has no checksum is read.
    """
    return identify_each(place, [files])[0]


def identify_each(place: Place, groups: Sequence[list[File]]) -> list[str]:
    """:func:`identify` of many groups of files, looked up and remembered together."""
    if not place.is_local:
        return [
            _digest(
                [(f.path, f"{f.stamp[0]}/{f.bytes}" if f.stamp else _read(place, f)) for f in files]
            )
            for files in groups
        ]
    keys = [_key(place, files) for files in groups]
    known = _recall(keys)
    fresh: dict[str, str] = {}
    saved_s = time.monotonic()
    try:
        for key, files in zip(keys, groups, strict=True):
            if key in known:
                continue
            known[key] = _digest([(f.path, _read(place, f)) for f in files])
            newest_s = max((time_ns / 1e9 for f in files for time_ns in f.stamp), default=0)
            if time.time() - newest_s > SETTLED_S:
                fresh[key] = known[key]
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                _remember(fresh)
                fresh, saved_s = {}, time.monotonic()
    finally:
        _remember(fresh)
    return [known[key] for key in keys]


def _key(place: Place, files: list[File]) -> str:
    full = [(place.full(f.path), f"{f.bytes} {f.stamp}") for f in files]
    return _digest([*full, ("in", place.folder)])


def _recall(keys: Sequence[str]) -> dict[str, str]:
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, sqlite3.Error), _cache() as cache:
        for at in range(0, len(keys), ASKED):
            some = keys[at : at + ASKED]
            marks = ",".join("?" * len(some))
            known.update(cache.execute(f"SELECT * FROM identities WHERE files IN ({marks})", some))
    return known


def _remember(fresh: Mapping[str, str]) -> None:
    """Writes in one transaction: on a disk each costs a flush, some 10 ms."""
    if not fresh:
        return
    with contextlib.suppress(OSError, sqlite3.Error), _cache() as cache, cache:
        cache.executemany("INSERT OR REPLACE INTO identities VALUES (?, ?)", fresh.items())


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
    except NoFile:  # a pipe; the same
        return "no file"
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
