"""Finds a trained model by the names that people give it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipelines.evaluation.subject import Subject
from pipelines.models import champions
from pipelines.models.manifest import checked_node, fingerprint_of, folders, read_manifest
from pipelines.models.metadata import ModelId, manifest_hash
from pipelines.runs.execution import by_id, latest
from pipelines.spec.names import NAME_PATTERN, check_name
from pipelines.steps.ensemble_weights import located
from pipelines.store.artifacts import MANIFEST, Store

MODEL_OF_PIPELINE = re.compile(rf"({NAME_PATTERN[1:-1]})/([a-z][a-z0-9_]*)")
"""A pipeline, and what of it is evaluated: ``ensemble``, ``root``, ``single``, ``merged``, a
baseline or a routing."""


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
    store = Store.existing(storage)
    if model.startswith("models:/"):
        return _registered(model, store)
    name, at, which = model.rpartition("@")
    if at:
        entry = champions.read(store, name).find(name, which)
        return _registered_file(store, name, entry.folder, entry.fingerprint)
    execution = latest(store, model)
    if execution is None:
        raise ValueError(
            f"{model!r} is neither an ensemble.json, nor a models:/ address, nor a pipeline in "
            f"{store.root}"
        )
    record = execution.nodes.get(f"promote/{model}", {})
    if record.get("state") not in ("done", "reused"):
        raise ValueError(f"{model} has no finished ensemble yet; see `ediffi status`")
    folder = record["folder"]
    return _registered_file(store, model, folder, folder.rpartition("-")[2])


def _registered_file(store: Store, model: str, folder: str, fingerprint: str) -> Path:
    """The ``ensemble.json`` in a promote node's folder, which is what the registry says."""
    path = f"{folder}/{champions.MANIFEST}"
    file = store.verified(path)
    if file.is_file():  # reading it reports that it is missing
        champions.check(store, model, file.read_bytes(), store.full(path), fingerprint)
    return file


def find_drawn_by(model: ModelId, storage: str) -> Path:
    """The path of the ``ensemble.json`` of an ensemble that drew a picture.

    Raises:
        ValueError: The store does not have it.
    """
    store = Store.existing(storage)
    check_name(model.name, "name of a model")  # a picture says it, whoever wrote it
    file = f"nodes/promote/{model.name}-{model.fingerprint}/{champions.MANIFEST}"
    if model.fingerprint and store.size(file) is not None:
        return _registered_file(store, model.name, file.rpartition("/")[0], model.fingerprint)
    raise ValueError(
        f"{model}, which drew the picture, is not in {store.root}; give its store with --storage, "
        "or name a MODEL"
    )


def identify(place: Path, storage: str | None = None) -> ModelId:
    """What an ensemble is, from its ``ensemble.json`` and its store."""
    manifest = read_manifest(place, storage)
    store, name = Store.at(manifest["store"]), manifest["model"]
    content = manifest_hash(manifest)
    book = champions.read(store, name)
    fingerprint = fingerprint_of(place, name) or next(
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


def _holds(store: Store, folder: str, content: str) -> bool:
    there = store.read_json(f"{folder}/{champions.MANIFEST}")
    return there is not None and manifest_hash(there) == content


def _registered(model: str, store: Store) -> Path:
    """The ``ensemble.json`` of a registered model. Nothing from the registry is executed."""
    from pipelines.lineage.address import quiet_mlflow, to_keep
    from pipelines.lineage.delivery import one_line
    from pipelines.lineage.sync import registry_uri

    mlflow = quiet_mlflow()
    uri = registry_uri(store, re.split("[@/]", model.removeprefix("models:/"))[0])
    mlflow.set_tracking_uri(uri)
    try:
        return next(Path(mlflow.artifacts.download_artifacts(model)).rglob("ensemble.json"))
    except (mlflow.exceptions.MlflowException, StopIteration) as error:
        raise ValueError(
            f"{model} is not in the registry at {to_keep(uri)} ({one_line(error)})"
        ) from error


def find_subject(model: str, storage: str) -> Subject:
    """Find a model to evaluate.

    Args:
        model: As for :func:`find_model`; or ``NAME/GROUP`` for a model that the last run of a
            pipeline has evaluated beside its ensemble, such as ``root``, ``single``, ``merged``, a
            baseline or a routing; of its first stage that has one.
        storage: Folder or URL of the store.

    Raises:
        ValueError: There is no such model.
    """
    if found := MODEL_OF_PIPELINE.fullmatch(model):
        name, group = found.groups()
        if group != "ensemble":
            return _beside_ensemble(model, name, group, Store.existing(storage))
        model = name
    manifest = read_manifest(find_model(model, storage), storage)
    store = Store.at(manifest["store"])
    for folder in folders(manifest):
        checked_node(store, manifest, folder)
    return Subject(
        name=model,
        pipeline=manifest["model"],
        store=store,
        stages=manifest["stages"],
        weights=manifest["weights"],
        trained_with=manifest.get("trained_with") or {},
        data={split: of["folder"] for split, of in manifest.get("data", {}).items()},
        manifest=manifest,
    )


def _beside_ensemble(model: str, pipeline: str, group: str, store: Store) -> Subject:
    """A model that the pipeline's last run evaluated beside its ensemble."""
    execution = latest(store, pipeline)
    if execution is None:
        raise ValueError(f"there is no pipeline {pipeline!r} in {store.root}")
    done = [
        record["folder"]
        for node, record in execution.nodes.items()
        if re.fullmatch(rf"evaluate/[^/]+/{group}", node)
        if record.get("state") in ("done", "reused")
    ]
    manifest = store.read_json(f"{done[0]}/{MANIFEST}") if done else None
    if manifest is None:
        hint = "; write `single:` in the spec's stage" if group == "single" else ""
        raise ValueError(f"the last run of {pipeline} has evaluated no {group} model{hint}")
    folders = {role: folder_of(given) for role, given in manifest["inputs"].items()}
    manifests: dict[str, Any] = {
        role: store.read_json(f"{folder}/{MANIFEST}")
        for role, folder in folders.items()
        if folder.startswith(("nodes/train/", "nodes/adopt/", "nodes/merge/"))
    }
    if lost := [folders[role] for role, found in manifests.items() if found is None]:
        raise ValueError(f"{model} is missing from {store.full(lost[0])}; run its pipeline again")
    stages = manifest["settings"]["stages"]
    return Subject(
        name=model,
        pipeline=pipeline,
        store=store,
        stages=stages,
        weights=located(manifests, stages, folders),
        trained_with=manifest["info"]["encoders"],
        data={"validation": folders["validation"]},
    )


def last_evaluation(pipeline: str, stage: str, store: Store) -> dict[str, Any] | None:
    """Manifest of the ensemble's evaluation in the last run of a pipeline; None if there is none.

    Args:
        stage: Name of the stage that it evaluated.
    """
    execution = latest(store, pipeline)
    record = execution.nodes.get(f"evaluate/{stage}/ensemble", {}) if execution else {}
    found: dict[str, Any] | None = (
        store.read_json(f"{record['folder']}/{MANIFEST}") if "folder" in record else None
    )
    return found


def folder_of(given: dict[str, str]) -> str:
    """Folder in the store of an input, as a manifest names it."""
    return f"nodes/{given['node']}-{given['fingerprint']}"
