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

    known = {m.name for m in client.search_registered_models(f"name = '{name}'")}
    if name not in known:
        client.create_registered_model(name)
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(FINGERPRINT) == fingerprint:
            return str(version.version)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with mlflow.start_run(run_id=run):
        model = mlflow.pyfunc.log_model(
            name="ensemble",
            python_model=str(CODE),
            artifacts={"ensemble": str(folder / MANIFEST)},
            pip_requirements=["ediffi"],
        )
    # Not log_model's own registering, which prints as it goes.
    made = client.create_model_version(
        name,
        source=model.model_uri,
        run_id=run,
        tags={FINGERPRINT: fingerprint},
        model_id=model.model_id,
    )
    client.set_registered_model_alias(name, "candidate", made.version)
    return str(made.version)
