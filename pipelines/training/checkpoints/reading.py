"""Reads a checkpoint if all of it is as it was written, and otherwise says what is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from pipelines.store.artifacts import Store, sha256
from pipelines.store.remote import StorageError
from pipelines.training.checkpoints.manifest import MANIFEST, Manifest, in_words
from pipelines.training.checkpoints.sharding import Parts, held
from pipelines.training.process_group import Peers, Unsound

T = TypeVar("T")


@dataclass(frozen=True)
class Restored:
    """What was saved beside the tensors that were restored."""

    images: int
    note: Any
    files: Mapping[str, bytes] = field(repr=False)


def load(
    store: Store,
    at: str,
    images: int | None,
    fingerprint: str,
    tensors: Mapping[str, Tensor],
    peers: Peers,
    some: bool = False,
) -> Restored:
    """Fills the tensors from a checkpoint. All processes together; Unsound, too, is raised in all.

    Args:
        at: its folder.
        images: that it must be of; None if any will do.
        fingerprint: of the node that it must be of.
        tensors: as they are laid out here. Untouched unless the checkpoint is sound.
        some: whether it may have further tensors.
    """

    def begin() -> tuple[Manifest, dict[str, bytes]]:
        manifest = read_manifest(store, at)
        if manifest.fingerprint != fingerprint:
            raise Unsound(f"it is of node {manifest.fingerprint}, not of {fingerprint}")
        if images is not None and manifest.images != images:
            raise Unsound(f"it is of {manifest.images:,} images")
        return manifest, {name: _extra(store, at, name, manifest) for name in manifest.extras}

    fetched: dict[str, Path] = {}

    def local(name: str) -> Path:
        fetched[name] = store.local(f"{at}/{name}")
        return fetched[name]

    def verify() -> None:
        for name in manifest.parts[peers.rank :: peers.size]:
            _verify(store, at, name, manifest, local)

    def match() -> Parts:
        parts = Parts([local(name) for name in manifest.parts])
        parts.check(wanted, some)
        return parts

    wanted = {name: held(name, t, peers) for name, t in tensors.items()}
    manifest, files = peers.first(begin)
    try:
        peers.together(verify)
        parts = peers.here(match)
        peers.here(lambda: parts.copy_to(wanted))
    finally:  # no process is still at it: what ends here for one ends for all
        for path in fetched.values():
            store.evict(path)
    return Restored(manifest.images, manifest.note, files)


def read_manifest(store: Store, at: str) -> Manifest:
    """Unsound if it is not there, or not as it was written."""
    data = _read("manifest", lambda: store.read(f"{at}/{MANIFEST}"))
    if data is None:
        raise Unsound("it was not written to its end")
    return Manifest.from_bytes(data)


def _extra(store: Store, at: str, name: str, manifest: Manifest) -> bytes:
    data = _read(name, lambda: store.read(f"{at}/{name}"))
    if data is None:
        raise Unsound(f"its {name} is missing")
    if sha256(data) != manifest.files[name]["sha256"]:
        raise Unsound(f"its {name} has another sha256")
    return data


def _verify(
    store: Store, at: str, name: str, manifest: Manifest, local: Callable[[str], Path]
) -> None:
    path, due, what = f"{at}/{name}", manifest.files[name], in_words(name)
    size = store.size(path)
    if size is None:
        raise Unsound(f"its {what} is missing")
    if size != due["bytes"]:
        raise Unsound(f"its {what} has {size:,} of {due['bytes']:,} bytes")

    def digest() -> str:
        with local(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    if _read(what, digest) != due["sha256"]:
        raise Unsound(f"its {what} has another sha256")


def _read(what: str, read: Callable[[], T]) -> T:
    """What a disk cannot give is unsound; a store that is away or closed says nothing of it."""
    try:
        return read()
    except (StorageError, PermissionError):
        raise
    except OSError as error:
        raise Unsound(f"its {what} cannot be read ({error})") from error
