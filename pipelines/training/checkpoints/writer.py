"""Checkpoints: everything that resuming needs, written while training goes on.

A checkpoint is a folder: a safetensors file from every process, small files of the caller's, and
``checkpoint.json``, which is written last and has the sha256 of all of them and of itself. One that
is torn, damaged or another node's is passed over for the newest sound one, and that is said.
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
from pipelines.training.checkpoints.reading import Restored, load
from pipelines.training.checkpoints.retention import Shelf
from pipelines.training.checkpoints.sharding import Held, check_finite, held, layout, written_here
from pipelines.training.process_group import NonFinite, Peers, Unsound

__all__ = ["Checkpoints", "NonFinite", "Peers", "Restored", "Unsound"]

FOLDER = "checkpoints"

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one node. All processes call the same methods in the same order."""

    def __init__(
        self,
        store: Store,
        folder: str,
        *,
        fingerprint: str,
        peers: Peers = Peers(),  # noqa: B008  frozen
        keep: int = 2,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            folder: the node's; its checkpoints lie in ``checkpoints/`` there.
            fingerprint: the node's; a checkpoint with another is not used.
            keep: how many of the newest are kept, besides milestones.
            say: takes the lines that a user should read, in the first process only.
        """
        if keep < 1:
            raise ValueError(f"at least one checkpoint must be kept, got keep={keep}")
        self.store, self.shelf = store, Shelf(store, f"{folder}/{FOLDER}")
        self.fingerprint, self.peers, self.keep, self._say = fingerprint, peers, keep, say
        self._part: Part | None = None
        self._writing: Future[str | None] | None = None
        self._images = 0
        self._committed: int | None = None
        self._failures = 0
        self._error: BaseException | None = None
        self._unsound: set[int] = set()

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
        """Returns as soon as the tensors are copied; they are written while training goes on.

        Waits first for the save before this one, if it is still being written. A write that failed
        is said and counted, and does not stop this one.

        Args:
            images: the clock; names the checkpoint.
            tensors: plain ones are the same in every process; a DTensor is replicated, or sharded
                by rows, possibly with replicas.
            note: JSON, the same in every process.
            files: small ones beside the tensors, as the first process has them.
            milestone: keep it however old it gets.
            to: another folder, such as the finished node's ``state``; never removed.

        Raises:
            NonFinite: A tensor holds NaN or infinity; nothing is written, in any process.
        """
        self._settle(wait=True)
        self._raise_unless(OSError)
        if to is not None and f"{self.shelf.folder}/".startswith(f"{to}/"):
            raise ValueError(f"{to} holds all checkpoints; save to a folder beside them")
        extras = {checked_extra(name): data for name, data in (files or {}).items()}
        note = json.loads(json.dumps(note))  # as it is now, and as it will be read
        found = {name: held(name, t, self.peers) for name, t in tensors.items()}
        mine = {name: found[name] for name in written_here(found, self.peers)}

        def check() -> str:
            check_finite({name: h.local for name, h in mine.items()})
            return layout(found)

        if len(set(self.peers.together(check))) > 1:
            raise ValueError("the processes have different tensors to save")
        part = self._staged(mine)
        part.fill({name: h.local for name, h in mine.items()})

        def write() -> str | None:
            return self._write(images, part, note, extras, milestone, to)

        self._unsound.discard(images)
        self._images, self._writing = images, in_thread(write)

    def poll(self) -> int | None:
        """Images of the newest checkpoint that was committed since this was last asked."""
        self._settle(wait=False)
        found, self._committed = self._committed, None
        return found

    def wait(self) -> None:
        """Until nothing is being written; raises the error (an OSError) of a write that failed."""
        self._settle(wait=True)
        self._raise_unless(())

    @property
    def failures(self) -> int:
        """How many saves have failed since one succeeded."""
        return self._failures

    def clear(self) -> None:
        """Removes all checkpoints but milestones; for when the node is finished."""
        self.wait()
        self.peers.first(self.shelf.clear)

    def _staged(self, mine: Mapping[str, Held]) -> Part:
        """The memory of the save before this one, unless other tensors come."""
        pieces = {name: h.piece for name, h in mine.items()}
        if self._part is None or self._part.pieces != pieces:
            self._part = None  # before the new one is there: never twice the memory
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
        """In the background, in every process; → what is to be said about it."""
        at, peers = to or self.shelf.path(images), self.peers
        name = part_name(peers.rank, peers.size)

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

        # What an earlier attempt left there goes first: no file of it can be taken for one of ours.
        peers.first(lambda: self.shelf.remove(at))
        try:
            written = peers.together(write_part)
            peers.first(commit)
        except OSError:
            if peers.rank == 0:
                with suppress(OSError):  # the first error says more
                    self.shelf.remove(at)
            raise
        if to is not None:
            return None
        return peers.first(lambda: self.shelf.retire(images, self.keep, self._unsound))

    def _settle(self, wait: bool) -> None:
        """Takes note of what the background has done."""
        if self._writing is None or not (wait or self._writing.done()):
            return
        error, images = self._writing.exception(), self._images
        told = self._writing.result() if error is None else None
        self._writing = None
        if error is None:
            self._failures, self._committed = 0, images
        else:
            self._failures += 1
            self._error = error
            why = " ".join(str(error).split())
            told = f"the checkpoint of {images:,} images could not be written: {why}"
        if told and self.peers.rank == 0:
            self._say(told)

    def _raise_unless(self, kind: type[BaseException] | tuple[()]) -> None:
        error, self._error = self._error, None
        if error is not None and not isinstance(error, kind):
            raise error

    # -- restoring -------------------------------------------------------------------------------

    def restore(
        self, tensors: Mapping[str, Tensor], *, ended: str | None = None
    ) -> Restored | None:
        """Fills these tensors from the newest sound checkpoint; None if there is none.

        Args:
            tensors: as they are laid out here; however many processes wrote them.
            ended: a folder that comes before all checkpoints, if it is there: what :meth:`save`
                wrote ``to`` for a node that was stopped before it was declared done.
        """
        self._settle(wait=True)
        at: dict[str, int | None] = {}
        if ended and self.peers.first(lambda: self.store.size(f"{ended}/{MANIFEST}")) is not None:
            at[ended] = None
        at |= {
            self.shelf.path(images): images for images in self.peers.first(self.shelf.newest_first)
        }
        passed: dict[str, str] = {}
        found = None
        for folder, images in at.items():
            try:
                found = load(self.store, folder, images, self.fingerprint, tensors, self.peers)
                break
            except Unsound as error:
                passed[folder] = str(error)
                if images is not None:
                    self._unsound.add(images)
        then = f"continuing from {found.images:,} images" if found else "there is no other"
        for folder, why in passed.items():
            if self.peers.rank == 0:
                name = folder.rpartition("/")[2]
                self._say(f"checkpoint {name} is not used: {why}; {then}")
        return found

    def restore_from(
        self, folder: str, tensors: Mapping[str, Tensor], fingerprint: str
    ) -> Restored:
        """Fills these tensors, all that it has or some, from one such as a parent's ``state``.

        Raises:
            ValueError: It is not sound, or of another node than the one of this fingerprint.
        """
        self._settle(wait=True)
        try:
            return load(self.store, folder, None, fingerprint, tensors, self.peers, some=True)
        except Unsound as error:
            raise ValueError(
                f"checkpoint {self.store.full(folder)} cannot be used: {error}; "
                "run the node that makes it again"
            ) from error
