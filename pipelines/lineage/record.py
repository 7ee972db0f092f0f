"""What the runner tells, made into items that say everything MLflow needs to know."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.dag.plan import Plan, Verdict
from pipelines.lineage.address import folder, tracking_uri
from pipelines.lineage.delivery import Delivery
from pipelines.lineage.spool import Item, Spool
from pipelines.lineage.writer import Writer
from pipelines.models import champions
from pipelines.reports import tree as tree_view
from pipelines.store.artifacts import Store, sha256

SHOWN = (".png", "captions.txt", "ensemble.json", "decision.json")
"""Files of a node that the record shows."""

PARAMS, PARAM_CHARACTERS, TAG_CHARACTERS = 100, 6000, 5000  # MLflow's limits a call, or below them
WAIT_S, WAIT_AWAY_S = 120.0, 15.0


class Lineage:
    """Takes what happens and keeps it at once; what takes it to MLflow is :class:`Delivery`."""

    def __init__(
        self, plan: Plan, store: Store, execution: Any, say: Callable[[str], None]
    ) -> None:
        self.plan, self.store, self.execution, self.say = plan, store, execution, say
        self.uri = tracking_uri(plan.spec.tracking, store)
        self.is_aside = not store.is_local and str(folder(store)) in self.uri
        execution.tracking = {"uri": self.uri, **execution.tracking}
        self.writer: Writer | None = None
        self.is_kept = True
        """Whether the spool takes what it is given; a full disk does not."""
        mine = f"{execution.id}.{sha256(self.uri.encode())[:8]}.jsonl"
        self.spool = self._open(mine)
        spools = [*self._older(), self.spool]
        self.delivery = Delivery(
            self.uri, [(s, partial(self._connect, s.path.name.split(".")[0])) for s in spools], say
        )
        tags = {
            "ediffi.pipeline": execution.pipeline,
            "ediffi.execution": execution.id,
            "ediffi.state": "running",
        }
        self._keep({"do": "open", "tags": tags})

    def _open(self, name: str) -> Spool:
        place = folder(self.store) / "mlflow-spool"
        try:
            return Spool(place / name)
        except OSError as error:  # a home that is read-only, as in some containers
            aside = Path(tempfile.gettempdir()) / "ediffi-mlflow-spool"
            self.say(f"{place} cannot be written ({error}); the record waits in {aside} instead")
            return Spool(aside / name)

    def _older(self) -> list[Spool]:
        """What earlier executions of this pipeline could not deliver."""
        name = re.compile(rf"{re.escape(self.execution.pipeline)}-\d{{8}}-\d{{6}}-\d+\.\w+\.jsonl")
        mine = self.spool.path
        found = []
        for path in sorted(mine.parent.glob("*.jsonl")):
            if path == mine or not name.fullmatch(path.name):
                continue
            if path.suffixes[-2:] == mine.suffixes[-2:]:
                found.append(Spool(path))
            else:
                self.say(f"{path} waits for another MLflow; name that one again, or delete it")
        return found

    def _connect(self, execution: str) -> Writer:
        writer = Writer(self.uri, self.plan.spec.name, execution, self.store)
        if execution == self.execution.id:
            self.writer = writer
        return writer

    def _keep(self, item: Item) -> None:
        try:
            self.spool.append({"time_ms": int(time.time() * 1000), **item})
        except OSError as error:
            if self.is_kept:
                self.say(f"the record is incomplete: {self.spool.path} takes no more ({error})")
            self.is_kept = False

    # -- what the runner tells -------------------------------------------------------------------

    def started(self, verdict: Verdict) -> None:
        self._keep(self._begin(verdict, "running"))

    def report(self, node: str, row: dict[str, Any]) -> None:
        """A step's row: the points of its curves, and a picture of the store's."""
        if metrics := row.get("metrics"):
            step = int(row.get("images", row.get("done", 0)))
            values = [(k, float(v), row["time_ms"], step) for k, v in metrics.items()]
            self._keep({"do": "metrics", "node": node, "values": values})
        if picture := row.get("picture"):
            self._keep({"do": "picture", "node": node, "file": picture})

    def finished(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        self._keep(self._finish(verdict, manifest, "done"))
        self._decided(verdict, manifest)

    def reused(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        begin, finish = self._begin(verdict, "reused"), self._finish(verdict, manifest, "reused")
        self._keep({"do": "reused", "begin": begin, "finish": finish})
        self._decided(verdict, manifest)

    def _decided(self, verdict: Verdict, manifest: dict[str, Any]) -> None:
        """Says at the experts' own runs which are adopted, and why others are not."""
        if verdict.node.kind != "adopt":
            return
        refused = manifest["info"]["refused"]
        for role, node in verdict.node.inputs.items():
            tags = {"ediffi.adopted": "no" if role in refused else "yes"}
            if role in refused:
                tags["ediffi.refused"] = refused[role]
            elif role not in manifest["info"]["seats"].values():
                continue
            self._keep({"do": "label", "node": node, "tags": tags})

    def failed(self, verdict: Verdict, error: str) -> None:
        self._keep({"do": "fail", "node": verdict.node.id, "error": error[:TAG_CHARACTERS]})

    def close(
        self,
        state: str,
        manifests: dict[str, Any],
        wait_s: float = WAIT_S,
        wait_away_s: float = WAIT_AWAY_S,
    ) -> None:
        """Keeps the end, and waits for all to be delivered; says what is left if it takes long."""
        tree = tree_view.build(self.plan, self.execution, manifests)
        run = self.execution
        tree["labels"] = champions.run_aliases(self.store, run.pipeline, run.nodes)
        now = int(time.time() * 1000)
        promoted = next((v for v in self.plan.verdicts.values() if v.node.kind == "promote"), None)
        model = None
        if promoted and promoted.node.id in manifests:
            model = {"folder": promoted.folder, "fingerprint": promoted.fingerprint}
        self._keep(
            {
                "do": "close",
                "state": state,
                "note": tree_view.markdown(tree),
                "tree": tree,
                "values": [(k, v, now, 0) for k, v in tree_view.headline_metrics(tree).items()],
                "model": model,
            }
        )
        self.delivery.finish(wait_s, wait_away_s)
        if self.writer:
            self.execution.tracking = {
                "uri": self.uri,
                "run": self.writer.runs.get("", ""),
                "experiment": self.writer.experiment,
                "nodes": {node: run for node, run in self.writer.runs.items() if node},
            }
        if left := self.delivery.left:
            why = self.delivery.away or f"it was still busy after {wait_s:.0f} s"
            self.say(
                f"MLflow has yet to be told {left:,} items ({why}); they are kept in "
                f"{self.spool.path.parent}, and the same command completes the record"
            )
        else:
            self.spool.close()
        if refused := self.delivery.refused:
            self.say(f"the MLflow record lacks {refused:,} items that it did not take")

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
            "files": [
                (name, "samples" if name.startswith("samples/") else node.kind)
                for name in manifest["files"]
                if name.endswith(SHOWN)
            ],
            "time_ms": now,
        }

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
            if warm := node.given.get("parent"):
                tags["ediffi.parent"] = warm.folder.removeprefix("nodes/")
            if expert.startswith("E"):
                tags["ediffi.level"] = expert[1:].split("_")[0]
        return tags


def flat(settings: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b`` → value."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{at}.{key}" if at else key
        out |= flat(value, name) if isinstance(value, dict) else {name: value}
    return out
