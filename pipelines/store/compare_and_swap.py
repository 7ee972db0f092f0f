"""Compare-and-swap on files: a write succeeds only if the file is unchanged.

So exactly one of several concurrent writers wins. On S3, this uses conditional writes; in a folder,
a short file lock. Other object stores have no common equivalent: there the last writer wins, and
:mod:`pipelines.runs.lease` notices at its next heartbeat.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.store.artifacts import Store
from pipelines.store.remote import attempt, status_of

LOCKS = 256
"""Lock files of a folder's records. A record has the one that its path hashes to, so a process that
is paused while it holds one holds up only those who write that record, and a 256th of the others.
"""

LOCK_TIMEOUT_S = 30.0
"""How long to wait for a lock, which nobody holds for longer than one write."""

CONDITION_FAILED, CONFLICT = (404, 412), 409
ONE_PUT = 5 * 2**30
"""Bytes of the largest object that S3 takes in one request."""

PART = 512 * 2**20
"""Bytes of each part of a larger one."""


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
    tag = tag_of(store, path)
    data = store.read(path) if tag is not None else None
    return Snapshot(data, tag) if data is not None else Snapshot()


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
    if not has_conditions(store):
        if store.read(path) != snapshot.data:
            return False
        store.write(path, data)
        return True
    # A retry after a lost answer fails its condition, although the first attempt succeeded.
    return put_if(store, path, snapshot.tag, data) or store.read(path) == data


def has_conditions(store: Store) -> bool:
    """Whether a bucket has S3's conditional writes."""
    return store.root.startswith(("s3://", "s3a://"))


@contextlib.contextmanager
def locked(store: Store, record: str) -> Iterator[None]:
    """Hold the lock under which a record of a folder is swapped.

    Args:
        record: its path in the store.

    Raises:
        TimeoutError: Another process has held it for :data:`LOCK_TIMEOUT_S`.
    """
    path, deadline = lock_file(store, record), time.monotonic() + LOCK_TIMEOUT_S
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{path} has been locked for {LOCK_TIMEOUT_S:.0f} s; a process that holds "
                        "it hangs"
                    ) from None
            time.sleep(0.005)
        yield


def lock_file(store: Store, record: str) -> Path:
    """The file whose lock is held while a record is swapped."""
    return Path(store.full(f"leases/.swap-{zlib.crc32(record.encode()) % LOCKS:02x}.lock"))


def _swap_file(store: Store, path: str, snapshot: Snapshot, data: bytes) -> bool:
    with locked(store, path):
        if store.read(path) != snapshot.data:
            return False
        store.write(path, data)
    return True


def tag_of(store: Store, path: str) -> str | None:
    """The ETag of an object; None if there is none."""
    try:
        info = attempt(lambda: store.fs.info(store.full(path)), store.full(path))
    except FileNotFoundError:
        return None
    tag: str | None = info.get("ETag")
    return tag


def put_if(store: Store, path: str, tag: str | None, data: bytes | bytearray) -> bool:
    """Write an object in S3 if its ETag is this one, or if there is none and ``tag`` is None.

    Returns:
        Whether it was written, as far as is known: an answer may have been lost.
    """
    full = store.full(path)
    bucket, key, _ = store.fs.split_path(full)

    def once(condition: dict[str, Any]) -> bool:
        try:
            if not condition:
                store.fs.pipe_file(full, data, mode="create")
            elif len(data) <= ONE_PUT:
                store.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
            else:
                _put_in_parts(store.fs, {"Bucket": bucket, "Key": key}, data, condition)
        except FileExistsError:
            return False
        except OSError as error:
            status = status_of(error)
            if status in CONDITION_FAILED:
                return False
            if status == CONFLICT:
                raise ConnectionError("another writer wrote at the same time") from None
            raise
        return True

    if tag is None:
        return attempt(lambda: once({}), full)
    if attempt(lambda: once({"IfMatch": tag}), full):
        return True
    # Ceph 16 takes the quotes of an ETag for a part of it, so that no quoted one ever matches.
    bare = tag.strip('"')
    same = bare != tag and tag_of(store, path) == tag
    return same and attempt(lambda: once({"IfMatch": bare}), full)


def _put_in_parts(
    fs: Any, at: dict[str, str], data: bytes | bytearray, condition: dict[str, Any]
) -> None:
    """Replace a large object, under a condition that is checked at the end."""
    of = {**at, "UploadId": fs.call_s3("create_multipart_upload", **at)["UploadId"]}
    try:
        parts = []
        view = memoryview(data)
        for number, begin in enumerate(range(0, len(data), PART), start=1):
            body = bytes(view[begin : begin + PART])
            sent = fs.call_s3("upload_part", PartNumber=number, Body=body, **of)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        fs.call_s3("complete_multipart_upload", MultipartUpload={"Parts": parts}, **of, **condition)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            fs.call_s3("abort_multipart_upload", **of)
        raise
