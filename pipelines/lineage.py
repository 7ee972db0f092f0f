"""The record in MLflow: nested runs that mirror the expert tree, curves, pictures, the registry.

One thread writes, from a queue. MLflow slow or away delays and stops nothing: the store is the
truth, and the next run of the same pipeline writes the record again from it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.plan import Node, Plan, Verdict
from pipelines.store.artifacts import Store, sha256

PARENT = "mlflow.parentRunId"
BATCH = 1000  # MLflow's limit of metrics a call
Job = Callable[[], None]


def tracking_uri(named: str | None, store: Store) -> str:
    """The MLflow a spec names, else the environment's, else a SQLite file: see :func:`folder`."""
    address = named or os.environ.get("MLFLOW_TRACKING_URI")
    return address or f"sqlite:///{folder(store)}/mlflow.db"


def folder(store: Store) -> Path:
    """Where the record is kept if no MLflow is named: in the store.

    SQLite cannot live in a bucket, whose record is kept in a folder of this machine's. Lost with
    the machine or looked for on another, it is written again by the next run of the pipeline.
    """
    if store.is_local:
        return Path(store.root)
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", store.root.partition("://")[2])[-60:].strip("-.")
    return Path.home() / ".local/share/ediffi" / f"{name}-{sha256(store.root.encode())[:8]}"


def quiet_mlflow() -> Any:
    """The package, told to keep its news of tables, runs and files off the terminal."""
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return mlflow


class Lineage:
    """Takes what happens and writes it down, in the background and in order."""

    def __init__(
        self, plan: Plan, store: Store, execution: Any, say: Callable[[str], None]
    ) -> None:
        self.plan, self.store, self.execution, self.say = plan, store, execution, say
        self.uri = tracking_uri(plan.spec.tracking, store)
        self.is_aside = not store.is_local and str(folder(store)) in self.uri
        self.jobs: queue.Queue[Job | None] = queue.Queue()
        self.broken: str | None = None
        self.client: Any = None
        self.experiment = ""
        self.run = ""
        """The execution's; a node's are in ``runs``, by the node's id."""
        self.runs: dict[str, str] = {}
        self.ended: set[str] = set()
        self.thread = threading.Thread(target=self._work, name="lineage", daemon=True)
        self.thread.start()
        self.jobs.put(self._open)

    # -- what the runner tells -------------------------------------------------------------------

    def started(self, verdict: Verdict) -> None:
        self.jobs.put(lambda: self._start(verdict, "running"))

    def report(self, node: str, row: dict[str, Any]) -> None:
        if metrics := row.get("metrics"):
            values = [(k, v, row["time_ms"], row["images"]) for k, v in metrics.items()]
            self.jobs.put(lambda: self._metrics(self.runs[node], values))

    def finished(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        self.jobs.put(lambda: self._finish(verdict, manifest, "done"))

    def reused(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        def job() -> None:
            node = verdict.node.id
            if node not in self.runs:
                self._start(verdict, "reused")
                self._finish(verdict, manifest, "reused")
            elif node not in self.ended:  # a kill came between its manifest and its record
                self._finish(verdict, manifest, "done")

        self.jobs.put(job)

    def failed(self, verdict: Verdict, error: str) -> None:
        def job() -> None:
            run = self.runs[verdict.node.id]
            self.client.set_tag(run, "ediffi.state", "failed")
            self.client.set_tag(run, "ediffi.error", error[:5000])
            self.client.set_terminated(run, "FAILED")

        self.jobs.put(job)

    def close(self, state: str, manifests: dict[str, Any], wait_s: float = 120.0) -> None:
        """Writes the end, and waits for the queue to run dry; says so if it could not."""
        self.jobs.put(lambda: self._end(state, manifests))
        self.jobs.put(None)
        self.thread.join(wait_s)
        if self.thread.is_alive():
            self.broken = f"still busy after {wait_s:.0f} s"
        if self.broken:
            self.say(
                f"MLflow record incomplete ({self.broken}); run the same command to complete it"
            )

    # -- the writing thread ----------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            if self.broken:
                continue
            try:
                job()
            except Exception as error:  # whatever MLflow's back end raises: training goes on
                self.broken = str(error).strip().splitlines()[0][:200] or type(error).__name__
                self.say(f"MLflow at {self.uri} failed: {self.broken}; the run goes on without")

    def _open(self) -> None:
        mlflow = quiet_mlflow()
        if self.is_aside:
            folder(self.store).mkdir(parents=True, exist_ok=True)
        self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        name = self.plan.spec.name
        found = self.client.get_experiment_by_name(name)
        place = (
            {}
            if "://" in self.uri and not self.uri.startswith("sqlite:")
            else {"artifact_location": f"file://{folder(self.store)}/mlflow-artifacts"}
        )
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(name, **place)
        )
        # What an earlier attempt wrote is known from MLflow itself: a kill loses no note of it.
        for known in self._search(f"tags.`ediffi.execution` = '{self.execution.id}'"):
            if node := known.data.tags.get("ediffi.node"):
                self.runs[node] = known.info.run_id
                self.ended |= {node} if known.info.status == "FINISHED" else set()
            else:
                self.run = known.info.run_id
        if self.run:
            self.client.update_run(self.run, status="RUNNING")
            self.client.set_tag(self.run, "ediffi.state", "running")
        else:
            tags = {
                "ediffi.pipeline": name,
                "ediffi.execution": self.execution.id,
                "ediffi.state": "running",
            }
            run = self.client.create_run(self.experiment, run_name=self.execution.id, tags=tags)
            self.run = run.info.run_id
        self.execution.tracking = {
            "uri": self.uri,
            "run": self.run,
            "experiment": self.experiment,
        }
        self._reap({self.run, *self.runs.values()})

    def _search(self, where: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment], where, max_results=1000))

    def _reap(self, alive: set[str]) -> None:
        """Ends runs of this pipeline that killed drivers left RUNNING; we hold its lock."""
        for run in self._search("attributes.status = 'RUNNING'"):
            if run.info.run_id not in alive:
                self.client.set_tag(run.info.run_id, "ediffi.state", "killed")
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _parent_of(self, node: Node) -> str:
        """An expert's run hangs below its parent's, everything else below the execution's."""
        above = node.inputs.get("parent")
        return self.runs.get(above or "", self.run)

    def _start(self, verdict: Verdict, state: str) -> None:
        node = verdict.node
        if node.id in self.runs:  # a continued execution goes on in the run it had
            self.client.update_run(self.runs[node.id], status="RUNNING")
            self.client.set_tag(self.runs[node.id], "ediffi.state", state)
            return
        tags = {PARENT: self._parent_of(node), **self._tags(verdict, state)}
        run = self.client.create_run(self.experiment, run_name=node.id, tags=tags)
        self.runs[node.id] = run.info.run_id
        params = flat(dict(node.settings))
        from mlflow.entities import Param

        self.client.log_batch(
            run.info.run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()][:100]
        )

    def _tags(self, verdict: Verdict, state: str) -> dict[str, str]:
        node = verdict.node
        tags = {
            "ediffi.kind": node.kind,
            "ediffi.node": node.id,
            "ediffi.fingerprint": verdict.fingerprint,
            "ediffi.state": state,
            "ediffi.execution": self.execution.id,
        }
        if "/" in node.name:
            tags["ediffi.stage"] = node.name.split("/")[0]
        if node.kind == "train":
            expert = node.settings["expert"]
            noise = NoiseDistribution(**node.settings["noise"])
            low, high = Interval(*node.settings["interval"]).bounds(noise)
            tags |= {
                "ediffi.expert": expert,
                "ediffi.sigma_lo": f"{low:.6g}",
                "ediffi.sigma_hi": f"{high:.6g}",
                "ediffi.parent": node.inputs.get("parent", ""),
            }
            if expert.startswith("E"):
                tags["ediffi.level"] = expert[1:].split("_")[0]
        return tags

    def _metrics(self, run: str, values: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for at in range(0, len(values), BATCH):
            part = [Metric(k, float(v), t, s) for k, v, t, s in values[at : at + BATCH]]
            self.client.log_batch(run, metrics=part)

    def _finish(self, verdict: Verdict, manifest: dict[str, Any], state: str) -> None:
        """The whole of a node from its manifest, so that nothing a kill lost stays lost."""
        run, node = self.runs[verdict.node.id], verdict.node
        now = int(time.time() * 1000)
        history = self.store.read(f"{verdict.folder}/history.jsonl")
        rows = [json.loads(line) for line in history.splitlines()] if history else []
        self._metrics(
            run,
            [(k, v, r["time_ms"], r["images"]) for r in rows for k, v in r["metrics"].items()]
            + [(f"final/{k}", v, now, 0) for k, v in manifest["metrics"].items()],
        )
        self.client.set_tag(run, "ediffi.state", state)
        if sha := manifest["info"].get("weights_sha256"):
            self.client.set_tag(run, "ediffi.weights_sha256", sha)
        if state == "reused" and (first := self._first_run(verdict)):
            self.client.set_tag(run, "ediffi.reused_from", first)
        for name in manifest["files"]:
            if name.endswith((".png", "captions.txt", "ensemble.json")):
                place = self.store.local(f"{verdict.folder}/{name}")
                self.client.log_artifact(run, str(place), artifact_path=node.kind)
        self.client.set_terminated(run, "FINISHED")

    def _first_run(self, verdict: Verdict) -> str | None:
        found = self._search(
            f"tags.`ediffi.fingerprint` = '{verdict.fingerprint}' and tags.`ediffi.state` = 'done'"
        )
        return found[0].info.run_id if found else None

    def _end(self, state: str, manifests: dict[str, Any]) -> None:
        from pipelines import registry, tree_view

        run = self.run
        self._reap({run})  # of nodes that an earlier attempt began and this one did not come to
        tree = tree_view.build(self.plan, self.execution, manifests)
        self.client.set_tag(run, "mlflow.note.content", tree_view.markdown(tree))
        self.client.log_text(run, tree_view.html(tree), "lineage.html")
        if summary := tree_view.headline_metrics(tree):
            now = int(time.time() * 1000)
            self._metrics(run, [(k, v, now, 0) for k, v in summary.items()])
        promoted = next((v for v in self.plan.verdicts.values() if v.node.kind == "promote"), None)
        if promoted and promoted.node.id in manifests:
            place = self.store.local(promoted.folder)
            registry.register(
                self.client, self.uri, self.plan.spec.name, run, place, promoted.fingerprint
            )
        self.client.set_tag(run, "ediffi.state", state)
        ends = {"done": "FINISHED", "interrupted": "KILLED"}
        self.client.set_terminated(run, ends.get(state, "FAILED"))


def flat(settings: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b`` → value."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{at}.{key}" if at else key
        out |= flat(value, name) if isinstance(value, dict) else {name: value}
    return out
