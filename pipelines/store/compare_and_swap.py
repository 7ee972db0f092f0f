"""Compare-and-swap on files: a write succeeds only if the file is unchanged.

So exactly one of several concurrent writers wins. On S3, this uses conditional writes; in a folder,
a short file lock. Other object stores have no common equivalent: there the last writer wins, and
:mod:`pipelines.runs.lease` notices at its next heartbeat.
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
    """A file as it was read; both fields are None if it does not exist."""

    data: bytes | None = None
    tag: str | None = None
    """ETag, on S3."""


def read_snapshot(store: Store, path: str) -> Snapshot:
    """Read a file for a later swap. The tag is read first: a stale tag only makes the swap fail."""
    if store.is_local:
        return Snapshot(store.read(path))
    try:
        info = attempt(lambda: store.fs.info(store.full(path)), store.full(path))
    except FileNotFoundError:
        return Snapshot()
    data = store.read(path)
    return Snapshot(data, info.get("ETag")) if data is not None else Snapshot()


def compare_and_swap(store: Store, path: str, snapshot: Snapshot, data: bytes) -> bool:
    """Write ``data`` if the file is still as in ``snapshot``.

    Args:
        store: The store.
        path: Path of the file.
        snapshot: From :func:`read_snapshot`.
        data: The new content; no other writer may write the same bytes.

    Returns:
        Whether it was written.
    """
    if store.is_local:
        return _swap_file(store, path, snapshot, data)
    if not store.root.startswith(("s3://", "s3a://")):
        if store.read(path) != snapshot.data:
            return False
        store.write(path, data)
        return True
    # A retry after a lost answer fails its condition, although the first attempt succeeded.
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

    def once(condition: dict[str, Any]) -> bool:
        try:
            store.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except OSError as error:
            status = status_of(error)
            if status in CONDITION_FAILED:
                return False
            if status == CONFLICT:
                raise ConnectionError("another writer wrote at the same time") from None
            raise
        return True

    tag = snapshot.tag
    if tag is None:
        return attempt(lambda: once({"IfNoneMatch": "*"}), full)
    if attempt(lambda: once({"IfMatch": tag}), full):
        return True
    # Ceph 16 takes the quotes of an ETag for a part of it, so that no quoted one ever matches.
    bare = tag.strip('"')
    same = bare != tag and read_snapshot(store, path).tag == tag
    return same and attempt(lambda: once({"IfMatch": bare}), full)
