"""Ensembles as a registered model: ``mlflow.pyfunc.load_model("models:/NAME@champion")``.

This is a copy of the store's own registry (:mod:`pipelines.models.champions`) and can be made again
at any time.

MLflow stores only data, no code and no pickle. Its ``load_model``, however, imports modules that
the files name: whoever can write to MLflow's artifact store can run code on the machine that loads
a model. ``ediffi sample`` reads only the JSON file.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pipelines.lineage import logged_models
from pipelines.lineage.limits import whole_lines
from pipelines.lineage.logged_models import FINGERPRINT
from pipelines.lineage.pages import every
from pipelines.models.champions import MANIFEST, Entry, Registry, read
from pipelines.reports import tree as tree_view
from pipelines.store.artifacts import Store

MODEL = "ediffi.model"
"""Tag of a version with the id of its LoggedModel."""

VERSIONS = "mlflow.modelVersions"
"""Tag of a LoggedModel with its versions, which MLflow's pages show."""

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
    known = every(client.search_model_versions, f"name = '{name}'")
    there = {v.tags.get(FINGERPRINT): v for v in known}
    versions: dict[str, str] = {}
    for fingerprint, entry in book.versions.items():
        file = f"{entry.folder}/{MANIFEST}"
        if fingerprint not in there and store.size(file) is None:
            continue  # the ensemble was removed from the store
        found = there.get(fingerprint) or _add(client, experiment, store, name, entry)
        versions[fingerprint] = str(found.version)
        for key, value in tags(book, fingerprint).items():
            if found.tags.get(key) != value:
                client.set_model_version_tag(name, found.version, key, value)
        model = found.tags.get(MODEL) or _link_model(client, experiment, found, fingerprint)
        page = f"#/experiments/{experiment}/models/{model}" if model else ""
        about = describe(store, name, entry, book.version(fingerprint), page)
        if found.description != about:
            client.update_model_version(name, found.version, about)
        _tag_run(client, found.run_id, tags(book, fingerprint))
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
    found = every(client.search_model_versions, f"name = '{name}'")
    gone = [v for v in found if v.tags.get(FINGERPRINT) in fingerprints]
    for version in gone:
        client.delete_model_version(name, version.version)
    return len(gone)


def tags(book: Registry, fingerprint: str) -> dict[str, str]:
    """Tags of a version: its fingerprint and folder, the gate's metrics, and its history."""
    events = [e for e in book.history if e.fingerprint == fingerprint]
    last, numbers = events[-1], {k: v for e in events for k, v in e.numbers.items()}
    was_champion = reigns(book, fingerprint)
    return {
        FINGERPRINT: fingerprint,
        "ediffi.folder": last.folder,
        "ediffi.version": str(book.version(fingerprint)),
        "ediffi.why": last.why,
        "ediffi.history": "\n".join(f"{e.when} {e.what} by {e.by}: {e.why}" for e in events),
        **({"ediffi.champion": "\n".join(was_champion)} if was_champion else {}),
        **{f"ediffi.gate/{key}": f"{value:.6g}" for key, value in numbers.items()},
    }


def reigns(book: Registry, fingerprint: str) -> list[str]:
    """When an ensemble was the champion, oldest first: ``FROM – UNTIL``, or ``FROM – today``."""
    moves = [e for e in book.history if e.what != "offered"]
    ends = [*(e.when for e in moves[1:]), "today"]
    return [f"{e.when} – {end}" for e, end in zip(moves, ends) if e.fingerprint == fingerprint]


def _link_model(client: Any, experiment: str, version: Any, fingerprint: str) -> str | None:
    """Make an ensemble's LoggedModel and its version know each other, which a database forgets.

    Returns:
        Id of the LoggedModel; None for one that an earlier release registered.
    """
    model = logged_models.find(client, experiment, fingerprint)
    if model is None:
        return None
    known = json.loads(model.tags.get(VERSIONS, "[]"))
    mine = {"name": version.name, "version": str(version.version)}
    if mine not in known:
        client.set_logged_model_tags(model.model_id, {VERSIONS: json.dumps([*known, mine])})
    client.set_model_version_tag(version.name, version.version, MODEL, model.model_id)
    return str(model.model_id)


def describe(store: Store, name: str, entry: Entry, version: int, page: str = "") -> str:
    """The card of a version as Markdown: how to draw with it, its tree, and its measures.

    Args:
        version: As the store counts them.
        page: Address of its LoggedModel's page, if it is known.
    """
    use = (
        f'`ediffi sample {name}@{version} "a prompt"`, or in Python '
        f'`mlflow.pyfunc.load_model("models:/{name}/{version}")`, which takes the columns of the '
        f"signature and of the input example. The weights are in {store.full(entry.folder)}."
    )
    use += f" [The model's measures on each data set]({page})" if page else ""
    tree = store.read_json(f"executions/{entry.by.removeprefix('run ')}.tree.json")
    return f"{use}\n\n{whole_lines(tree_view.markdown(tree))}" if tree else use


def _tag_run(client: Any, run: str | None, tags: Mapping[str, str]) -> None:
    """Tag the run that made an ensemble with its version and with when it was the champion."""
    if not run:
        return
    known = client.get_run(run).data.tags
    for key in ("ediffi.version", "ediffi.champion"):
        if key in tags and known.get(key) != tags[key]:
            client.set_tag(run, key, tags[key])


def _add(client: Any, experiment: str, store: Store, name: str, entry: Entry) -> Any:
    """Create a version: files in the experiment's folder, and an entry that points to them.

    This uses the client alone, because MLflow's ``log_model`` needs the process's current run and
    address, ends that run, and prints. The weights stay in the store.
    """
    run = next(_runs(client, experiment, entry), None)
    # A kill may have come before the version was created.
    model = logged_models.find(client, experiment, entry.fingerprint)
    if model is None or str(model.status) != "READY":
        model = _upload(client, experiment, store, entry, run, model)
    if run:
        logged_models.link_output(client, client.get_run(run), model.model_id)
    # Without a run, a database looks up the model id in the process's own MLflow, maybe another.
    is_known = run or client.tracking_uri.startswith("http")
    return client.create_model_version(
        name,
        source=model.artifact_location,
        run_id=run,
        tags={FINGERPRINT: entry.fingerprint},
        model_id=model.model_id if is_known else None,
    )


def _upload(
    client: Any, experiment: str, store: Store, entry: Entry, run: str | None, model: Any | None
) -> Any:
    """The ensemble's LoggedModel with its files; ``model`` is one whose upload was interrupted."""
    import mlflow
    from mlflow.models import Model

    file = f"{entry.folder}/{MANIFEST}"
    model = model or client.create_logged_model(
        experiment,
        name="ensemble",
        source_run_id=run,
        tags={FINGERPRINT: entry.fingerprint, "ediffi.kind": "promote"},
        params=_params(store.read_json(file) or {}),
        model_type="ensemble",
    )
    with tempfile.TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(
            path=f"{folder}/model",
            # No code file and no pickle: the installed package reads the data.
            loader_module="pipelines.models.pyfunc",
            data_path=str(store.local(file)),
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
    return client.finalize_logged_model(model.model_id, "READY")


def _params(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What distinguishes an ensemble in a list of them."""
    stages = manifest.get("stages", [])
    data = manifest.get("data", {})
    return {
        "stage": ", ".join(s["name"] for s in stages),
        "expert": ", ".join(f"{s['name']}/{slot}" for s in stages for slot in s["experts"]),
        "resolution": str(stages[-1]["resolution"]) if stages else "",
        **{f"data_{split}": of["fingerprint"] for split, of in data.items()},
    }


def _runs(client: Any, experiment: str, entry: Entry) -> Iterator[str]:
    """Id of the run of the execution that offered the ensemble, if this MLflow has it."""
    execution = entry.by.removeprefix("run ")
    where = f"tags.`ediffi.execution` = '{execution}'"
    if execution == entry.by:
        return
    for run in every(client.search_runs, [experiment], where):
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
