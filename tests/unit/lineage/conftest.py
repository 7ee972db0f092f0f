"""Fixtures: drivers of the smoke spec, and MLflow on a fresh database."""

import contextlib
import shutil

import pytest
from record_kit import Driver
from servers import Server

from pipelines.lineage import quiet_mlflow


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to create."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    quiet_mlflow().MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def server(fresh_database, tmp_path):
    """An MLflow server that is not started yet."""
    (tmp_path / "server").mkdir()
    shutil.copy(fresh_database, tmp_path / "server/mlflow.db")
    made = Server(tmp_path / "server/mlflow.db")
    yield made
    made.kill()


@pytest.fixture
def driver(tmp_path, fresh_database):
    """``driver(uri)`` → a driver on this test's store; without an address on a SQLite file."""
    root = tmp_path / "store"
    root.mkdir()
    shutil.copy(fresh_database, root / "mlflow.db")
    made: list[Driver] = []

    def make(*given) -> Driver:
        made.append(Driver(root, *given))
        return made[-1]

    yield make
    for each in made:
        each.lineage.delivery.finish(0, 0)
        with contextlib.suppress(OSError):  # it is closed and removed
            each.lineage.spool.close()
