"""The current champion, which a new ensemble is compared with or retrained from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dag.node import ExternalResult
from pipelines.models import champions
from pipelines.models.manifest import NodeMissing, checked_node, folders
from pipelines.store.artifacts import Store


class ChampionLostError(ValueError):
    """A part of the champion is no longer in the store."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A promoted ensemble, read from the store."""

    fingerprint: str
    """Fingerprint of the promote node that made it."""

    manifest: Mapping[str, Any]
    """Contents of its ``ensemble.json``."""

    settings: Mapping[str, Mapping[str, Any]]
    """``stage/slot`` → settings of the node that trained the slot's expert."""

    @staticmethod
    def current(store: Store, model: str) -> Champion | None:
        """The model's champion, or None if there is none.

        Raises:
            ChampionLostError: A part of it is missing from the store.
        """
        entry = champions.read(store, model).champion
        return Champion.load(store, model, entry.folder, entry.fingerprint) if entry else None

    @staticmethod
    def current_if_complete(store: Store, model: str) -> Champion | None:
        """The model's champion, or None if there is none or a part of it is missing.

        Missing parts are no error here: the run being planned may be the one that restores them.
        """
        try:
            return Champion.current(store, model)
        except ChampionLostError:
            return None

    @staticmethod
    def load(store: Store, model: str, folder: str, fingerprint: str) -> Champion:
        """Read a promoted ensemble.

        Args:
            model: name of its model.
            folder: the promote node's folder in the store.
            fingerprint: the promote node's.

        Raises:
            ChampionLostError: A part of it is missing from the store.
            ValueError: A part of it is not what was registered; or it must be signed, and is not.
        """
        path = f"{folder}/{champions.MANIFEST}"
        if data := store.read(path):
            champions.check(store, model, data, store.full(path), fingerprint)
        manifest = store.parsed(path, data)
        if manifest is None or "data" not in manifest:
            raise ChampionLostError(
                f"the champion in {store.full(folder)} is missing or in an older format; run its "
                "pipeline again and promote the result"
            )
        for node_folder in folders(manifest):
            with contextlib.suppress(NodeMissing):  # the run being planned may restore it
                checked_node(store, manifest, node_folder)
        settings = {}
        for slot, weights in manifest["weights"].items():
            node_folder = weights["path"].rpartition("/")[0]
            node_manifest: Mapping[str, Any] | None = None
            with contextlib.suppress(NodeMissing):
                node_manifest = checked_node(store, manifest, node_folder)
            if node_manifest is None:
                raise ChampionLostError(
                    f"the champion's {slot} is missing from {store.full(node_folder)}; run its "
                    "pipeline again"
                )
            named = node_manifest.get("info", {}).get("weights_sha256")
            if weights.get("sha256", named) != named:
                raise ValueError(
                    f"{store.full(node_folder)}/manifest.json names other weights than the "
                    "champion's; restore it, or remove its folder and run its pipeline again"
                )
            settings[slot] = node_manifest["settings"]
        return Champion(fingerprint=fingerprint, manifest=manifest, settings=settings)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Sampling settings of each stage, the base first."""
        found: list[dict[str, Any]] = self.manifest["stages"]
        return found

    def slots(self, stage: Mapping[str, Any]) -> dict[str, ExternalResult]:
        """Slot → result of the node that trained the expert in it.

        Args:
            stage: one of :attr:`stages`.
        """
        found = {}
        for slot in stage["experts"]:
            weights = self.manifest["weights"][f"{stage['name']}/{slot}"]
            folder = weights["path"].rpartition("/")[0]
            found[slot] = ExternalResult(folder=folder, fingerprint=weights["fingerprint"])
        return found

    def data(self, split: str) -> ExternalResult:
        """The embedded data it was trained on (``train``) or measured with (``validation``)."""
        return ExternalResult(**self.manifest["data"][split])

    @property
    def trained_with(self) -> dict[str, Any]:
        """Identity of the encoders that embedded its data."""
        found: dict[str, Any] = self.manifest["trained_with"]
        return found
