"""The ensemble that is in use, as a new one's plan sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dag.node import Given
from pipelines.models import champions
from pipelines.store.artifacts import Store


class LostError(ValueError):
    """A part of the champion is not in the store any more."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    fingerprint: str
    """Of the node that promoted it."""

    manifest: Mapping[str, Any]
    """Its ``ensemble.json``."""

    settings: Mapping[str, Mapping[str, Any]]
    """``stage/seat`` → how whoever sits there was trained."""

    @staticmethod
    def standing(store: Store, model: str) -> Champion | None:
        """The one that a new ensemble has to beat, if there is one.

        ValueError if the store has lost a part of it.
        """
        entry = champions.read(store, model).champion
        return Champion.of(store, entry.folder, entry.fingerprint) if entry else None

    @staticmethod
    def to_beat(store: Store, model: str) -> Champion | None:
        """The same, but none where a part is lost: a run may well be what makes it again."""
        try:
            return Champion.standing(store, model)
        except LostError:
            return None

    @staticmethod
    def of(store: Store, folder: str, fingerprint: str) -> Champion:
        """ValueError if the store has lost a part of it."""
        manifest = store.read_json(f"{folder}/{champions.MANIFEST}")
        if manifest is None or "data" not in manifest:
            raise LostError(
                f"the champion in {store.full(folder)} is lost, or of an older format; run its "
                "pipeline again and promote the result"
            )
        settings = {}
        for seat, of in manifest["weights"].items():
            place = of["path"].rpartition("/")[0]
            trained = store.read_json(f"{place}/manifest.json")
            if trained is None:
                raise LostError(f"the champion's {seat} in {store.full(place)} is lost")
            settings[seat] = trained["settings"]
        return Champion(fingerprint=fingerprint, manifest=manifest, settings=settings)

    @property
    def stages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.manifest["stages"]
        return found

    def seats(self, stage: Mapping[str, Any]) -> dict[str, Given]:
        """Seat → the training that made whoever works there."""
        found = {}
        for seat in stage["experts"]:
            of = self.manifest["weights"][f"{stage['name']}/{seat}"]
            folder = of["path"].rpartition("/")[0]
            found[seat] = Given(folder=folder, fingerprint=of["fingerprint"])
        return found

    def data(self, split: str) -> Given:
        """What it was trained on, or measured with."""
        return Given(**self.manifest["data"][split])

    @property
    def trained_with(self) -> dict[str, Any]:
        """The identity of the encoders of its data."""
        found: dict[str, Any] = self.manifest["trained_with"]
        return found
