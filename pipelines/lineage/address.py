"""Which MLflow keeps the record, and where on this machine what belongs to it lies."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.store.artifacts import Store, sha256


def tracking_uri(named: str | None, store: Store) -> str:
    """The MLflow a spec names, else the environment's, else a SQLite file: see :func:`folder`."""
    address = named or os.environ.get("MLFLOW_TRACKING_URI")
    return address or f"sqlite:///{folder(store)}/mlflow.db"


def folder(store: Store) -> Path:
    """Where the record is kept if no MLflow is named, and the spool in any case: in the store.

    SQLite cannot live in a bucket, whose record is kept in a folder of this machine's. Lost with
    the machine or looked for on another, it is written again by the next run of the pipeline.
    """
    if store.is_local:
        return Path(store.root)
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", store.root.partition("://")[2])[-60:].strip("-.")
    return Path.home() / ".local/share/ediffi" / f"{name}-{sha256(store.root.encode())[:8]}"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """An execution's runs in MLflow."""

    uri: str
    experiment: str
    of_node: Mapping[str, str]
    """The execution's own is that of ``""``."""

    @staticmethod
    def of(tracking: Mapping[str, Any]) -> Runs | None:
        """From what an execution keeps of its record; None before it is delivered."""
        if "nodes" not in tracking:
            return None
        runs = {"": tracking["run"], **tracking["nodes"]}
        return Runs(uri=tracking["uri"], experiment=tracking["experiment"], of_node=runs)

    def links(self) -> dict[str, dict[str, str]]:
        """Node → ``id`` and ``address`` of its run, for :mod:`pipelines.reports.tree_page`."""
        return {
            node: {"id": run, "address": self.address(node)} for node, run in self.of_node.items()
        }

    def address(self, node: str) -> str:
        """The page of a node's run; empty where there is no server to ask. Tells no password."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https"):
            return ""
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        run = f"/#/experiments/{self.experiment}/runs/{self.of_node[node]}"
        return f"{place}{run}?workflowType=machine_learning"  # else shown as a language model's


def quiet_mlflow() -> Any:
    """The package, told to keep its news of tables, runs and files off the terminal.

    And not to try for minutes by itself what fails: who calls it tries again, and knows when.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # else a model takes the lock file here
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return mlflow
