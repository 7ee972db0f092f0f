"""The manifest of a trained ensemble: ``ensemble.json``, which a promote node writes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.models import champions
from pipelines.models.champions import MANIFEST
from pipelines.spec.names import check_name
from pipelines.spec.sampling import Sampling
from pipelines.store.artifacts import MANIFEST as NODE_MANIFEST
from pipelines.store.artifacts import Store, sha256
from pipelines.store.dataset import FILE

KEYS = ("model", "store", "stages", "weights", "encoders_folder", "encoders")
"""What every manifest has."""


class NodeMissing(ValueError):
    """The store lacks a node that an ensemble was made with."""


def read_manifest(file: str | Path, storage: str | None = None) -> dict[str, Any]:
    """Read an ``ensemble.json``.

    Args:
        storage: Folder or URL of a store that may have the ensemble.

    Returns:
        What the file holds. ``store`` is where its weights are: a store may have been copied or
        moved since it was written.

    Raises:
        ValueError: There is no such file, it is of another kind, not what its node wrote or not
            what was registered, or its store is gone; or it must be signed, and is not.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no ensemble at {file}; give the path of its {MANIFEST}")
    Store.at(str(path.parent)).verified(path.name)
    data = path.read_bytes()
    try:
        found: dict[str, Any] = json.loads(data)
        if missing := [key for key in KEYS if key not in found]:
            raise ValueError(f"it has no {missing[0]}")
        names = {f"{s['name']}/{slot}" for s in found["stages"] for slot in s["experts"]}
        if not names or names - set(found["weights"]):
            raise ValueError("its stages and weights do not fit")
        paths = {found["weights"][name]["path"] for name in names}
        if outside := sorted(p for p in {*paths, *folders(found)} if not in_nodes(p)):
            raise ValueError(f"it names {outside[0]!r}, which is outside the store's nodes")
        named = Store.at(found["store"])
        model = check_name(found["model"], "name of a model")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not an ensemble manifest ({error})") from error
    store = _place_of(paths, path, storage, named)
    champions.check(store, model, data, str(file), fingerprint_of(path, model))
    return {**found, "store": store.root}


def fingerprint_of(file: Path, model: str) -> str | None:
    """The fingerprint in the name of an ``ensemble.json``'s folder, if it is that of a node."""
    found = re.fullmatch(rf"{re.escape(model)}-([0-9a-f]{{16}})", file.absolute().parent.name)
    return found[1] if found else None


def node_sha256(node: Mapping[str, Any]) -> str:
    """Hex digest of what a node's manifest says of its settings, inputs and lasting files.

    Times and logs are left out, so a node that was lost and made again has the same; so are
    weights, which have a sha256 of their own in an ensemble's manifest.
    """
    kept = {
        name: of["sha256"]
        for name, of in node["files"].items()
        if node["kind"] == "encoders" or name == FILE
    }
    said = {key: node[key] for key in ("kind", "name", "fingerprint", "settings", "inputs")}
    return sha256(json.dumps([said, kept], sort_keys=True).encode())


def node_hashes(store: Store, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Folder → :func:`node_sha256` of every node that an ensemble's manifest names."""
    named = {
        *folders(manifest),
        *(w["path"].rpartition("/")[0] for w in manifest["weights"].values()),
    }
    return {folder: node_sha256(store.read_json(f"{folder}/{NODE_MANIFEST}")) for folder in named}


def checked_node(store: Store, manifest: Mapping[str, Any], folder: str) -> dict[str, Any] | None:
    """The manifest of a node that an ensemble's manifest names, compared with the hash there.

    Ensembles of earlier releases have no hashes. For theirs nothing is compared, and None is
    returned if the store has no manifest.

    Raises:
        NodeMissing: The store has no manifest to compare.
        ValueError: It differs, or is damaged.
    """
    path = f"{folder}/{NODE_MANIFEST}"
    node: dict[str, Any] | None = store.read_json(path)
    wanted = manifest.get("nodes", {}).get(folder)
    if wanted is None:
        return node
    if node is None:  # then its files could be any
        raise NodeMissing(f"{store.full(path)} is missing; run its pipeline again")
    try:
        found = node_sha256(node)
    except (KeyError, TypeError, AttributeError):
        found = "damaged"
    if found != wanted:
        raise ValueError(
            f"{store.full(path)} is not what the ensemble of {manifest['model']} was made with; "
            "restore it, or remove its folder and run its pipeline again"
        )
    return node


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
