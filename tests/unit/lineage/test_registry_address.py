"""Which MLflow has the models of a store."""

import shutil

from pipelines.lineage.sync import registry_uri
from pipelines.runs.execution import Execution
from pipelines.store.artifacts import Store


def ran(store, uri, name="p-1"):
    """A store with one run, recorded at an address."""
    tracking = {"uri": uri, "run": "r"}
    Execution(name, "p", "f", 1, state="done", tracking=tracking).save(store)
    return store


def test_a_run_s_own_address_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, other = Store.at(str(tmp_path / "store")), Store.at(str(tmp_path / "other"))
    ran(other, "http://mlflow:5000", "p-2")
    for uri in ("http://mlflow:5000", f"sqlite:///{other.root}/mlflow.db"):
        assert registry_uri(ran(store, uri), "p") == uri


def test_a_copied_or_moved_store_leaves_the_original_s_record_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    original, copy = Store.at(str(tmp_path / "original")), Store.at(str(tmp_path / "copy"))
    ran(original, f"sqlite:///{original.root}/mlflow.db")
    shutil.copytree(original.root, copy.root)
    assert registry_uri(original, "p") == f"sqlite:///{original.root}/mlflow.db"
    assert registry_uri(copy, "p") == f"sqlite:///{copy.root}/mlflow.db"
    shutil.rmtree(original.root)
    assert registry_uri(copy, "p") == f"sqlite:///{copy.root}/mlflow.db"
