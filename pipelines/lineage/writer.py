"""Write items to MLflow. Writing is idempotent: after a kill, an item may be written twice.

A run is looked up by its tags before it is created. MLflow's database keeps a curve point once per
run, key, step, time and value. Tags and files are replaced by equal ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from pipelines.lineage import logged_models, views
from pipelines.lineage.address import Runs, local_folder, quiet_mlflow
from pipelines.lineage.limits import PARAM_CHARACTERS, PARAMS, flat
from pipelines.lineage.logged_models import DataSet
from pipelines.lineage.pages import every
from pipelines.lineage.spool import Item
from pipelines.models import champions
from pipelines.reports import champion_changes
from pipelines.store.artifacts import MANIFEST, Store

PARENT_TAG = "mlflow.parentRunId"
BATCH = 1000  # MLflow's limit of metrics a call
WRITE_CHECK = "ediffi.write_check"
"""Tag and file that are written to find out whether MLflow takes a write."""

WITH_FILES = ("picture", "finish", "reused", "close")
"""Types of items that upload files."""

Point = tuple[str, float, int, int]
"""A point of a curve: key, value, milliseconds since 1970, step."""


class Writer:
    """Writes one execution's items into its MLflow runs."""

    def __init__(self, uri: str, pipeline: str, execution: str, store: Store) -> None:
        self.uri, self.pipeline, self.execution, self.store = uri, pipeline, execution, store
        mlflow = quiet_mlflow()
        self.client: Any = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = self.client.get_experiment_by_name(pipeline)
        place = (
            {}
            if "://" in uri and not uri.startswith("sqlite:")
            else {"artifact_location": f"file://{local_folder(store)}/mlflow-artifacts"}
        )
        self.experiment: str = (
            found.experiment_id if found else self.client.create_experiment(pipeline, **place)
        )
        self.runs: dict[str, str] = {}
        """Node id → run id; ``""`` stands for the execution's own run."""
        self.ended: set[str] = set()
        """Nodes whose run has finished."""
        # What an earlier attempt wrote is read from MLflow, so a kill cannot make it unknown.
        for run in self._search(f"tags.`ediffi.execution` = '{execution}'"):
            node = run.data.tags.get("ediffi.node", "")
            self.runs[node] = run.info.run_id
            self.ended |= {node} if run.info.status == "FINISHED" else set()

    @property
    def is_over(self) -> bool:
        """Whether an earlier driver has recorded the execution to its end: it was done."""
        return "" in self.ended

    def can_write(self, item: Item) -> bool:
        """Whether MLflow takes a write without a fault, and a file if the item has files."""
        now = str(time.time_ns())  # a value that it has already would not be written
        try:
            self.client.set_experiment_tag(self.experiment, WRITE_CHECK, now)
            if item["do"] in WITH_FILES and "" in self.runs:
                self.client.log_text(self.runs[""], now, f"{WRITE_CHECK}.txt")
        except Exception:  # its back ends raise errors of any type
            return False
        return True

    def write(self, item: Item) -> None:
        """Write one item; raises what MLflow raises."""
        handlers: dict[str, Callable[[Item], None]] = {
            "open": self._open,
            "begin": self._begin,
            "metrics": self._metrics,
            "picture": self._picture,
            "finish": self._finish,
            "label": self._label,
            "reused": self._reused,
            "fail": self._fail,
            "close": self._close,
        }
        handlers[item["do"]](item)

    def metrics(self, node: str, values: Iterable[Point]) -> None:
        """Log curve points to a node's run."""
        self.log_points(self.runs[node], values)

    def log_points(
        self,
        run: str,
        values: Iterable[Point],
        model: str | None = None,
        data: DataSet | None = None,
    ) -> None:
        """Log points to a run, as many at once as MLflow takes.

        Args:
            run: Id of the run.
            values: The points.
            model: Id of the LoggedModel that they measure.
            data: The data set that they were measured on.
        """
        from mlflow.entities import Metric

        on = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
        points = [
            Metric(key, float(value), time, step, model_id=model, **on)
            for key, value, time, step in values
        ]
        for at in range(0, len(points), BATCH):
            self.client.log_batch(run, metrics=points[at : at + BATCH])

    def _search(self, where: str) -> list[Any]:
        return list(every(self.client.search_runs, [self.experiment], where))

    def _tag(self, node: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.runs[node], tags=[RunTag(k, v) for k, v in tags.items()])

    # -- one method per type of item -------------------------------------------------------------

    def _open(self, item: Item) -> None:
        """Start the execution's run, and end runs that killed drivers of this pipeline left."""
        views.save(self.client, self.experiment)
        self._run("", self.execution, item)
        self._end_abandoned_runs(set(self.runs.values()))

    def _begin(self, item: Item) -> None:
        """Start a node's run: an expert's below its parent's, others below the execution's."""
        node = item["node"]
        parent = self.runs.get(item["parent"]) or self.runs[""]
        self._run(node, node, {**item, "tags": {PARENT_TAG: parent, **item["tags"]}})
        from mlflow.entities import Param

        params = [Param(k, v) for k, v in item["params"].items()]
        self.client.log_batch(self.runs[node], params=params)
        data = {role: DataSet.at(folder) for role, folder in item.get("data", {}).items()}
        if found := [each.as_input(self.store, role) for role, each in data.items()]:
            for run in (self.runs[node], self.runs[""]):
                self.client.log_inputs(run, datasets=found)

    def _run(self, node: str, name: str, item: Item) -> None:
        """Create a run, or continue the existing one."""
        if node not in self.runs:
            # A call that timed out may have created it all the same.
            where = f"tags.`ediffi.execution` = '{self.execution}'"
            if node:  # a study has hundreds of other runs
                where += f" and tags.`ediffi.node` = '{node}'"
            found = {r.data.tags.get("ediffi.node", ""): r for r in self._search(where)}
            if node in found:
                self.runs[node] = found[node].info.run_id
        if node in self.runs:
            self.client.update_run(self.runs[node], status="RUNNING")
            self._tag(node, {"ediffi.state": item["tags"]["ediffi.state"]})
            return
        made = self.client.create_run(
            self.experiment, start_time=item["time_ms"], tags=item["tags"], run_name=name
        )
        self.runs[node] = made.info.run_id

    def _metrics(self, item: Item) -> None:
        """Log curve points."""
        self.metrics(item["node"], item["values"])

    def _picture(self, item: Item) -> None:
        """Upload an image from the store."""
        place = self.store.local(item["file"])
        self.client.log_artifact(self.runs[item["node"]], str(place), artifact_path="samples")

    def _finish(self, item: Item) -> None:
        """Finish a node's run with all its data from the store, including what a kill lost."""
        node, run, folder = item["node"], self.runs[item["node"]], item["folder"]
        history = self.store.read(f"{folder}/history.jsonl")
        rows = [json.loads(line) for line in history.splitlines()] if history else []
        points = [(k, v, r["time_ms"], r["images"]) for r in rows for k, v in r["metrics"].items()]
        self.metrics(node, points)
        self._log_result(item)
        tags = dict(item["tags"])
        if tags["ediffi.state"] == "reused" and (first := self._first_run(item["fingerprint"])):
            tags["ediffi.reused_from"] = first
        self._tag(node, tags)
        for name, artifact_path in item["files"]:
            file = self.store.local(f"{folder}/{name}")
            self.client.log_artifact(run, str(file), artifact_path=artifact_path)
        self.client.set_terminated(run, "FINISHED", item["time_ms"])
        self.ended.add(node)

    def _log_result(self, item: Item) -> None:
        """Log a node's final measures, of its expert if it trained one, and the experts it read."""
        run = self.client.get_run(self.runs[item["node"]])
        data = DataSet.at(item["measured_on"]) if item.get("measured_on") else None
        manifest = self.store.read_json(f"{item['folder']}/{MANIFEST}")
        model = None
        if manifest and manifest["kind"] == "train":
            tags = {**run.data.tags, **item["tags"]}
            known = self.client, self.experiment
            expert = logged_models.record_expert(*known, run.info.run_id, tags, manifest)
            logged_models.link_output(self.client, run, expert.model_id)
            # A run that reuses an expert measured nothing.
            model = expert.model_id if expert.source_run_id == run.info.run_id else None
        self.log_points(run.info.run_id, item["values"], model, data)
        read = logged_models.fingerprints_read(self.store, manifest) if manifest else []
        models = [logged_models.find(self.client, self.experiment, each) for each in read]
        logged_models.link_inputs(self.client, run, [each.model_id for each in models if each])

    def _label(self, item: Item) -> None:
        """Tag a node after its end; nodes without a run in this execution are skipped."""
        if item["node"] in self.runs:
            self._tag(item["node"], item["tags"])

    def _reused(self, item: Item) -> None:
        """Record a node that needed no work, or complete a record that a kill interrupted."""
        node = item["begin"]["node"]
        if node not in self.runs:
            self._begin(item["begin"])
            self._finish(item["finish"])
        elif node not in self.ended:
            known = self.client.get_run(self.runs[node]).data.tags["ediffi.state"]
            state = "reused" if known == "reused" else "done"
            tags = {**item["finish"]["tags"], "ediffi.state": state}
            self._finish({**item["finish"], "tags": tags})

    def _first_run(self, fingerprint: str) -> str | None:
        """Id of the run that computed a node's result."""
        found = self._search(
            f"tags.`ediffi.fingerprint` = '{fingerprint}' and tags.`ediffi.state` = 'done'"
        )
        return found[0].info.run_id if found else None

    def _fail(self, item: Item) -> None:
        """End the run of a node that failed."""
        self._tag(item["node"], {"ediffi.state": "failed", "ediffi.error": item["error"]})
        self.client.set_terminated(self.runs[item["node"]], "FAILED", item["time_ms"])

    def _close(self, item: Item) -> None:
        """End the execution's run with its tree, its metrics and its model."""
        from pipelines.lineage import registry
        from pipelines.reports import tree_page

        run = self.runs[""]
        # End runs of nodes that an earlier attempt began and this one did not reach or finish.
        self._end_abandoned_runs({run}, "cancelled" if item["state"] == "cancelled" else "killed")
        self._tag("", {"mlflow.note.content": item["note"]})
        links = Runs(uri=self.uri, experiment=self.experiment, run_ids=self.runs).links()
        pictures = tree_page.thumbnails(self.store, item["tree"])
        page = tree_page.html(item["tree"], links=links, pictures=pictures)
        self.client.log_text(run, page, "lineage.html")
        ensemble = None
        if model := item["model"]:
            offered = {**model, "execution": self.execution}
            registry.mirror(self.client, self.experiment, self.store, self.pipeline, offered)
            ensemble = model["fingerprint"]
            if self.store.size(f"{model['folder']}/{champions.MANIFEST}") is not None:
                self._log_settings(model["folder"])
        self._log_evaluations(item, ensemble)
        self._tag("", {"ediffi.state": item["state"]})
        ends = {"done": "FINISHED", "interrupted": "KILLED", "cancelled": "KILLED"}
        self.client.set_terminated(run, ends.get(item["state"], "FAILED"), item["time_ms"])

    def _log_settings(self, folder: str) -> None:
        """Log what determines the ensemble, so that MLflow can compare it with another."""
        from mlflow.entities import Param

        run = self.runs[""]
        known = self.client.get_run(run).data.params
        settings = flat(champion_changes.facts(self.store, folder))
        new = [Param(k, str(v)[:PARAM_CHARACTERS]) for k, v in settings.items() if k not in known]
        for at in range(0, len(new), PARAMS):
            self.client.log_batch(run, params=new[at : at + PARAMS])

    def _log_evaluations(self, item: Item, ensemble: str | None) -> None:
        """Log the evaluations' measures, each of the LoggedModel and on the data set it is of.

        Args:
            ensemble: Fingerprint of this execution's ensemble, if it made one.
        """
        rest = list(item["values"])
        for name, made in item.get("evaluations", {}).items():
            mine = [v for v in rest if v[0].startswith(f"{name}/")]
            rest = [v for v in rest if v not in mine]
            data = DataSet.at(made["measured_on"]) if made["measured_on"] else None
            manifest = self.store.read_json(f"{made['folder']}/{MANIFEST}")
            read = logged_models.fingerprints_read(self.store, manifest) if manifest else []
            # Only a model of one expert is that expert's LoggedModel.
            one = ensemble if name.endswith("/ensemble") else read[0] if len(read) == 1 else None
            model = logged_models.find(self.client, self.experiment, one) if one else None
            if model is not None and model.source_run_id not in self.runs.values():
                model = None  # an execution that reuses a model has not measured it
            self.log_points(self.runs[""], mine, model.model_id if model else None, data)
        self.metrics("", rest)

    def cancel(self) -> None:
        """End the execution's runs if there is no driver to do it."""
        for run in self._search(f"tags.`ediffi.execution` = '{self.execution}'"):
            if run.info.status == "RUNNING" or "ediffi.node" not in run.data.tags:
                self._end(run.info.run_id, "cancelled")

    def _end_abandoned_runs(self, alive: set[str], state: str = "killed") -> None:
        """End runs of this pipeline that killed drivers left RUNNING; the caller holds its lease.

        Runs of a pipeline of the same name in another store are left alone: it has its own driver.

        Args:
            alive: ids of runs that are not to be ended.
            state: value of their tag ``ediffi.state``.
        """
        is_ours = cache(self._is_of_this_store)
        for run in self._search("attributes.status = 'RUNNING'"):
            if run.info.run_id not in alive and is_ours(run.data.tags.get("ediffi.execution", "")):
                self._end(run.info.run_id, state)

    def _is_of_this_store(self, execution: str) -> bool:
        return self.store.size(f"executions/{execution}.json") is not None

    def _end(self, run: str, state: str) -> None:
        self.client.set_tag(run, "ediffi.state", state)
        self.client.set_terminated(run, "KILLED")
