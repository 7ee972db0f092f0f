"""Turn the runner's events into self-contained items for MLflow."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ediffi_core import tree as names
from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.dag.plan import Node, Plan, Verdict
from pipelines.lineage.address import local_folder, to_keep, tracking_uri
from pipelines.lineage.delivery import Delivery
from pipelines.lineage.limits import PARAM_CHARACTERS, PARAMS, TAG_CHARACTERS, flat, whole_lines
from pipelines.lineage.spool import InMemory, Item, Spool, free_spool, private_folder
from pipelines.lineage.writer import Writer
from pipelines.models import champions
from pipelines.reports import tree as tree_view
from pipelines.runs.lease import only_driver
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store, sha256

LOGGED_FILES = (".png", "captions.txt", "ensemble.json", "decision.json", "gradients.json")
"""Endings of the files of a node that are uploaded."""

SPOOLS = "mlflow-spool"
"""Folder of the spools."""

TIMEOUT_S, OUTAGE_TIMEOUT_S = 120.0, 15.0
"""How long the end of a run waits for delivery, with MLflow reachable and unreachable."""


def ending(address: str) -> str:
    """How the names of spools for an MLflow end, after the execution's id."""
    return f".{sha256(address.encode())[:8]}.jsonl"


def left_spools(
    folder: Path, pipeline: str, address: str, log: Callable[[str], None]
) -> list[Spool]:
    """The spools that a pipeline's executions left for an MLflow and no process has, oldest first.

    Args:
        address: MLflow's, without a password.
        log: is told of those for another MLflow.
    """
    name = re.compile(rf"{re.escape(pipeline)}-\d{{8}}-\d{{6}}-\d+(\.\d+)?\.\w+\.jsonl")
    found = []
    for path in sorted(p for p in folder.glob("*.jsonl") if name.fullmatch(p.name)):
        if path.name.endswith(ending(address)):
            with contextlib.suppress(BlockingIOError):  # this process's, or of one that is paused
                found.append(Spool(path))
        else:
            log(
                f"{path} holds items for another MLflow; name that address again to deliver "
                "them, or delete the file"
            )
    return found


def deliver_left(spec: Spec, store: Store, log: Callable[[str], None]) -> None:
    """Deliver what earlier runs of a pipeline could not, where this command runs nothing.

    A driver that runs the pipeline does it by itself.
    """
    uri = tracking_uri(spec.tracking, store)
    shown = to_keep(uri)
    folder = local_folder(store) / SPOOLS
    if not any(folder.glob(f"{spec.name}-*{ending(shown)}")):
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_driver(store, spec.name))
        except ValueError:  # a driver runs the pipeline
            return
        for spool in left_spools(folder, spec.name, shown, log):
            connect = partial(Writer, uri, spec.name, spool.path.name.split(".")[0], store)
            delivery = Delivery(uri, [(spool, connect)], log)
            delivery.finish(TIMEOUT_S, OUTAGE_TIMEOUT_S)
            if left := delivery.pending:
                log(f"{left:,} items of {spool.path} are not yet in MLflow")
            else:
                log(f"MLflow has now what {spool.path.name} held")
            spool.close()


class Lineage:
    """Records a run's events: appends each to the spool, from which :class:`Delivery` takes it."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        execution: Any,
        log: Callable[[str], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the spool and start delivery, first of what earlier executions left.

        Args:
            execution: the run, an :class:`pipelines.runs.execution.Execution`.
            log: prints a line for the user.
            check: as of :class:`Delivery`.
        """
        self.plan, self.store, self.execution, self.log = plan, store, execution, log
        self.check = check
        self.uri = tracking_uri(plan.spec.tracking, store)
        self.is_outside_store = not store.is_local and str(local_folder(store)) in self.uri
        """Whether MLflow's database is on this machine because the store is a bucket."""
        self.shown = to_keep(self.uri)
        execution.tracking = {**execution.tracking, "uri": self.shown}
        self.writer: Writer | None = None
        self.unwritten: deque[Item] = deque()
        """Items that the spool could not take, as on a full disk; in order, the oldest first."""
        self.spool = self._open(execution.id + ending(self.shown))
        spools = [*self._older(), self.spool]
        connected = [(s, partial(self._connect, s.path.name.split(".")[0])) for s in spools]
        self.delivery = Delivery(self.uri, connected, log, check)
        tags = {
            "ediffi.pipeline": execution.pipeline,
            "ediffi.execution": execution.id,
            "ediffi.state": "running",
        }
        self._append({"do": "open", "tags": tags})

    def _open(self, name: str) -> Spool:
        folder = local_folder(self.store) / SPOOLS
        try:
            return free_spool(folder / name)
        except OSError as error:  # a read-only home, as in some containers
            fallback = private_folder(Path(tempfile.gettempdir()))
            self.log(
                f"{folder} cannot be written ({error}); the record waits in {fallback} instead"
            )
            return free_spool(fallback / name)

    def _older(self) -> list[Spool]:
        """Spools that earlier executions of this pipeline could not deliver."""
        mine = self.spool.path
        return left_spools(mine.parent, self.execution.pipeline, self.shown, self.log)

    def _connect(self, execution: str) -> Writer:
        writer = Writer(self.uri, self.plan.spec.name, execution, self.store)
        if execution == self.execution.id:
            self.writer = writer
        return writer

    def _append(self, item: Item) -> None:
        waiting = bool(self.unwritten)  # and that was said
        self.unwritten.append({"time_ms": int(time.time() * 1000), **item})
        if (error := self._write()) and not waiting:
            self.log(
                f"{self.spool.path} cannot be written ({error}); the MLflow record waits in memory"
            )

    def _write(self) -> OSError | None:
        """Give the spool the items that it has not taken yet; → why it does not take them all."""
        try:
            while self.unwritten:
                self.spool.append(self.unwritten[0])
                self.unwritten.popleft()
        except OSError as error:
            return error
        return None

    # -- the runner's events ---------------------------------------------------------------------

    def started(self, verdict: Verdict) -> None:
        """A node has started."""
        self._append(self._begin(verdict, "running"))

    def report(self, node: str, row: dict[str, Any]) -> None:
        """A row of a running step: curve points, and the path of an image in the store."""
        if metrics := row.get("metrics"):
            step = int(row.get("images", row.get("done", 0)))
            values = [(k, float(v), row["time_ms"], step) for k, v in metrics.items()]
            self._append({"do": "metrics", "node": node, "values": values})
        if picture := row.get("picture"):
            self._append({"do": "picture", "node": node, "file": picture})

    def finished(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        """A node is done."""
        self._append(self._finish(verdict, manifest, "done"))
        self._label_adoption(verdict, manifest)

    def reused(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        """A node needs no work: its result exists."""
        begin, finish = self._begin(verdict, "reused"), self._finish(verdict, manifest, "reused")
        self._append({"do": "reused", "begin": begin, "finish": finish})
        self._label_adoption(verdict, manifest)

    def _label_adoption(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        """Tag the experts' runs: which were adopted into the ensemble, and why others were not."""
        if verdict.node.kind != "adopt":
            return
        refused = manifest["info"]["refused"]
        for role, node in verdict.node.inputs.items():
            tags = {"ediffi.adopted": "no" if role in refused else "yes"}
            if role in refused:
                tags["ediffi.refused"] = refused[role]
            elif role not in manifest["info"]["seats"].values():
                continue
            self._append({"do": "label", "node": node, "tags": tags})

    def failed(self, verdict: Verdict, error: str) -> None:
        """A node has failed."""
        self._append({"do": "fail", "node": verdict.node.id, "error": error[:TAG_CHARACTERS]})

    def close(
        self,
        state: str,
        manifests: dict[str, Any],
        timeout_s: float = TIMEOUT_S,
        outage_timeout_s: float = OUTAGE_TIMEOUT_S,
    ) -> None:
        """Record the end of the run and wait for delivery; report what is left after a time limit.

        Args:
            state: the run's final state.
            manifests: node id → manifest, of the finished nodes.
            timeout_s: limit in seconds while MLflow is reachable.
            outage_timeout_s: limit in seconds while it is not.
        """
        tree = tree_view.build(self.plan, self.execution, manifests)
        run = self.execution
        tree["labels"] = champions.run_aliases(self.store, run.pipeline, run.nodes)
        now = int(time.time() * 1000)
        promoted = next((v for v in self.plan.verdicts.values() if v.node.kind == "promote"), None)
        model = None
        if promoted and promoted.node.id in manifests:
            model = {"folder": promoted.folder, "fingerprint": promoted.fingerprint}
        self._append(
            {
                "do": "close",
                "state": state,
                "note": whole_lines(tree_view.markdown(tree)),
                "tree": tree,
                "values": [(k, v, now, 0) for k, v in tree_view.headline_metrics(tree).items()],
                "evaluations": {
                    v.node.name: {"folder": v.folder, "measured_on": self._measured_on(v.node)}
                    for v in self.plan.verdicts.values()
                    if v.node.kind == "evaluate" and v.node.id in manifests
                },
                "model": model,
            }
        )
        self.delivery.finish(timeout_s, outage_timeout_s)
        if self.unwritten and not self.delivery.pending:
            self._deliver_unwritten(timeout_s, outage_timeout_s)
        end = time.monotonic() + outage_timeout_s
        while self.unwritten and time.monotonic() < end:
            time.sleep(0.2)
            self._write()
        if self.unwritten:
            self.log(
                f"the MLflow record lacks {len(self.unwritten):,} items: {self.spool.path} cannot "
                "be written"
            )
        if self.writer:
            self.execution.tracking = {
                "uri": self.shown,
                "run": self.writer.runs.get("", ""),
                "experiment": self.writer.experiment,
                "nodes": {node: run for node, run in self.writer.runs.items() if node},
            }
        if left := self.delivery.pending:
            why = self.delivery.outage or f"it was still busy after {timeout_s:.0f} s"
            self.log(
                f"{left:,} items are not yet in MLflow ({why}); they are kept in "
                f"{self.spool.path.parent}, and the next run of the same command delivers them"
            )
        self.spool.close()
        if lost := self.delivery.lost():
            self.log(f"the MLflow record lacks {lost}")

    def _deliver_unwritten(self, timeout_s: float, outage_timeout_s: float) -> None:
        """Deliver what no disk takes; what MLflow does not take either still waits."""
        held = InMemory(self.unwritten)
        connect = partial(self._connect, self.execution.id)
        last = Delivery(self.uri, [(held, connect)], self.log, self.check)
        last.finish(timeout_s, outage_timeout_s)
        self.delivery.rejected += last.rejected
        self.delivery.outage = last.outage
        self.unwritten = deque(held.left)

    def abandon(self) -> None:
        """Deliver nothing more: another driver has taken over, and records everything itself."""
        self.delivery.stop()
        with contextlib.suppress(OSError):  # a file that stays is delivered or dropped by the next
            self.spool.close(discard=True)

    # -- items -----------------------------------------------------------------------------------

    def _begin(self, verdict: Verdict, state: str) -> Item:
        node = verdict.node
        params = {k: str(v)[:PARAM_CHARACTERS] for k, v in flat(dict(node.settings)).items()}
        return {
            "do": "begin",
            "node": node.id,
            "parent": node.inputs.get("parent", ""),
            "tags": self._tags(verdict, state),
            "params": dict(list(params.items())[:PARAMS]),
            "data": self._data(node),
            "time_ms": int(time.time() * 1000),
        }

    def _finish(self, verdict: Verdict, manifest: dict[str, Any], state: str) -> Item:
        node, now = verdict.node, int(time.time() * 1000)
        tags = {"ediffi.state": state}
        if sha := manifest["info"].get("weights_sha256"):
            tags["ediffi.weights_sha256"] = sha
        return {
            "do": "finish",
            "node": node.id,
            "folder": verdict.folder,
            "fingerprint": verdict.fingerprint,
            "tags": tags,
            "values": [(f"final/{k}", v, now, 0) for k, v in manifest["metrics"].items()],
            "measured_on": self._measured_on(node),
            "files": [
                (name, "samples" if name.startswith("samples/") else node.kind)
                for name in manifest["files"]
                if name.endswith(LOGGED_FILES)
            ],
            "time_ms": now,
        }

    def _data(self, node: Node) -> dict[str, str]:
        """Role → folder of the embedded data sets that a node reads."""
        read = {**node.inputs, **node.unhashed_inputs}
        folders = {role: self.plan.verdicts[source].folder for role, source in read.items()}
        folders |= {role: result.folder for role, result in node.external.items()}
        return {r: folder for r, folder in folders.items() if folder.startswith("nodes/embed/")}

    def _measured_on(self, node: Node) -> str | None:
        """Folder of the data set that a node's measures were taken on."""
        data = self._data(node)
        return data.get("validation") or data.get("data")

    def _path(self, node: Node) -> str:
        """An expert's stage and ancestors, from the root to itself: ``base/E0_0/E1_1``."""
        stage, _, expert = node.name.partition("/")
        path = [expert]
        while parent := node.inputs.get("parent"):
            node = self.plan.verdicts[parent].node
            path.insert(0, node.settings["expert"])
        if "parent" in node.external and names.is_expert(path[0]):  # trained by another plan
            while above := names.parent(path[0]):
                path.insert(0, above)
        return "/".join([stage, *path])

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
                "ediffi.path": self._path(node),
            }
            if parent := node.external.get("parent"):
                tags["ediffi.parent"] = parent.folder.removeprefix("nodes/")
            if expert.startswith("E"):
                tags["ediffi.level"] = expert[1:].split("_")[0]
        return tags
