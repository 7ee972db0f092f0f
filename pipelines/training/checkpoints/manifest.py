"""A checkpoint's manifest: written last, it says what belongs to the checkpoint and proves it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.store.artifacts import sha256
from pipelines.training.process_group import Unsound

MANIFEST = "checkpoint.json"
"""Named apart from a node's, whose folder the checkpoint lies in."""

FORMAT = 1

_PART = re.compile(r"part-(\d{5})-of-(\d{5})\.safetensors")
_EXTRA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def part_name(rank: int, size: int) -> str:
    return f"part-{rank:05d}-of-{size:05d}.safetensors"


def is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def in_words(name: str) -> str:
    found = _PART.fullmatch(name)
    return f"part {int(found[1])}" if found else name


def checked_extra(name: str) -> str:
    """The name of a file that a checkpoint may hold beside its parts; ValueError for another."""
    if not _EXTRA.fullmatch(name) or is_part(name) or name == MANIFEST:
        raise ValueError(
            f"a checkpoint cannot hold a file {name!r}; use letters, digits, '.', '_' and '-', "
            f"and neither {MANIFEST} nor a part's name"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Manifest:
    fingerprint: str
    """Of the node that the checkpoint is of."""

    images: int
    """How many images it had seen."""

    milestone: bool
    """Whether it is kept however old it is."""

    note: Any
    """What the caller wants back: JSON."""

    files: Mapping[str, Mapping[str, Any]]
    """Name → ``bytes`` and ``sha256`` of every file but this one."""

    @property
    def parts(self) -> list[str]:
        return sorted(filter(is_part, self.files))

    @property
    def extras(self) -> list[str]:
        return sorted(name for name in self.files if not is_part(name))

    def to_bytes(self) -> bytes:
        """The only bytes that say this; they hold the sha256 of what they would be without it."""
        rest = {"format": FORMAT, **asdict(self)}
        return _canonical({**rest, "sha256": sha256(_canonical(rest))})

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Unsound if a single bit of it is not as it was written."""
        try:
            value = json.loads(data)
        except ValueError as error:
            raise Unsound(f"its manifest cannot be read ({error})") from error
        if not isinstance(value, dict) or "sha256" not in value or "format" not in value:
            raise Unsound("its manifest is none of a checkpoint")
        claimed = value.pop("sha256")
        # Compared as bytes: a flip may leave the value as it was, as \u00e9 and \u00E9 are one.
        proven = _canonical({**value, "sha256": sha256(_canonical(value))})
        if claimed != sha256(_canonical(value)) or data != proven:
            raise Unsound("its manifest has another sha256 than it says")
        if (found := value.pop("format")) != FORMAT:
            raise Unsound(f"its format {found} is not {FORMAT}, which this version reads")
        try:
            return Manifest(**value)._checked()
        except (TypeError, KeyError, AttributeError) as error:
            raise Unsound(f"its manifest is not of its format ({error})") from error

    def _checked(self) -> Manifest:
        parts = self.parts
        if not parts or parts != [part_name(i, len(parts)) for i in range(len(parts))]:
            raise Unsound(f"its manifest names the parts {parts}")
        for name in self.extras:
            if not _EXTRA.fullmatch(name):
                raise Unsound(f"its manifest names a file {name!r}")
        for entry in self.files.values():
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise TypeError(f"{entry} is no size and sha256")
        return self


def _canonical(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
