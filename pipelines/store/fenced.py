"""A store whose writes below a folder succeed only while a record names the writer as the owner.

A writer that was paused may wake up after another has taken its work over. Its writes must not
reach what the other has written, whatever it was doing when it was paused. In a folder, the owner
is checked and the file is put in its place under the lock under which owners change. In a bucket, a
write is conditional on the object that was there before the owner was checked. What a new owner has
written came after that check, so it makes the condition fail.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.store.artifacts import MANIFEST, Store
from pipelines.store.compare_and_swap import has_conditions, locked, put_if, tag_of


class OwnerChanged(RuntimeError):
    """Another process owns what this one was to write."""


@dataclass(frozen=True)
class FencedStore(Store):
    """A store as the owner of a folder sees it; picklable, for workers."""

    folder: str
    """What is guarded: writes and removals elsewhere are as in any store."""

    record: str
    """Path of the JSON record that names the ``owner`` of the folder."""

    owner: str

    @property
    def writer(self) -> str:
        """Id of the owner that is short enough for names: the last part of it."""
        return self.owner.rpartition(".")[2]

    def write(self, path: str, data: bytes | bytearray) -> None:
        """Write a file atomically.

        Raises:
            OwnerChanged: The folder has another owner now.
        """
        if self.is_local or not self._guards(path):
            super().write(path, data)  # a file of a folder passes :meth:`_move`
        elif has_conditions(self):
            self._put(path, data)
        else:
            self.check(path)
            super().write(path, data)

    def _put(self, path: str, data: bytes | bytearray) -> None:
        tag: str | None = None  # most files are new
        while True:
            self.check(path)
            if put_if(self, path, tag, data):
                return
            tag = tag_of(self, path)
            if tag is not None and self.size(path) == len(data) and self.read(path) == data:
                return  # an earlier attempt, whose answer was lost, or the same bytes

    def _move(self, scratch: Path, target: Path, path: str) -> None:
        if not self._guards(path):
            scratch.replace(target)
            return
        with locked(self, self.record):
            self.check(path)
            scratch.replace(target)

    def remove(self, path: str) -> None:
        """Remove a file, if it exists; OwnerChanged if the folder has another owner."""
        self._check_if_guarded(path)
        super().remove(path)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder, if it exists; OwnerChanged if it has another owner."""
        self._check_if_guarded(folder)
        super().remove_folder(folder)

    def _guards(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self.folder}/")

    def _check_if_guarded(self, path: str) -> None:
        if self._guards(path):
            self.check(path)

    def check(self, path: str = "") -> None:
        """Check that this is still the owner.

        Args:
            path: what is to be written; once the record is ``sealed``, only the manifest may be.

        Raises:
            OwnerChanged: It is not.
        """
        try:
            record = json.loads(self.read(self.record) or b"{}")
        except ValueError:  # damaged: nobody's
            record = {}
        if record.get("owner") != self.owner or record.get("released"):
            raise OwnerChanged(f"another driver has taken over {self.folder}")
        if record.get("sealed") and path != f"{self.folder}/{MANIFEST}":
            raise OwnerChanged(f"{self.folder} is finished already")
