"""Retention: the folder of a node's checkpoints, and which of them are kept.

A checkpoint is named by the images it had seen and by its writer, the driver that trained it. So a
worker of a driver that was taken for dead removes none that its successor writes.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from pipelines.store.artifacts import Store
from pipelines.training.checkpoints.manifest import MANIFEST
from pipelines.training.checkpoints.reading import read_manifest
from pipelines.training.process_group import InvalidCheckpoint

NAME = re.compile(r"(\d{12})(\.[0-9a-f]+)?(\.new)?")
"""Images, and the writer; earlier releases wrote no writer."""


def beside(at: str) -> str:
    """Folder in which a checkpoint is written that replaces the one in ``at``."""
    return f"{at}.new"


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one node."""

    store: Store
    root: str

    def path(self, images: int) -> str:
        """Folder of this writer's checkpoint in the store."""
        writer = self.store.writer
        return f"{self.root}/{images:012d}{f'.{writer}' if writer else ''}"

    def steps_to_replace(self, at: str, invalid: Container[str]) -> list[str]:
        """Folders to write a checkpoint to in turn, so that one for ``at`` is whole at any time.

        Args:
            invalid: folders of checkpoints known to be invalid.
        """
        is_whole = at not in invalid and self.is_complete(at)
        return [beside(at), at] if is_whole else [at]

    def is_complete(self, at: str) -> bool:
        """Whether a checkpoint has been written to its end."""
        return self.store.size(f"{at}/{MANIFEST}") is not None

    def newest_first(self) -> dict[str, int]:
        """Folder → images of all checkpoints, valid or not; each before the one beside it."""
        names = {name.partition("/")[0] for name in self.store.files(self.root) if "/" in name}
        found = sorted((-int(m[1]), n) for n in names if (m := NAME.fullmatch(n)))
        return {f"{self.root}/{name}": -images for images, name in found}

    def remove(self, at: str) -> None:
        """Remove a checkpoint folder, its manifest first, so that a partial removal is invalid."""
        self.store.remove(f"{at}/{MANIFEST}")
        self.store.remove_folder(at)

    def superseded(self) -> list[str]:
        """Folders of all checkpoints but milestones: nobody needs them once the node is done."""
        return [at for at in self.newest_first() if self._is_milestone(at) is not True]

    def prune(self, newest: int, keep: int, invalid: Container[str]) -> str | None:
        """Remove checkpoints older than the newest valid ones, except milestones.

        Checkpoints newer than ``newest`` stay: another version may be able to read them. So do
        other writers' of as many images, so that of two writers neither removes the other's best.

        Args:
            newest: images of the checkpoint that was just written.
            keep: number of valid checkpoints to keep besides milestones.
            invalid: folders of checkpoints known to be invalid.

        Returns:
            A message if something could not be removed.
        """
        kept = set[int]()
        try:
            for at, images in self.newest_first().items():
                if images > newest or (images == newest and at != self.path(newest)):
                    continue
                milestone = self._is_milestone(at)
                valid = milestone is not None and at not in invalid
                if valid:
                    kept.add(images)
                if not milestone and (not valid or len(kept) > keep):
                    self.remove(at)
        except OSError as error:
            return f"old checkpoints could not be removed: {error}"
        return None

    def _is_milestone(self, at: str) -> bool | None:
        """As its manifest says; None without a valid manifest."""
        try:
            return read_manifest(self.store, at).milestone
        except InvalidCheckpoint:
            return None
