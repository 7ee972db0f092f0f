"""A checkpoint's manifest: written last, it lists every file of the checkpoint with its sha256."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.store.artifacts import sha256
from pipelines.training.process_group import InvalidCheckpoint

MANIFEST = "checkpoint.json"
"""Differs from the name of a node's manifest, because checkpoints lie in the node's folder."""

FORMAT = 1

_PART = re.compile(r"part-(\d{5})-of-(\d{5})\.safetensors")
_EXTRA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def part_name(rank: int, size: int) -> str:
    """File name of a process's part of the tensors."""
    return f"part-{rank:05d}-of-{size:05d}.safetensors"


def is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def describe_file(name: str) -> str:
    """``part 3`` for a part, any other file by its name."""
    found = _PART.fullmatch(name)
    return f"part {int(found[1])}" if found else name


def checked_extra(name: str) -> str:
    """Return the name of an extra file if a checkpoint may hold it; ValueError otherwise."""
    if not _EXTRA.fullmatch(name) or is_part(name) or name == MANIFEST:
        raise ValueError(
            f"a checkpoint cannot hold a file {name!r}; use letters, digits, '.', '_' and '-', "
            f"and neither {MANIFEST} nor a part's name"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    fingerprint: str
    """Fingerprint of the node that wrote the checkpoint."""

    images: int
    """Images seen when the checkpoint was saved."""

    milestone: bool
    """Whether the checkpoint is kept regardless of its age."""

    note: Any
    """JSON that the caller gets back on restoring."""

    files: Mapping[str, Mapping[str, Any]]
    """Name → ``bytes`` and ``sha256`` of every file except the manifest."""

    @property
    def parts(self) -> list[str]:
        return sorted(filter(is_part, self.files))

    @property
    def extras(self) -> list[str]:
        return sorted(name for name in self.files if not is_part(name))

    def to_bytes(self) -> bytes:
        """Canonical JSON, including the sha256 of the same JSON without that key."""
        rest = {"format": FORMAT, **asdict(self)}
        return _canonical({**rest, "sha256": sha256(_canonical(rest))})

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Parse a manifest; InvalidCheckpoint if a single bit differs from what was written."""
        try:
            value = json.loads(data)
        except ValueError as error:
            raise InvalidCheckpoint(f"its manifest cannot be read ({error})") from error
        if not isinstance(value, dict) or "sha256" not in value or "format" not in value:
            raise InvalidCheckpoint("its manifest is not a checkpoint manifest")
        claimed = value.pop("sha256")
        # Compared as bytes: some bit flips do not change the value, such as \u00e9 to \u00E9.
        proven = _canonical({**value, "sha256": sha256(_canonical(value))})
        if claimed != sha256(_canonical(value)) or data != proven:
            raise InvalidCheckpoint("its manifest does not match its own sha256")
        if (found := value.pop("format")) != FORMAT:
            raise InvalidCheckpoint(f"it has format {found}, this version reads format {FORMAT}")
        try:
            return Manifest(**value)._checked()
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidCheckpoint(f"its manifest does not fit its format ({error})") from error

    def _checked(self) -> Manifest:
        parts = self.parts
        if not parts or parts != [part_name(i, len(parts)) for i in range(len(parts))]:
            raise InvalidCheckpoint(f"its manifest names the parts {parts}")
        for name in self.extras:
            if not _EXTRA.fullmatch(name):
                raise InvalidCheckpoint(f"its manifest names a file {name!r}")
        for entry in self.files.values():
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise TypeError(f"{entry} is not a size and sha256")
        return self


def _canonical(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
