"""Writes items into MLflow. Each may be written twice, as after a kill: the second changes nothing.

A run is looked for by its tags before it is made. A point of a curve is in MLflow's database once
for its run, key, step, time and value. Tags and files are replaced by the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from pipelines.lineage.address import Runs, folder, quiet_mlflow
from pipelines.lineage.spool import Item
from pipelines.store.artifacts import Store

PARENT = "mlflow.parentRunId"
BATCH = 1000  # MLflow's limit of metrics a call
Value = tuple[str, float, int, int]
"""Key, value, milliseconds since 1970, step."""


class Writer:
    """One execution's part of an MLflow."""

    def __init__(self, uri: str, pipeline: str, execution: str, store: Store) -> None:
        self.uri, self.pipeline, self.execution, self.store = uri, pipeline, execution, store
        mlflow = quiet_mlflow()
        self.client: Any = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = self.client.get_experiment_by_name(pipeline)
        place = (
            {}
            if "://" in uri and not uri.startswith("sqlite:")
            else {"artifact_location": f"file://{folder(store)}/mlflow-artifacts"}
        )
        self.experiment: str = (
            found.experiment_id if found else self.client.create_experiment(pipeline, **place)
        )
        self.runs: dict[str, str] = {}
        """Run by node's id; the execution's own by ``""``."""
        self.ended: set[str] = set()
        # What an earlier attempt wrote is known from MLflow itself: a kill loses no note of it.
        for run in self._search(f"tags.`ediffi.execution` = '{execution}'"):
            node = run.data.tags.get("ediffi.node", "")
            self.runs[node] = run.info.run_id
            self.ended |= {node} if run.info.status == "FINISHED" else set()

    def answers(self) -> bool:
        """Whether MLflow is there at all."""
        try:
            self.client.get_experiment(self.experiment)
        except Exception:  # whatever its back end raises
            return False
        return True

    def write(self, item: Item) -> None:
        """Writes one item; raises what MLflow raises."""
        getattr(self, f"_{item['do']}")(item)

    def metrics(self, node: str, values: Iterable[Value]) -> None:
        from mlflow.entities import Metric

        points = [Metric(key, float(value), time, step) for key, value, time, step in values]
        for at in range(0, len(points), BATCH):
            self.client.log_batch(self.runs[node], metrics=points[at : at + BATCH])

    def _search(self, where: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment], where, max_results=1000))

    def _tag(self, node: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.runs[node], tags=[RunTag(k, v) for k, v in tags.items()])

    # -- one method an item ----------------------------------------------------------------------

    def _open(self, item: Item) -> None:
        """The execution's run; runs of this pipeline that killed drivers left are ended."""
        self._run("", self.execution, item)
        self._reap(set(self.runs.values()))

    def _begin(self, item: Item) -> None:
        """A node's run: an expert's below its parent's, any other below the execution's."""
        node = item["node"]
        above = self.runs.get(item["parent"]) or self.runs[""]
        self._run(node, node, {**item, "tags": {PARENT: above, **item["tags"]}})
        from mlflow.entities import Param

        params = [Param(k, v) for k, v in item["params"].items()]
        self.client.log_batch(self.runs[node], params=params)

    def _run(self, node: str, name: str, item: Item) -> None:
        """Makes a run, or goes on in the one there is."""
        if node not in self.runs:
            # A call that was given up may have made it all the same.
            where = f"tags.`ediffi.execution` = '{self.execution}'"
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
        self.metrics(item["node"], item["values"])

    def _picture(self, item: Item) -> None:
        place = self.store.local(item["file"])
        self.client.log_artifact(self.runs[item["node"]], str(place), artifact_path="samples")

    def _finish(self, item: Item) -> None:
        """The whole of a node from the store, so that nothing a kill lost stays lost."""
        node, run, at = item["node"], self.runs[item["node"]], item["folder"]
        history = self.store.read(f"{at}/history.jsonl")
        rows = [json.loads(line) for line in history.splitlines()] if history else []
        points = [(k, v, r["time_ms"], r["images"]) for r in rows for k, v in r["metrics"].items()]
        self.metrics(node, points + item["values"])
        tags = dict(item["tags"])
        if tags["ediffi.state"] == "reused" and (first := self._first_run(item["fingerprint"])):
            tags["ediffi.reused_from"] = first
        self._tag(node, tags)
        for name, shelf in item["files"]:
            place = self.store.local(f"{at}/{name}")
            self.client.log_artifact(run, str(place), artifact_path=shelf)
        self.client.set_terminated(run, "FINISHED", item["time_ms"])
        self.ended.add(node)

    def _label(self, item: Item) -> None:
        """What was decided of a node after its end; one that this execution lacks is passed by."""
        if item["node"] in self.runs:
            self._tag(item["node"], item["tags"])

    def _reused(self, item: Item) -> None:
        """A node that needed no work, or whose record a kill kept from its end."""
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
        found = self._search(
            f"tags.`ediffi.fingerprint` = '{fingerprint}' and tags.`ediffi.state` = 'done'"
        )
        return found[0].info.run_id if found else None

    def _fail(self, item: Item) -> None:
        self._tag(item["node"], {"ediffi.state": "failed", "ediffi.error": item["error"]})
        self.client.set_terminated(self.runs[item["node"]], "FAILED", item["time_ms"])

    def _close(self, item: Item) -> None:
        """The end of an execution: its tree, its measurements, its model."""
        from pipelines.lineage import registry
        from pipelines.reports import tree_page

        run = self.runs[""]
        # Of nodes that an earlier attempt began and this one did not come to, or did not end.
        self._reap({run}, "cancelled" if item["state"] == "cancelled" else "killed")
        self._tag("", {"mlflow.note.content": item["note"]})
        links = Runs(uri=self.uri, experiment=self.experiment, of_node=self.runs).links()
        pictures = tree_page.thumbnails(self.store, item["tree"])
        page = tree_page.html(item["tree"], links=links, pictures=pictures)
        self.client.log_text(run, page, "lineage.html")
        self.metrics("", item["values"])
        if model := item["model"]:
            offered = {**model, "execution": self.execution}
            registry.mirror(self.client, self.experiment, self.store, self.pipeline, offered)
        self._tag("", {"ediffi.state": item["state"]})
        ends = {"done": "FINISHED", "interrupted": "KILLED", "cancelled": "KILLED"}
        self.client.set_terminated(run, ends.get(item["state"], "FAILED"), item["time_ms"])

    def cancel(self) -> None:
        """Ends the execution's runs, when no driver is there to do it."""
        for run in self._search(f"tags.`ediffi.execution` = '{self.execution}'"):
            if run.info.status == "RUNNING" or "ediffi.node" not in run.data.tags:
                self._end(run.info.run_id, "cancelled")

    def _reap(self, alive: set[str], state: str = "killed") -> None:
        """Ends runs of this pipeline that killed drivers left RUNNING; we hold its lease.

        Not those of a pipeline of the same name in another store, which has a driver of its own.
        """
        here = cache(self._is_of_this_store)
        for run in self._search("attributes.status = 'RUNNING'"):
            if run.info.run_id not in alive and here(run.data.tags.get("ediffi.execution", "")):
                self._end(run.info.run_id, state)

    def _is_of_this_store(self, execution: str) -> bool:
        return self.store.size(f"executions/{execution}.json") is not None

    def _end(self, run: str, state: str) -> None:
        self.client.set_tag(run, "ediffi.state", state)
        self.client.set_terminated(run, "KILLED")
