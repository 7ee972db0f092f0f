"""Mirrors a registered model into MLflow outside a run, as after ``ediffi promote``."""

from __future__ import annotations

import os

from pipelines.lineage.address import tracking_uri
from pipelines.lineage.registry import mirror
from pipelines.lineage.writer import Writer
from pipelines.runs.execution import latest
from pipelines.store.artifacts import Store


def address(store: Store, name: str) -> str:
    """The MLflow that has a model: the environment's, its last run's, or the store's own."""
    last = latest(store, name)
    told = last.tracking.get("uri") if last else None
    return os.environ.get("MLFLOW_TRACKING_URI") or told or tracking_uri(None, store)


def sync(store: Store, name: str) -> str:
    """Mirrors a model now, outside a run; → the MLflow's address. Raises what MLflow raises."""
    uri = address(store, name)
    writer = Writer(uri, name, "", store)
    mirror(writer.client, writer.experiment, store, name)
    return uri
