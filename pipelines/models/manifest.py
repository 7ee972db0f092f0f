"""The manifest of a trained ensemble: ``ensemble.json``, which a promote node writes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.models.champions import MANIFEST
from pipelines.spec.sampling import Sampling
from pipelines.store.artifacts import Store

KEYS = ("model", "store", "stages", "weights", "encoders_folder", "encoders")
"""What every manifest has."""


def read_manifest(file: str | Path, storage: str | None = None) -> dict[str, Any]:
    """Read an ``ensemble.json``.

    Args:
        storage: Folder or URL of a store that may have the ensemble.

    Returns:
        What the file holds. ``store`` is where its weights are: a store may have been copied or
        moved since it was written.

    Raises:
        ValueError: There is no such file, it is of another kind or not what its node wrote, or its
            store is gone.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no ensemble at {file}; give the path of its {MANIFEST}")
    Store.at(str(path.parent)).verified(path.name)
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if missing := [key for key in KEYS if key not in found]:
            raise ValueError(f"it has no {missing[0]}")
        names = {f"{s['name']}/{slot}" for s in found["stages"] for slot in s["experts"]}
        if not names or names - set(found["weights"]):
            raise ValueError("its stages and weights do not fit")
        paths = {found["weights"][name]["path"] for name in names}
        if outside := sorted(p for p in {*paths, *folders(found)} if not in_nodes(p)):
            raise ValueError(f"it names {outside[0]!r}, which is outside the store's nodes")
        named = Store.at(found["store"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not an ensemble manifest ({error})") from error
    return {**found, "store": _place_of(paths, path, storage, named).root}


def in_nodes(path: str) -> bool:
    """Whether a path in a store leads to a node's files and nowhere else."""
    parts = path.split("/")
    return parts[0] == "nodes" and not {"", ".", ".."} & set(parts) and "\\" not in path


def folders(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Folders of nodes that a manifest names besides those of its weights."""
    if (encoders := manifest.get("encoders_folder")) is not None:
        yield encoders
    for given in manifest.get("data", {}).values():
        yield given["folder"]


def _place_of(paths: Collection[str], file: Path, storage: str | None, named: Store) -> Store:
    """The store of an ensemble: around its manifest, else as given, else as named there."""
    given = [storage] if storage else []
    for root in (*map(str, file.absolute().parents), *given):
        store = Store.at(root)
        if all(store.size(path) is not None for path in paths):
            return store
    if named.is_local and not Path(named.root).is_dir():
        raise ValueError(
            f"{named.root}, which has the weights of {file}, is gone; name the place that it was "
            "moved to with --storage"
        )
    return named


def own_sampling(stages: Sequence[Mapping[str, Any]]) -> dict[str, Sampling]:
    """Stage → the ensemble's own sampling settings."""
    return {s["name"]: Sampling.from_settings(s["sampling"]) for s in stages}


def check_sampling(stages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Sampling]) -> None:
    """Check settings against the stages of a manifest, before any weights are loaded.

    Warns:
        SamplingWarning: A setting has no effect.

    Raises:
        ValueError: Guidance is set for an expert that the ensemble has not.
    """
    for stage in stages:
        settings, experts = sampling[stage["name"]], stage["experts"]
        if unknown := sorted(set(settings.guidance.experts) - set(experts)):
            raise ValueError(
                f"guidance for {', '.join(unknown)}, but the ensemble has {', '.join(experts)}"
            )
        settings.warn_ineffective(
            stage["name"], resolution=stage["resolution"], experts=list(experts)
        )
