"""A store after a year of weekly retrainings, with nodes of a few bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tiny_shards import header

from pipelines.dag.node import ExternalResult, Node
from pipelines.dag.plan import Verdict, digest, folder_of
from pipelines.data.shard_pool import shard_path
from pipelines.executor.commit import commit
from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.runs.context import Result
from pipelines.runs.execution import Execution
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version

MODEL, POOL = "weekly", "embeddings/0123456789abcdef"
START = datetime(2026, 1, 5, 3, tzinfo=UTC)
EXPERTS = ("E1_0", "E1_1")
FAILED, INTERRUPTED = 11, 23
"""Weeks whose run ended while it trained."""

Inputs = Mapping[str, str | ExternalResult]


class Year:
    """A model that is retrained every week on more shards, and promoted every other week."""

    def __init__(
        self, store: Store, *, seed: int = 0, weight_bytes: int = 4000, shards: int = 1
    ) -> None:
        """
        Args:
            shards: new ones of a week.
        """
        self.store, self.random, self.weight_bytes = store, random.Random(seed), weight_bytes
        self.new = shards
        self.week = 0
        self.shards: list[dict[str, Any]] = []
        self.nodes: dict[str, dict[str, Any]] = {}
        """Node id → manifest or record, of the week's run."""

        self.weights: dict[str, ExternalResult] = {}
        """Expert → the champion's."""

    def run(self, weeks: int) -> Year:
        """Simulate more weeks."""
        for _ in range(weeks):
            self._retrain()
            self.week += 1
        return self

    # -- a week ------------------------------------------------------------------------------------

    def _retrain(self) -> None:
        self.nodes, manifests = {}, dict[str, Any]()
        self._new_shards()
        data = self._embed("train", self.shards, manifests)
        validation = self._embed("validation", self.shards[-self.new :], manifests)
        if self.week in (FAILED, INTERRUPTED):
            self._half_trained(data)
            self._record("failed" if self.week == FAILED else "interrupted")
            return
        trained = {}
        for expert in EXPERTS:
            inputs: dict[str, str | ExternalResult] = {"data": "embed/train"}
            if self.weights:
                inputs["parent"] = self.weights[expert]
            files = {"ema.safetensors": self.random.randbytes(self.weight_bytes)}
            trained[expert] = self._node("train", f"base/{expert}", inputs, manifests, files)
        of = {f"base/{expert}": f"train/base/{expert}" for expert in EXPERTS}
        scores = {"scores.json": b"[]"}
        self._node(
            "evaluate",
            "base/ensemble",
            {**of, "validation": "embed/validation"},
            manifests,
            scores,
        )
        ensemble = {
            "weights": {
                f"base/{expert}": {
                    "path": f"{result.folder}/ema.safetensors",
                    "fingerprint": result.fingerprint,
                }
                for expert, result in trained.items()
            },
            "data": {"train": vars(data), "validation": vars(validation)},
            "stages": [],
            "trained_with": {},
        }
        promoted = self._node(
            "promote",
            MODEL,
            {**of, "data": "embed/train", "evaluation/base": "evaluate/base/ensemble"},
            manifests,
            {"ensemble.json": json.dumps(ensemble).encode()},
        )
        gate = {"candidate": f"promote/{MODEL}"}
        self._node("gate", MODEL, gate, manifests, {"decision.json": b"{}"})
        run = self._record("done")
        by, fingerprint = f"run {run}", promoted.fingerprint
        entry = Entry(fingerprint=fingerprint, folder=promoted.folder, why="finished", by=by)
        champions.add_candidate(self.store, MODEL, entry)
        if self.week % 2 == 0:
            champions.promote(self.store, MODEL, fingerprint, "better", by=by)
            self.weights = trained

    def _new_shards(self) -> None:
        """More source files, and a tenth as many that are written anew every week."""
        names = [f"part-{self.week:04d}-{i:04d}" for i in range(self.new)]
        names += (anew := [f"rolling-{i:04d}" for i in range(max(1, self.new // 10))])
        self.shards = [shard for shard in self.shards if shard["name"] not in anew]
        for name in names:
            identity, data = f"{name} of week {self.week}", self.random.randbytes(1000)
            path = shard_path(POOL, name, identity, "parquet")
            self.store.write(path, data)
            stem = path.removesuffix(".parquet")
            for ending in ("keys", "rows", "json"):
                self.store.write(f"{stem}.{ending}", b"{}")
            about = {"rows": 10, "usable": {4: 10, 8: 10}, "bytes": len(data), "sha256": ""}
            shard = {"name": name, "path": path, "source_identity": identity, **about}
            self.shards.append(shard)

    def _embed(self, split: str, shards: list[dict[str, Any]], manifests: Any) -> ExternalResult:
        def write(folder: str) -> list[str]:
            Version.write(self.store, folder, shards, header())
            self.store.write_json(f"{folder}/stats.json", {"empty": []})
            return ["dataset.parquet", "stats.json"]

        return self._node("embed", split, {}, manifests, write)

    def _node(
        self, kind: str, name: str, inputs: Inputs, manifests: dict[str, Any], files: Any
    ) -> ExternalResult:
        """Commit a node as a run does."""
        node = Node(
            kind=kind,
            name=name,
            settings={"week": self.week},
            inputs={role: i for role, i in inputs.items() if isinstance(i, str)},
            external={r: i for r, i in inputs.items() if isinstance(i, ExternalResult)},
        )
        fingerprint = digest([kind, name, self.week])
        folder = folder_of(node, fingerprint)
        if callable(files):
            written = files(folder)
        else:
            written = list(files)
            for file, data in files.items():
                self.store.write(f"{folder}/{file}", data)
        verdict = Verdict(node=node, fingerprint=fingerprint, manifest=None, why="")
        manifests[node.id] = commit(self.store, verdict, Result(files=written), manifests, 1.0)
        self.store.write_json(f"leases/{folder}.json", {})
        self.nodes[node.id] = {"state": "done", "folder": folder}
        return ExternalResult(folder=folder, fingerprint=fingerprint)

    def _half_trained(self, data: ExternalResult) -> None:
        folder = f"nodes/train/base/E1_0-{digest(['half', self.week])}"
        self.store.write(f"{folder}/checkpoints/0000000064/part-0", bytes(self.weight_bytes))
        reads = [result.folder for result in self.weights.values()]
        self.nodes["train/base/E1_0"] = {"state": "failed", "folder": folder, "reads": reads}

    def _record(self, state: str) -> str:
        at = START + timedelta(weeks=self.week)
        run = Execution(
            id=f"{MODEL}-{at:%Y%m%d-%H%M%S-%f}",
            pipeline=MODEL,
            fingerprint=digest(["plan", self.week]),
            attempt=1,
            state=state,
            started=at.isoformat(timespec="seconds"),
            nodes=self.nodes,
        )
        run.save(self.store)
        self.store.write_json(f"executions/{run.id}.tree.json", {"experts": []})
        return run.id
