"""Keys of a spec that have a new name. The old name works for one more version."""

from __future__ import annotations

from dataclasses import dataclass


class SpecWarning(FutureWarning):
    """A spec uses the old name of a key. The next version will not accept it."""


@dataclass(frozen=True)
class Renamed:
    """Marks a field that had another name: ``Annotated[float | None, Renamed("leap")]``.

    A spec may use the old name for one more version, with a :class:`SpecWarning`. Nodes store the
    field under its old name for good, because fingerprints depend on it.
    """

    old: str
