"""Finds a trained ensemble by the names that people give it."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.models import champions
from pipelines.runs.execution import latest
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
