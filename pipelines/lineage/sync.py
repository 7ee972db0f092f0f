"""Copy a registered model to MLflow outside a run, as after ``ediffi promote``."""

from __future__ import annotations

import os

from pipelines.lineage.address import tracking_uri
from pipelines.lineage.registry import mirror
from pipelines.lineage.writer import Writer
from pipelines.runs.execution import latest
from pipelines.store.artifacts import Store


def registry_uri(store: Store, name: str) -> str:
    """Address of the MLflow that has a model: from the environment, its last run, or the store."""
    last = latest(store, name)
    known = last.tracking.get("uri") if last else None
    return os.environ.get("MLFLOW_TRACKING_URI") or known or tracking_uri(None, store)


def sync_model(store: Store, name: str) -> str:
    """Copy a model's versions and aliases to MLflow; → its address. Raises what MLflow raises."""
    uri = registry_uri(store, name)
    writer = Writer(uri, name, "", store)
    mirror(writer.client, writer.experiment, store, name)
    return uri
