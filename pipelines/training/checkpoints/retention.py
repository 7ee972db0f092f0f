"""The folder that a node's checkpoints lie in, and which of them are kept."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from pipelines.store.artifacts import Store
from pipelines.training.checkpoints.manifest import MANIFEST
from pipelines.training.checkpoints.reading import read_manifest
from pipelines.training.process_group import Unsound


@dataclass(frozen=True)
class Shelf:
    store: Store
    folder: str

    def path(self, images: int) -> str:
        return f"{self.folder}/{images:012d}"

    def newest_first(self) -> list[int]:
        """Images of all checkpoints, sound or not."""
        folders = {name.partition("/")[0] for name in self.store.files(self.folder) if "/" in name}
        return sorted((int(f) for f in folders if len(f) == 12 and f.isdigit()), reverse=True)

    def remove(self, at: str) -> None:
        """Removes a checkpoint, wherever it is; one that is half removed is none."""
        self.store.remove(f"{at}/{MANIFEST}")
        self.store.remove_folder(at)

    def clear(self) -> None:
        """Removes all but milestones."""
        for images in self.newest_first():
            if self._is_milestone(images) is not True:
                self.remove(self.path(images))

    def retire(self, newest: int, keep: int, unsound: Container[int]) -> str | None:
        """Removes what is older than the newest sound ones, but milestones; → what went wrong.

        What is newer is left: if it was passed over, another version may read it all the same.
        """
        kept = 0
        try:
            for images in self.newest_first():
                if images > newest:
                    continue
                milestone = self._is_milestone(images)
                sound = milestone is not None and images not in unsound
                kept += sound
                if not milestone and (not sound or kept > keep):
                    self.remove(self.path(images))
        except OSError as error:
            return f"old checkpoints could not be removed: {error}"
        return None

    def _is_milestone(self, images: int) -> bool | None:
        """As its manifest says; None if it has no sound one."""
        try:
            return read_manifest(self.store, self.path(images)).milestone
        except Unsound:
            return None
