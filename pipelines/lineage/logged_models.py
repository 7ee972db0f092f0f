"""Experts and data sets as MLflow knows them: LoggedModels and dataset inputs of runs.

A trained expert is one LoggedModel, found by its fingerprint: a run that reuses the expert gets the
same one. It is external, that is, its weights stay in the store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.lineage.pages import every
from pipelines.steps.ensemble_weights import located
from pipelines.store.artifacts import MANIFEST, Store

FINGERPRINT = "ediffi.fingerprint"
IS_EXTERNAL = "mlflow.model.isExternal"
"""Tag that tells MLflow to look for no files of a LoggedModel."""

CONTEXTS = {"data": "training", "validation": "evaluation"}
"""Role of a data set among a node's inputs → how MLflow calls it."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A version of an embedded data set, as MLflow identifies it."""

    name: str
    """Split of the data: ``train``, ``validation``."""

    digest: str
    """Fingerprint of the node that embedded it."""

    folder: str
    """In the store."""

    @staticmethod
    def at(folder: str) -> DataSet:
        """From its folder in the store: ``nodes/embed/<name>-<fingerprint>``."""
        name, _, digest = folder.removeprefix("nodes/embed/").rpartition("-")
        return DataSet(name=name, digest=digest, folder=folder)

    def as_input(self, store: Store, role: str) -> Any:
        """MLflow's ``DatasetInput``, with rows and size if the store still has the data set."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        metrics = (store.read_json(f"{self.folder}/{MANIFEST}") or {}).get("metrics", {})
        profile = {"num_rows": metrics.get("rows"), **metrics}
        place = store.full(self.folder)
        return DatasetInput(
            Dataset(
                name=self.name,
                digest=self.digest,
                source_type=place.partition("://")[0] if "://" in place else "local",
                source=json.dumps({"uri": place}),
                profile=json.dumps(profile) if metrics else None,
            ),
            [InputTag("mlflow.data.context", CONTEXTS.get(role, role))],
        )


def find(client: Any, experiment: str, fingerprint: str) -> Any | None:
    """The LoggedModel with a fingerprint; None if the experiment has none."""
    where = f"tags.`{FINGERPRINT}` = '{fingerprint}'"
    return next(every(client.search_logged_models, [experiment], where, page=1), None)


def record_expert(
    client: Any, experiment: str, run: str, tags: Mapping[str, str], manifest: Mapping[str, Any]
) -> Any:
    """The LoggedModel of a trained expert, created unless it is known.

    Args:
        client: an ``MlflowClient``.
        experiment: Id of the experiment.
        run: Id of the run that trained or reused the expert.
        tags: The run's tags.
        manifest: The expert's manifest.
    """
    found = find(client, experiment, manifest["fingerprint"])
    kept = {k: v for k, v in tags.items() if k.startswith("ediffi.") and k not in STATE_TAGS}
    if found is None:
        found = client.create_logged_model(
            experiment,
            name=manifest["name"].replace("/", "-"),  # MLflow allows no slash
            source_run_id=run,
            tags={**kept, IS_EXTERNAL: "true"},
            params=_params(kept, manifest),
            model_type="expert",
        )
    if str(found.status) != "READY":  # also after a kill in between
        client.finalize_logged_model(found.model_id, "READY")
    return found


STATE_TAGS = ("ediffi.state", "ediffi.error", "ediffi.reused_from")
"""Tags of a run that say nothing of the expert."""


def _params(tags: Mapping[str, str], manifest: Mapping[str, Any]) -> dict[str, str]:
    """What distinguishes an expert in a list of them."""
    settings = manifest["settings"]
    names = ("stage", "expert", "path", "sigma_lo", "sigma_hi", "parent")
    return {
        **{name: tags[f"ediffi.{name}"] for name in names if tags.get(f"ediffi.{name}")},
        "images": str(settings["images"]),
        "resolution": str(settings["resolution"]),
        "parameters": str(manifest["info"].get("parameters", "")),
    }


def fingerprints_read(store: Store, manifest: Mapping[str, Any]) -> list[str]:
    """Fingerprints of the experts that a node has read, or that it has drawn with.

    An evaluation or an ensemble reads every candidate of its slots; of these only the adopted ones
    count. The list is empty if the store no longer has the manifests.
    """
    inputs: Mapping[str, Mapping[str, str]] = manifest["inputs"]
    if manifest["kind"] not in ("evaluate", "promote"):
        return [i["fingerprint"] for i in inputs.values() if i["node"].startswith("train/")]
    folders = {role: f"nodes/{i['node']}-{i['fingerprint']}" for role, i in inputs.items()}
    wanted = ("nodes/train/", "nodes/adopt/", "nodes/merge/")
    manifests = {
        role: store.read_json(f"{folder}/{MANIFEST}")
        for role, folder in folders.items()
        if folder.startswith(wanted)
    }
    if None in manifests.values():
        return []
    weights = located(manifests, manifest["settings"]["stages"], folders)
    return list(dict.fromkeys(w["fingerprint"] for w in weights.values()))


def link_inputs(client: Any, run: Any, models: list[str]) -> None:
    """Log LoggedModels as inputs of a run, unless it has them."""
    from mlflow.entities import LoggedModelInput

    known = {i.model_id for i in run.inputs.model_inputs}
    if new := [LoggedModelInput(m) for m in models if m not in known]:
        client.log_inputs(run.info.run_id, models=new)


def link_output(client: Any, run: Any, model: str) -> None:
    """Log a LoggedModel as output of a run, unless it has it: MLflow refuses a second time."""
    from mlflow.entities import LoggedModelOutput

    if model not in {o.model_id for o in run.outputs.model_outputs}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model, step=0)])
