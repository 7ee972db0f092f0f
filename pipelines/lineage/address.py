"""Where the record is: the address of MLflow, and its local folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pipelines.formatting import without_passwords
from pipelines.store.artifacts import Store, sha256


def tracking_uri(named: str | None, store: Store) -> str:
    """MLflow's address: from the spec, else from the environment, else a SQLite file.

    Args:
        named: the spec's ``tracking:``.
        store: the SQLite file is in its :func:`local_folder`.

    Returns:
        The address, without a server's user and password, which move to MLflow's own variables
        in the environment of this process. Do not keep it: a database's may hold a password.
    """
    if named:
        return _without_login(named)
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = _without_login(address)
        return os.environ["MLFLOW_TRACKING_URI"]
    return f"sqlite:///{local_folder(store)}/mlflow.db"


def _without_login(address: str) -> str:
    """A server's address without user and password, which move to MLflow's own variables.

    So nothing that prints or keeps the address has them. MLflow's variables come first. A
    database's password stays: it has no other place; see :func:`to_keep`.
    """
    parts = urlsplit(address)
    login, at, place = parts.netloc.rpartition("@")
    if not at or parts.scheme not in ("http", "https"):
        return address
    user, _, password = login.partition(":")
    if not {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"} & set(os.environ):
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return urlunsplit(parts._replace(netloc=place))


def to_keep(address: str) -> str:
    """An address for records and logs: without user and password, of databases too."""
    return without_passwords(address)


def to_connect(kept: str) -> str:
    """The address to connect to, of one that a record keeps.

    That in the environment if it is the same but for its password.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    return _without_login(address if to_keep(address) == kept else kept)


def local_folder(store: Store) -> Path:
    """Folder for the spool, and for MLflow's SQLite file if no MLflow is named.

    This is the store itself, or for a bucket, which cannot hold SQLite, a folder in the user's
    home. If that is lost, the next run of the pipeline writes the record again from the store.
    """
    if store.is_local:
        return Path(store.root)
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", store.root.partition("://")[2])[-60:].strip("-.")
    return Path.home() / ".local/share/ediffi" / f"{name}-{sha256(store.root.encode())[:8]}"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The MLflow runs of one execution."""

    uri: str
    """Address of MLflow."""

    experiment: str
    """Id of the experiment."""

    run_ids: Mapping[str, str]
    """Node id → run id; ``""`` stands for the execution's own run."""

    @staticmethod
    def from_tracking(tracking: Mapping[str, Any]) -> Runs | None:
        """From :attr:`Execution.tracking`; None before anything was delivered."""
        if "nodes" not in tracking:
            return None
        runs = {"": tracking["run"], **tracking["nodes"]}
        return Runs(uri=tracking["uri"], experiment=tracking["experiment"], run_ids=runs)

    def links(self) -> dict[str, dict[str, str]]:
        """Node id → ``id`` and ``address`` of its run, for :mod:`pipelines.reports.tree_page`."""
        return {
            node: {"id": run, "address": self.address(node)} for node, run in self.run_ids.items()
        }

    def address(self, node: str) -> str:
        """Web page of a node's run, without credentials; empty if MLflow is no server."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https"):
            return ""
        run = f"/#/experiments/{self.experiment}/runs/{self.run_ids[node]}"
        # Without the workflow's type MLflow shows a run as a language model's.
        return f"{without_credentials(self.uri)}{run}?workflowType=machine_learning"


def without_credentials(uri: str) -> str:
    """A server's address to be shown: without user, password, query and final slash."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def quiet_mlflow() -> Any:
    """Import mlflow, without its messages on the terminal and without its own retries.

    MLflow would retry a failed call for minutes; callers here retry themselves.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # else models include our lock file
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return mlflow
