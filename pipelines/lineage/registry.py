"""Ensembles as a registered model: ``mlflow.pyfunc.load_model("models:/NAME@champion")``.

This is a copy of the store's own registry (:mod:`pipelines.models.champions`) and can be made again
at any time.

MLflow stores only data, no code and no pickle. Its ``load_model``, however, imports modules that
the files name: whoever can write to MLflow's artifact store can run code on the machine that loads
a model. ``ediffi sample`` reads only the JSON file.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.models.champions import MANIFEST, Entry, Registry, read
from pipelines.store.artifacts import Store

FINGERPRINT = "ediffi.fingerprint"
EXAMPLE = {
    "prompt": ["a red seven left of a green two", "a blue three"],
    "seed": [0, 7],
    "guidance": [1.5, None],
    "paint": ['[{"phrase": "a red seven", "where": [0, 0, 0.5, 1], "strength": 0.4}]', None],
}


def mirror(
    client: Any,
    experiment: str,
    store: Store,
    name: str,
    offered: Mapping[str, str] | None = None,
) -> None:
    """Bring MLflow's versions, tags and aliases up to date with the store; idempotent.

    Args:
        client: an ``MlflowClient``.
        experiment: id of the experiment that keeps the model's files.
        name: name of the model, which is the pipeline's.
        offered: an execution's ensemble (``fingerprint``, ``folder``, ``execution``), for a store
            that has no registry file yet.
    """
    book = read(store, name)
    if not book.history and offered:
        entry = Entry(
            fingerprint=offered["fingerprint"],
            folder=offered["folder"],
            why="from the last run",
            by=f"run {offered['execution']}",
        )
        book = Registry(candidate=entry, history=(entry,))
    if not book.history:
        return
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    there = {v.tags.get(FINGERPRINT): v for v in client.search_model_versions(f"name = '{name}'")}
    versions: dict[str, str] = {}
    for fingerprint, entry in book.versions.items():
        file = f"{entry.folder}/{MANIFEST}"
        if fingerprint not in there and store.size(file) is None:
            continue  # the ensemble was removed from the store
        found = there.get(fingerprint) or _add(client, experiment, name, entry, store.local(file))
        versions[fingerprint] = str(found.version)
        for key, value in tags(book, fingerprint).items():
            if found.tags.get(key) != value:
                client.set_model_version_tag(name, found.version, key, value)
    aliases = {a: str(v) for a, v in client.get_registered_model(name).aliases.items()}
    for alias, held in (("candidate", book.candidate), ("champion", book.champion)):
        version = versions.get(held.fingerprint) if held else None
        if version and aliases.get(alias) != version:
            client.set_registered_model_alias(name, alias, version)


def forget(client: Any, name: str, fingerprints: Collection[str]) -> int:
    """Delete MLflow's versions of ensembles that are no longer in the store.

    Args:
        client: an ``MlflowClient``.
        name: name of the model.
        fingerprints: of the ensembles.

    Returns:
        How many versions there were.
    """
    found = client.search_model_versions(f"name = '{name}'")
    gone = [v for v in found if v.tags.get(FINGERPRINT) in fingerprints]
    for version in gone:
        client.delete_model_version(name, version.version)
    return len(gone)


def tags(book: Registry, fingerprint: str) -> dict[str, str]:
    """Tags of a version: its fingerprint and folder, the gate's metrics, and its history."""
    events = [e for e in book.history if e.fingerprint == fingerprint]
    last, numbers = events[-1], {k: v for e in events for k, v in e.numbers.items()}
    return {
        FINGERPRINT: fingerprint,
        "ediffi.folder": last.folder,
        "ediffi.version": str(book.version(fingerprint)),
        "ediffi.why": last.why,
        "ediffi.history": "\n".join(f"{e.when} {e.what} by {e.by}: {e.why}" for e in events),
        **{f"ediffi.gate/{key}": f"{value:.6g}" for key, value in numbers.items()},
    }


def _add(client: Any, experiment: str, name: str, entry: Entry, manifest: Path) -> Any:
    """Create a version: files in the experiment's folder, and an entry that points to them.

    This uses the client alone, because MLflow's ``log_model`` needs the process's current run and
    address, ends that run, and prints. The weights stay in the store.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = next(_runs(client, experiment, entry), None)
    model = client.create_logged_model(experiment, name="ensemble", source_run_id=run)
    with tempfile.TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(
            path=f"{folder}/model",
            # No code file and no pickle: the installed package reads the data.
            loader_module="pipelines.models.pyfunc",
            data_path=str(manifest),
            signature=signature(),
            input_example=example(),
            pip_requirements=[requirement()],
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                model_id=model.model_id,
                run_id=run,
            ),
        )
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")
    if run:
        client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])
    # Without a run, a database looks up the model id in the process's own MLflow, maybe another.
    is_known = run or client.tracking_uri.startswith("http")
    return client.create_model_version(
        name,
        source=model.artifact_location,
        run_id=run,
        tags={FINGERPRINT: entry.fingerprint},
        model_id=model.model_id if is_known else None,
    )


def _runs(client: Any, experiment: str, entry: Entry) -> Iterator[str]:
    """Id of the run of the execution that offered the ensemble, if this MLflow has it."""
    execution = entry.by.removeprefix("run ")
    where = f"tags.`ediffi.execution` = '{execution}'"
    for run in client.search_runs([experiment], where) if execution != entry.by else ():
        if "ediffi.node" not in run.data.tags:
            yield run.info.run_id


def signature() -> Any:
    """Model signature: a row has a prompt and options; the output is a PNG image in base64."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    from pipelines.models.rows import OPTIONS

    anything: Any = AnyType
    options = [ColSpec(anything(), name, required=False) for name in OPTIONS]
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt"), *options]),
        outputs=Schema([ColSpec("string", "png")]),
        params=ParamSchema([ParamSpec("stage", "string", None)]),
    )


def example() -> Any:
    """An input example, as a data frame."""
    import pandas as pd

    return pd.DataFrame(EXAMPLE)


def requirement() -> str:
    """The pip requirement of a model: this package in its version.

    Its wheel must be where pip finds it: an index of your own, or a folder (``PIP_FIND_LINKS``).
    With ``--env-manager local`` nothing is installed.
    """
    try:
        return f"ediffi=={importlib.metadata.version('ediffi')}"
    except importlib.metadata.PackageNotFoundError:  # a source tree that is only on the Python path
        return "ediffi"
