"""Writes a file only if it still holds what was read, so that of several writers one succeeds.

In S3 by its conditional writes; in a folder under a lock that is held for the moment of writing.
Another object store has no such thing that all of them share: there the last writer wins, which
:mod:`pipelines.runs.lease` notices at the next beat.
"""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.store.artifacts import Store
from pipelines.store.remote import attempt, status_of

LOCK = "leases/.swap.lock"
CONDITION_FAILED, CONFLICT = (404, 412), 409


@dataclass(frozen=True)
class Snapshot:
    """A file as it was read; of one that is not there both are None."""

    data: bytes | None = None
    tag: str | None = None


def read_snapshot(store: Store, path: str) -> Snapshot:
    """What is there now. The tag is read first: one of older data only makes a swap fail."""
    if store.is_local:
        return Snapshot(store.read(path))
    try:
        info = attempt(lambda: store.fs.info(store.full(path)), store.full(path))
    except FileNotFoundError:
        return Snapshot()
    data = store.read(path)
    return Snapshot(data, info.get("ETag")) if data is not None else Snapshot()


def compare_and_swap(store: Store, path: str, snapshot: Snapshot, data: bytes) -> bool:
    """Writes ``data``, which no one else writes; False if it is not any more what was seen."""
    if store.is_local:
        return _swap_file(store, path, snapshot, data)
    if not store.root.startswith(("s3://", "s3a://")):
        if store.read(path) != snapshot.data:
            return False
        store.write(path, data)
        return True
    # One whose answer was lost is refused when it is sent again: then it is there.
    return _swap_object(store, path, snapshot, data) or store.read(path) == data


def _swap_file(store: Store, path: str, snapshot: Snapshot, data: bytes) -> bool:
    lock = Path(store.full(LOCK))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if store.read(path) != snapshot.data:
            return False
        store.write(path, data)
    return True


def _swap_object(store: Store, path: str, snapshot: Snapshot, data: bytes) -> bool:
    full = store.full(path)
    bucket, key, _ = store.fs.split_path(full)
    condition: dict[str, Any] = {"IfMatch": snapshot.tag} if snapshot.tag else {"IfNoneMatch": "*"}

    def once() -> bool:
        try:
            store.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except OSError as error:
            status = status_of(error)
            if status in CONDITION_FAILED:
                return False
            if status == CONFLICT:
                raise ConnectionError("another writer was at it") from None
            raise
        return True

    return attempt(once, full)
