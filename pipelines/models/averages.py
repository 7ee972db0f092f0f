"""Averages of the weights of any length after training, from snapshots (EDM2, arXiv:2312.02696).

A training with ``snapshot_images`` writes power-function averages of a few lengths into its node's
``snapshots/``. A mixture of them is the average of any other length. It is computed once and kept
beside the node, as a weights file like any other, so that residency ``disk`` reads one file and not
all snapshots.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ediffi_core import ema
from ediffi_core.checkpoint import Card, read, to_bytes
from ediffi_core.ema_length import Mix, mix_of
from pipelines.spec.sampling import Sampling, with_changes
from pipelines.store.artifacts import Store, file_sha256

SNAPSHOTS, AVERAGES = "snapshots/", "averages"
"""Folders of a training node."""

CACHE = ".cache/ediffi/averages"
"""Folder in the user's home for averages of nodes whose store is read-only. May be deleted."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One stored average."""

    path: str
    """In the store."""

    images: int
    length: float
    bytes: int
    sha256: str
    """Of the file."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training node, and the snapshots that it wrote."""

    folder: str
    name: str
    """``stage/expert``."""

    images: int
    """That the expert was trained on."""

    settings: Mapping[str, Any]
    snapshots: Sequence[Snapshot]
    """By images, then length; empty if the node was trained without ``snapshot_images``."""

    @staticmethod
    def of(store: Store, weights: str) -> Trained:
        """The node that wrote a weights file, by the file's path in the store.

        Raises:
            ValueError: The node has no manifest.
        """
        folder = weights.rpartition("/")[0]
        manifest = store.read_json(f"{folder}/manifest.json")
        if manifest is None:
            raise ValueError(f"{store.full(folder)} has no manifest; run its pipeline again")
        settings = manifest["settings"]
        given = settings["training"].get("snapshot_lengths", ())
        lengths = {f"{length:g}": length for length in given}  # names have six digits
        found = []
        for name, file in manifest["files"].items():
            if not name.startswith(SNAPSHOTS):
                continue
            stem = name.removeprefix(SNAPSHOTS).removesuffix(".safetensors")
            images, _, length = stem.partition("-")
            found.append(
                Snapshot(
                    path=f"{folder}/{name}",
                    images=int(images),
                    length=lengths.get(length, float(length)),
                    bytes=file["bytes"],
                    sha256=file["sha256"],
                )
            )
        return Trained(
            folder=folder,
            name=manifest["name"],
            images=settings["images"],
            settings=settings,
            snapshots=sorted(found, key=lambda s: (s.images, s.length)),
        )

    @property
    def last(self) -> int:
        """Images seen at the last snapshot, which averages of other lengths end at."""
        return max(s.images for s in self.snapshots)

    def mix(self, length: float) -> Mix:
        """The mixture of the snapshots that is the average of a length.

        Raises:
            ValueError: There are no snapshots, or the length lies outside (0, 0.288).
        """
        if not self.snapshots:
            stage = self.name.partition("/")[0]
            raise ValueError(
                f"{self.name} was trained without snapshots, so it has no average of length "
                f"{length:g}; set `stages.{stage}.training.snapshot_images` and train it again, or "
                "leave `ema_length` out"
            )
        return mix_of([(s.images, s.length) for s in self.snapshots], self.last, length)


def mixed(store: Store, trained: Trained, length: float) -> tuple[dict[str, Tensor], Card]:
    """Compute the average of a length.

    One snapshot is read after another, and fetched from a bucket alone. Memory holds the sum in
    float64: twice the size of float32 weights.

    Returns:
        The weights, on the CPU, and their card, without ``weights_sha256``.

    Raises:
        ValueError: There are no snapshots, or one is missing, damaged or another node's.
    """
    mix = trained.mix(length)
    cards: list[Card] = []

    def each() -> Iterator[Mapping[str, Tensor]]:
        for snapshot in trained.snapshots:
            if store.size(snapshot.path) is None:
                raise ValueError(
                    f"{store.full(snapshot.path)} is missing, a snapshot of {trained.name}; run "
                    "its pipeline again, which trains it anew, or leave `ema_length` out"
                )
            with store.fetched(snapshot.path) as file:
                weights, card = read(file)
                digest = file_sha256(file)
            name = store.full(snapshot.path)
            if (card.expert, card.images) != (trained.settings["expert"], snapshot.images):
                raise ValueError(
                    f"{name} holds {card.expert} after {card.images:,} images, and its name says "
                    f"{trained.settings['expert']} after {snapshot.images:,}; delete it and run "
                    "its pipeline again"
                )
            if digest != snapshot.sha256:
                raise ValueError(
                    f"{name} is not what {trained.name} wrote: its sha256 differs from its "
                    "manifest's; delete it and run its pipeline again"
                )
            cards.append(card)
            yield weights

    weights = ema.mixed(mix.shares, each())
    return weights, cards[-1]


def file_of(store: Store, weights: str, length: float) -> Path:
    """The local path of the file of :func:`stored`, with the same arguments."""
    place, path = stored(store, weights, length)
    return place.local(path)


def stored(store: Store, weights: str, length: float) -> tuple[Store, str]:
    """The weights file with the average of a length: its store, and its path there.

    The first call computes it, and stores it beside the node under a name that depends on length
    and snapshots; or in the user's home, if the store cannot be written.

    Args:
        weights: path of the stored weights, whose node has the snapshots.

    Raises:
        ValueError: As of :func:`mixed`.
    """
    trained = Trained.of(store, weights)
    trained.mix(length)  # an error comes before the search for a file
    path = f"{trained.folder}/{AVERAGES}/{length:g}-{_key(trained, length)}.safetensors"
    home = Store.at(str(Path.home() / CACHE))
    for place in (store, home):
        if place.size(path) is not None:
            return place, path
    data, _ = to_bytes(*mixed(store, trained, length))
    try:
        store.write(path, data)
    except OSError:  # of a bucket, too
        home.write(path, data)
        return home, path
    return store, path


def with_length(
    store: Store, manifest: Mapping[str, Any], stage: str, length: float
) -> dict[str, Any]:
    """The manifest of an ensemble that draws a stage with averages of another length.

    Args:
        manifest: contents of an ``ensemble.json``.

    Raises:
        ValueError: An expert of the stage has no snapshots, or the length lies outside (0, 0.288).
    """
    stages = []
    for settings in manifest["stages"]:
        if settings["name"] == stage:
            own = {stage: Sampling.from_settings(settings["sampling"])}
            sampling = with_changes(own, {"ema_length": length})[stage]
            for slot in settings["experts"]:
                Trained.of(store, manifest["weights"][f"{stage}/{slot}"]["path"]).mix(length)
            settings = {**settings, "sampling": sampling.settings()}
        stages.append(settings)
    return {**manifest, "stages": stages}


def _key(trained: Trained, length: float) -> str:
    """Hash of all that determines an average."""
    given = [[s.images, s.length, s.sha256] for s in trained.snapshots]
    text = json.dumps([1, length, given])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
