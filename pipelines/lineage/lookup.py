"""Finds a trained ensemble by the names that people give it."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.models import champions
from pipelines.models.manifest import read_manifest
from pipelines.models.metadata import ModelId, manifest_hash
from pipelines.runs.execution import by_id, latest
from pipelines.store.artifacts import Store


def find_model(model: str, storage: str) -> Path:
    """The path of an ensemble's ``ensemble.json``.

    Args:
        model: The file itself, a pipeline's name, ``NAME@WHICH`` or ``models:/NAME@ALIAS``
            of MLflow's registry.
        storage: Folder or URL of the store.

    Raises:
        ValueError: There is no such ensemble.
    """
    if model.endswith(".json"):
        return Path(model)
    store = Store.at(storage).check_access()
    if model.startswith("models:/"):
        return _registered(model, store)
    name, at, which = model.rpartition("@")
    if at:
        entry = champions.read(store, name).find(name, which)
        return store.local(f"{entry.folder}/ensemble.json")
    execution = latest(store, model)
    if execution is None:
        raise ValueError(
            f"{model!r} is neither an ensemble.json, nor a models:/ address, nor a pipeline in "
            f"{store.root}"
        )
    record = execution.nodes.get(f"promote/{model}", {})
    if record.get("state") not in ("done", "reused"):
        raise ValueError(f"{model} has no finished ensemble yet; see `ediffi status`")
    return store.local(f"{record['folder']}/ensemble.json")


def find_drawn_by(model: ModelId, storage: str) -> Path:
    """The path of the ``ensemble.json`` of an ensemble that drew a picture.

    Raises:
        ValueError: The store does not have it.
    """
    store = Store.at(storage).check_access()
    file = f"nodes/promote/{model.name}-{model.fingerprint}/{champions.MANIFEST}"
    if model.fingerprint and store.size(file) is not None:
        return store.local(file)
    raise ValueError(
        f"{model}, which drew the picture, is not in {store.root}; give its store with --storage, "
        "or name a MODEL"
    )


def identify(place: Path) -> ModelId:
    """What an ensemble is, from its ``ensemble.json`` and the store that the file names."""
    manifest = read_manifest(place)
    store, name = Store.at(manifest["store"]), manifest["model"]
    content = manifest_hash(manifest)
    book = champions.read(store, name)
    fingerprint = _fingerprint(place, name) or next(
        (f for f, e in book.versions.items() if _holds(store, e.folder, content)), None
    )
    entry = book.versions.get(fingerprint or "")
    if fingerprint is None or entry is None:
        return ModelId(name=name, manifest=content, fingerprint=fingerprint)
    run = entry.by.removeprefix("run ") if entry.by.startswith("run ") else None
    execution = by_id(store, run) if run else None
    return ModelId(
        name=name,
        manifest=content,
        fingerprint=fingerprint,
        version=book.version(fingerprint),
        run=run,
        mlflow_run=execution.tracking.get("run") if execution else None,
    )


def _fingerprint(place: Path, name: str) -> str | None:
    """The fingerprint in the name of the folder, if it is that of a node."""
    found = re.fullmatch(rf"{re.escape(name)}-([0-9a-f]{{16}})", place.absolute().parent.name)
    return found[1] if found else None


def _holds(store: Store, folder: str, content: str) -> bool:
    there = store.read_json(f"{folder}/{champions.MANIFEST}")
    return there is not None and manifest_hash(there) == content


def _registered(model: str, store: Store) -> Path:
    """The ``ensemble.json`` of a registered model. Nothing from the registry is executed."""
    from pipelines.lineage.address import quiet_mlflow
    from pipelines.lineage.sync import registry_uri

    mlflow = quiet_mlflow()
    uri = registry_uri(store, re.split("[@/]", model.removeprefix("models:/"))[0])
    mlflow.set_tracking_uri(uri)
    try:
        return next(Path(mlflow.artifacts.download_artifacts(model)).rglob("ensemble.json"))
    except (mlflow.exceptions.MlflowException, StopIteration) as error:
        raise ValueError(f"{model} is not in the registry at {uri} ({error})") from error
