"""The ensemble as a registered model: ``mlflow.pyfunc.load_model("models:/NAME@candidate")``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.model import MANIFEST

CODE = Path(__file__).with_name("pyfunc_model.py")
FINGERPRINT = "ediffi.fingerprint"


def register(client: Any, uri: str, name: str, run: str, folder: Path, fingerprint: str) -> str:
    """Registers an ensemble once per fingerprint, as ``candidate``; → its version.

    The model's files are its code and ``ensemble.json``, which points into the store: the weights
    are not copied.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        known = client.search_model_versions(f"name = '{name}'")
    except MlflowException:
        known = []
    for version in known:
        if version.tags.get(FINGERPRINT) == fingerprint:
            return str(version.version)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with mlflow.start_run(run_id=run):
        info = mlflow.pyfunc.log_model(
            name="ensemble",
            python_model=str(CODE),
            artifacts={"ensemble": str(folder / MANIFEST)},
            pip_requirements=["ediffi"],
            registered_model_name=name,
        )
    version = str(info.registered_model_version)
    client.set_model_version_tag(name, version, FINGERPRINT, fingerprint)
    client.set_registered_model_alias(name, "candidate", version)
    return version
