"""Checkpoints: everything that resuming needs, written in the background while training goes on.

A checkpoint is a folder with a safetensors file from every process, small files from the caller and
``checkpoint.json``, which is written last and holds the sha256 of every file and of itself. A
checkpoint that is incomplete, damaged or another node's is skipped for the newest valid one, and a
message says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from torch import Tensor

from pipelines.runs.threads import in_thread
from pipelines.store.artifacts import Store, sha256
from pipelines.training.checkpoints.manifest import MANIFEST, Manifest, checked_extra, part_name
from pipelines.training.checkpoints.part import Part
from pipelines.training.checkpoints.reading import Restored, load, read_manifest
from pipelines.training.checkpoints.retention import CheckpointFolder, beside
from pipelines.training.checkpoints.sharding import (
    LocalShard,
    check_finite,
    layout_digest,
    local_shard,
    names_to_write,
)
from pipelines.training.process_group import InvalidCheckpoint, NonFinite, ProcessGroup

__all__ = ["Checkpoints", "InvalidCheckpoint", "NonFinite", "ProcessGroup", "Restored"]

FOLDER = "checkpoints"

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one node. Every process must call the same methods in the same order."""

    def __init__(
        self,
        store: Store,
        folder: str,
        *,
        fingerprint: str,
        group: ProcessGroup = ProcessGroup(),  # noqa: B008  frozen
        keep: int = 2,
        log: Callable[[str], None],
    ) -> None:
        """
        Args:
            folder: the node's folder; checkpoints lie in its ``checkpoints/``.
            fingerprint: the node's fingerprint; a checkpoint with another one is not used.
            keep: how many of the newest valid checkpoints are kept, besides milestones.
            log: receives messages for the user, in the first process only.
        """
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept, got keep={keep}")
        self.store, self.folder = store, CheckpointFolder(store, f"{folder}/{FOLDER}")
        self.fingerprint, self.group, self.keep, self._log = fingerprint, group, keep, log
        self._part: Part | None = None
        self._writing: Future[str | None] | None = None
        self._images = 0
        self._committed: int | None = None
        self._failures = 0
        self._error: BaseException | None = None
        self._invalid: set[str] = set()

    # -- saving --------------------------------------------------------------------------------

    def save(
        self,
        images: int,
        tensors: Mapping[str, Tensor],
        note: Mapping[str, Any],
        *,
        files: Mapping[str, bytes] | None = None,
        milestone: bool = False,
        to: str | None = None,
    ) -> None:
        """Copy the tensors, then write them in the background.

        Waits first for the previous save, if it is still being written. A previous write that
        failed is logged and counted, and does not stop this one.

        Args:
            images: images seen; names the checkpoint.
            tensors: plain tensors are equal in every process; a DTensor is replicated, or sharded
                by rows, possibly with replicas.
            note: JSON, the same in every process.
            files: small files to store beside the tensors; those of the first process count.
            milestone: keep this checkpoint regardless of its age.
            to: another folder to write to, such as the node's ``state``; it is never removed, and
                what it holds only once it has been written beside.

        Raises:
            NonFinite: A tensor holds NaN or infinity; nothing is written, in any process.
        """
        self._collect_write(wait=True)
        self._raise_unless(OSError)
        if to is not None and f"{self.folder.root}/".startswith(f"{to}/"):
            raise ValueError(f"{to} holds all checkpoints; save to a folder beside them")
        extras = {checked_extra(name): data for name, data in (files or {}).items()}
        note = json.loads(json.dumps(note))  # a snapshot, in the form that will be read back
        found = {name: local_shard(name, t, self.group) for name, t in tensors.items()}
        mine = {name: found[name] for name in names_to_write(found, self.group)}

        def check() -> str:
            check_finite({name: h.local for name, h in mine.items()})
            return layout_digest(found)

        if len(set(self.group.run_and_gather(check))) > 1:
            raise ValueError("the processes have different tensors to save")
        part = self._staging_buffer(mine)
        part.fill({name: h.local for name, h in mine.items()})

        def write() -> str | None:
            return self._write(images, part, note, extras, milestone, to)

        self._images, self._writing = images, in_thread(write)

    def poll(self) -> int | None:
        """Images of the newest checkpoint committed since the last call, or None."""
        self._collect_write(wait=False)
        found, self._committed = self._committed, None
        return found

    def wait(self) -> None:
        """Wait until nothing is being written; raises the OSError of a write that failed."""
        self._collect_write(wait=True)
        self._raise_unless(())

    @property
    def failures(self) -> int:
        """Number of saves that failed since the last success."""
        return self._failures

    def superseded(self, final: str) -> list[str]:
        """Folders to remove once the node is committed: all checkpoints but milestones.

        Args:
            final: folder of the final state, which stays; what was written beside it does not.
        """
        self.wait()
        return [*self.group.run_on_first(self.folder.superseded), beside(final)]

    def _staging_buffer(self, mine: Mapping[str, LocalShard]) -> Part:
        """The buffer of the previous save, or a new one if the tensors differ."""
        pieces = {name: h.piece for name, h in mine.items()}
        if self._part is None or self._part.pieces != pieces:
            self._part = None  # freed before the new one is allocated
            self._part = Part(pieces, pinned=any(h.local.is_cuda for h in mine.values()))
        return self._part

    def _write(
        self,
        images: int,
        part: Part,
        note: Any,
        extras: Mapping[str, bytes],
        milestone: bool,
        to: str | None,
    ) -> str | None:
        """Write a checkpoint, in a background thread of every process; → a message to log."""
        at, group = to or self.folder.path(images), self.group
        for place in group.run_on_first(lambda: self.folder.steps_to_replace(at, self._invalid)):
            self._write_to(place, images, part, note, extras, milestone)
        self._invalid -= {at, beside(at)}
        # Another folder's name is not this writer's own: what is beside it stays until the commit.
        return None if to else group.run_on_first(lambda: self._tidy(at, images))

    def _tidy(self, at: str, images: int) -> str | None:
        """Remove what a new checkpoint makes superfluous; → a message if something is left."""
        try:
            self.folder.remove(beside(at))
        except OSError as error:
            return f"old checkpoints could not be removed: {error}"
        return self.folder.prune(images, self.keep, self._invalid)

    def _write_to(
        self,
        at: str,
        images: int,
        part: Part,
        note: Any,
        extras: Mapping[str, bytes],
        milestone: bool,
    ) -> None:
        """Write a checkpoint to a folder, in place of what is there."""
        group = self.group
        name = part_name(group.rank, group.size)

        def write_part() -> dict[str, dict[str, Any]]:
            self.store.write(f"{at}/{name}", part.data)
            return {name: {"bytes": len(part.data), "sha256": sha256(part.data)}}

        def commit() -> None:
            entries = {k: v for one in written for k, v in one.items()}
            for extra, data in extras.items():
                self.store.write(f"{at}/{extra}", data)
                entries[extra] = {"bytes": len(data), "sha256": sha256(data)}
            manifest = Manifest(
                fingerprint=self.fingerprint,
                images=images,
                milestone=milestone,
                note=note,
                files=entries,
            )
            self.store.write(f"{at}/{MANIFEST}", manifest.to_bytes())

        # Remove what an earlier attempt left, so that its files cannot be mixed with ours. The name
        # of another folder is not this writer's own: there a successor may write already.
        is_own = at.startswith(f"{self.folder.root}/")
        if is_own:
            group.run_on_first(lambda: self.folder.remove(at))
        try:
            written = group.run_and_gather(write_part)
            group.run_on_first(commit)
        except OSError:
            if group.rank == 0 and is_own:
                with suppress(OSError):  # the first error is the one to report
                    self.folder.remove(at)
            raise

    def _collect_write(self, wait: bool) -> None:
        """Record the outcome of the background write, if it is done."""
        if self._writing is None or not (wait or self._writing.done()):
            return
        error, images = self._writing.exception(), self._images
        message = self._writing.result() if error is None else None
        self._writing = None
        if error is None:
            self._failures, self._committed = 0, images
        else:
            self._failures += 1
            self._error = error
            why = " ".join(str(error).split())
            message = f"the checkpoint of {images:,} images could not be written: {why}"
        if message and self.group.rank == 0:
            self._log(message)

    def _raise_unless(self, kind: type[BaseException] | tuple[()]) -> None:
        error, self._error = self._error, None
        if error is not None and not isinstance(error, kind):
            raise error

    # -- restoring -------------------------------------------------------------------------------

    def restore(
        self, tensors: Mapping[str, Tensor], *, final: str | None = None
    ) -> Restored | None:
        """Fill the tensors from the newest valid checkpoint; None if there is none.

        Args:
            tensors: filled in place, in this process's sharding; any number of processes may have
                written them.
            final: folder to try before all checkpoints: the final state, written by :meth:`save`
                with ``to``, of a node that was stopped before it was recorded as done.

        Raises:
            OSError: The machine or the storage failed while a checkpoint was read.
        """
        self._collect_write(wait=True)
        at = self.group.run_on_first(lambda: self._candidates(final))
        skipped: dict[str, str] = {}
        found = None
        for folder, images in at.items():
            try:
                found = load(self.store, folder, images, self.fingerprint, tensors, self.group)
                break
            except InvalidCheckpoint as error:
                skipped[folder] = str(error)
                self._invalid.add(folder)
        then = f"continuing from {found.images:,} images" if found else "there is no other"
        for folder, why in skipped.items():
            if self.group.rank == 0:
                name = folder.rpartition("/")[2].partition(".")[0]
                self._log(f"checkpoint {name} is not used: {why}; {then}")
        return found

    def _candidates(self, final: str | None) -> dict[str, int | None]:
        """Folders to restore from, the best first → images that they must have seen, if known."""
        ends = [final, beside(final)] if final else []
        whole = [at for at in ends if self.folder.is_complete(at)]
        return {**dict.fromkeys(whole), **self.folder.newest_first()}

    def files(self, folder: str) -> list[str]:
        """Names of the files of a checkpoint, in its folder. A collective call.

        Raises:
            InvalidCheckpoint: It is incomplete or damaged.
        """
        manifest = self.group.run_on_first(lambda: read_manifest(self.store, folder))
        return sorted([MANIFEST, *manifest.files])

    def restore_from(
        self, folder: str, tensors: Mapping[str, Tensor], fingerprint: str
    ) -> Restored:
        """Fill the tensors from a given folder, such as a parent's ``state``.

        The checkpoint may hold further tensors.

        Raises:
            ValueError: The checkpoint is invalid, or belongs to a node with another fingerprint.
        """
        self._collect_write(wait=True)
        try:
            return load(
                self.store, folder, None, fingerprint, tensors, self.group, allow_extra=True
            )
        except InvalidCheckpoint as error:
            raise ValueError(
                f"checkpoint {self.store.full(folder)} cannot be used: {error}; "
                "remove that folder and run again, which trains its node anew"
            ) from error
