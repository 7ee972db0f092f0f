"""Copy a registered model to MLflow outside a run, as after ``ediffi promote``."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from pipelines.lineage.address import to_connect, to_keep, tracking_uri
from pipelines.lineage.registry import forget, mirror
from pipelines.lineage.writer import Writer
from pipelines.runs.execution import Execution, latest
from pipelines.store.artifacts import Store


def registry_uri(store: Store, name: str) -> str:
    """Address of the MLflow that has a model: from the environment, its last run, or the store."""
    last = latest(store, name)
    known = last.tracking.get("uri") if last and not _is_of_original(last, store) else None
    if known and not os.environ.get("MLFLOW_TRACKING_URI"):
        return to_connect(known)
    return tracking_uri(None, store)


def _is_of_original(run: Execution, store: Store) -> bool:
    """Whether a run's MLflow is the SQLite file of a store that this one is a copy of.

    The copy must not write into the record of the original, which may also be gone.
    """
    uri = str(run.tracking.get("uri"))
    original = Store.at(uri.removeprefix("sqlite:///").rpartition("/")[0])
    if not store.is_local or uri != f"sqlite:///{original.root}/mlflow.db":
        return False
    is_gone = not Path(original.root).is_dir()
    has_run = original.size(f"executions/{run.id}.json") is not None
    return original.root != store.root and (is_gone or has_run)


def sync_model(store: Store, name: str) -> str:
    """Copy a model's versions and aliases to MLflow; → its address. Raises what MLflow raises."""
    uri = registry_uri(store, name)
    writer = Writer(uri, name, "", store)
    mirror(writer.client, writer.experiment, store, name)
    return to_keep(uri)


def forget_versions(store: Store, name: str, fingerprints: Collection[str]) -> int:
    """Delete MLflow's versions of ensembles that were removed; → how many. Raises what MLflow
    raises."""
    writer = Writer(registry_uri(store, name), name, "", store)
    return forget(writer.client, name, fingerprints)
