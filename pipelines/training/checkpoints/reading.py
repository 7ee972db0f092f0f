"""Reading of checkpoints: verifies every file before any tensor changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from pipelines.store.artifacts import Store, file_sha256, sha256
from pipelines.store.remote import is_environmental
from pipelines.training.checkpoints.manifest import MANIFEST, Manifest, describe_file
from pipelines.training.checkpoints.sharding import StoredTensors, local_shard
from pipelines.training.process_group import InvalidCheckpoint, ProcessGroup

T = TypeVar("T")


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds besides its tensors."""

    images: int
    note: Any
    files: Mapping[str, bytes] = field(repr=False)
    at: str
    """Folder of the checkpoint in the store."""


def load(
    store: Store,
    at: str,
    images: int | None,
    fingerprint: str,
    tensors: Mapping[str, Tensor],
    group: ProcessGroup,
    allow_extra: bool = False,
) -> Restored:
    """Fill the tensors from a checkpoint. A collective call.

    Args:
        at: folder of the checkpoint.
        images: images that the checkpoint must have seen; None accepts any number.
        fingerprint: node that must have written the checkpoint.
        tensors: filled in place, in this process's sharding; unchanged if an error is raised.
        allow_extra: whether the checkpoint may hold further tensors.

    Raises:
        InvalidCheckpoint: The checkpoint is incomplete, damaged or does not fit; raised in every
            process.
        OSError: The machine or the storage failed, such as for a full disk, which says nothing of
            the checkpoint; a StorageError in the other processes.
    """

    def begin() -> tuple[Manifest, dict[str, bytes]]:
        manifest = read_manifest(store, at)
        if manifest.fingerprint != fingerprint:
            raise InvalidCheckpoint(f"it belongs to node {manifest.fingerprint}, not {fingerprint}")
        if images is not None and manifest.images != images:
            raise InvalidCheckpoint(f"it was saved at {manifest.images:,} images")
        return manifest, {name: _extra(store, at, name, manifest) for name in manifest.extras}

    fetched: dict[str, Path] = {}

    def local(name: str) -> Path:
        if name not in fetched:
            fetched[name] = reading.enter_context(store.fetched(f"{at}/{name}"))
        return fetched[name]

    def verify() -> None:
        for name in manifest.parts[group.rank :: group.size]:
            _verify(store, at, name, manifest, local)

    def match() -> StoredTensors:
        parts = StoredTensors([local(name) for name in manifest.parts])
        parts.check(wanted, allow_extra)
        return parts

    wanted = {name: local_shard(name, t, group) for name, t in tensors.items()}
    manifest, files = group.run_on_first(begin)
    with ExitStack() as reading:
        group.run_and_gather(verify)
        parts = group.run(match)
        group.run(lambda: parts.copy_to(wanted))
    return Restored(manifest.images, manifest.note, files, at)


def read_manifest(store: Store, at: str) -> Manifest:
    """Read a checkpoint's manifest; InvalidCheckpoint if it is missing or damaged."""
    data = _read("manifest", lambda: store.read(f"{at}/{MANIFEST}"))
    if data is None:
        raise InvalidCheckpoint("it is incomplete")
    return Manifest.from_bytes(data)


def _extra(store: Store, at: str, name: str, manifest: Manifest) -> bytes:
    data = _read(name, lambda: store.read(f"{at}/{name}"))
    if data is None:
        raise InvalidCheckpoint(f"its {name} is missing")
    if sha256(data) != manifest.files[name]["sha256"]:
        raise InvalidCheckpoint(f"its {name} has the wrong sha256")
    return data


def _verify(
    store: Store, at: str, name: str, manifest: Manifest, local: Callable[[str], Path]
) -> None:
    path, expected, what = f"{at}/{name}", manifest.files[name], describe_file(name)
    size = store.size(path)
    if size is None:
        raise InvalidCheckpoint(f"its {what} is missing")
    if size != expected["bytes"]:
        raise InvalidCheckpoint(f"its {what} has {size:,} of {expected['bytes']:,} bytes")

    if _read(what, lambda: file_sha256(local(name))) != expected["sha256"]:
        raise InvalidCheckpoint(f"its {what} has the wrong sha256")


def _read(what: str, read: Callable[[], T]) -> T:
    """Call ``read``; a file that cannot be read is invalid, unless machine or storage failed."""
    try:
        return read()
    except OSError as error:
        if is_environmental(error):
            raise
        raise InvalidCheckpoint(f"its {what} cannot be read ({error})") from error
