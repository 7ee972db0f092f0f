"""Retention: the folder of a node's checkpoints, and which of them are kept."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from pipelines.store.artifacts import Store
from pipelines.training.checkpoints.manifest import MANIFEST
from pipelines.training.checkpoints.reading import read_manifest
from pipelines.training.process_group import InvalidCheckpoint

BESIDE = ".new"


def beside(at: str) -> str:
    """Folder in which a checkpoint is written that replaces the one in ``at``."""
    return f"{at}{BESIDE}"


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one node, named by the images they had seen."""

    store: Store
    root: str

    def path(self, images: int) -> str:
        """Folder of one checkpoint in the store."""
        return f"{self.root}/{images:012d}"

    def steps_to_replace(self, at: str, invalid: Container[str]) -> list[str]:
        """Folders to write a checkpoint to in turn, so that one for ``at`` is whole at any time.

        Args:
            invalid: folders of checkpoints known to be invalid.
        """
        is_whole = at not in invalid and self.store.size(f"{at}/{MANIFEST}") is not None
        return [beside(at), at] if is_whole else [at]

    def newest_first(self) -> list[int]:
        """Images of all checkpoints, valid or not."""
        folders = {name.partition("/")[0] for name in self.store.files(self.root) if "/" in name}
        names = {f.removesuffix(BESIDE) for f in folders}
        return sorted((int(n) for n in names if len(n) == 12 and n.isdigit()), reverse=True)

    def candidates(self, images: int) -> list[str]:
        """Folders that may hold a checkpoint; the second only if its replacement was cut short."""
        at = self.path(images)
        return [at, *self.finished_beside(at)]

    def finished_beside(self, at: str) -> list[str]:
        """The folder beside, if a checkpoint in it is complete."""
        new = beside(at)
        return [new] if self.store.size(f"{new}/{MANIFEST}") is not None else []

    def remove(self, at: str) -> None:
        """Remove a checkpoint folder, its manifest first, so that a partial removal is invalid."""
        self.store.remove(f"{at}/{MANIFEST}")
        self.store.remove_folder(at)

    def clear(self) -> None:
        """Remove all checkpoints but milestones."""
        for images in self.newest_first():
            if self._is_milestone(images) is not True:
                self._remove_both(images)

    def _remove_both(self, images: int) -> None:
        self.remove(self.path(images))
        self.remove(beside(self.path(images)))

    def prune(self, newest: int, keep: int, invalid: Container[str]) -> str | None:
        """Remove checkpoints older than the newest valid ones, except milestones.

        Checkpoints newer than ``newest`` stay: another version may be able to read them.

        Args:
            newest: images of the checkpoint that was just written.
            keep: number of valid checkpoints to keep besides milestones.
            invalid: folders of checkpoints known to be invalid.

        Returns:
            A message if something could not be removed.
        """
        kept = 0
        try:
            for images in self.newest_first():
                if images > newest:
                    continue
                milestone = self._is_milestone(images)
                valid = milestone is not None and self.path(images) not in invalid
                kept += valid
                if not milestone and (not valid or kept > keep):
                    self._remove_both(images)
        except OSError as error:
            return f"old checkpoints could not be removed: {error}"
        return None

    def _is_milestone(self, images: int) -> bool | None:
        """As its manifest says; None without a valid manifest."""
        try:
            return read_manifest(self.store, self.path(images)).milestone
        except InvalidCheckpoint:
            return None
