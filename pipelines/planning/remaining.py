"""How long a running pipeline still takes, from measured speeds.

A node that runs goes on at its own speed. One that waits goes at the speed of the same network that
runs, or takes as long as finished nodes of its kind took in this store. Both are put on the CPUs
and GPUs of the run by :func:`simulate`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from statistics import median
from types import MappingProxyType
from typing import Any

from pipelines.dag.node import Node
from pipelines.dag.plan import Plan, images_to_train, path_lengths
from pipelines.planning.cost import stage_of
from pipelines.planning.simulate import Task, simulate
from pipelines.planning.training_cost import START_S, speed_key
from pipelines.runs.execution import nodes_of
from pipelines.store.artifacts import MANIFEST, Store

RUNS_READ, MANIFESTS_READ = 20, 50
"""How much of a store's history is read: the latest runs, and their latest results."""

EMPTY: Mapping[str, Sequence[float]] = MappingProxyType({})

FIRST = 10**9
"""Priority of nodes that run already."""


class Durations:
    """How long nodes took, by what they have in common with others."""

    def __init__(self) -> None:
        self._images_per_s: dict[str, list[float]] = {}
        """:func:`speed_key` → speeds of finished trainings."""

        self._seconds: dict[tuple[str, ...], list[float]] = {}
        """Kind and name, kind and stage, or kind → run times of other nodes."""

    def add(self, node: Node, manifest: Mapping[str, Any]) -> None:
        """Take a finished node into account; ``manifest`` is its manifest in the store."""
        seconds = manifest["seconds"]
        if node.kind != "train":
            for key in _likeness(node):
                self._seconds.setdefault(key, []).append(seconds)
            return
        if (images := manifest["info"].get("trained_now", 0)) and seconds > START_S:
            speed = images / (seconds - START_S)
            self._images_per_s.setdefault(speed_key(node), []).append(speed)

    def seconds(
        self, plan: Plan, node: Node, now: Mapping[str, Sequence[float]] = EMPTY
    ) -> float | None:
        """The likely run time of a node, in seconds; None if nothing like it was ever timed.

        A training is its images ÷ the median speed of the same network. Any other node takes the
        median time of the same node, else of its kind in the stage, else of its kind.

        Args:
            now: :func:`speed_key` → images/s of trainings that run, which come first.
        """
        if node.kind == "train":
            key = speed_key(node)
            speeds = now.get(key) or self._images_per_s.get(key)
            return START_S + (images_to_train(plan, node) or 0) / median(speeds) if speeds else None
        found = (self._seconds[key] for key in _likeness(node) if key in self._seconds)
        return next((median(known) for known in found), None)


def _likeness(node: Node) -> list[tuple[str, ...]]:
    """What finished nodes are like this one, the likest first."""
    return [(node.kind, node.name), (node.kind, stage_of(node), ""), (node.kind,)]


def durations_in(store: Store, plan: Plan) -> Durations:
    """The run times of a plan's finished nodes, and of the latest runs of all pipelines."""
    found = Durations()
    mine = {v.folder: v for v in plan.verdicts.values()}
    for verdict in mine.values():
        if verdict.manifest is not None:
            found.add(verdict.node, verdict.manifest)
    for folder in islice((f for f in _built_lately(store) if f not in mine), MANIFESTS_READ):
        with contextlib.suppress(ValueError):  # a damaged one of another run stops none
            if manifest := store.read_json(f"{folder}/{MANIFEST}"):
                kind, name, settings = (manifest[k] for k in ("kind", "name", "settings"))
                found.add(Node(kind=kind, name=name, settings=settings), manifest)
    return found


def _built_lately(store: Store) -> list[str]:
    """Folders of the nodes that the latest runs have built, those of the newest run first."""
    names = [
        name
        for name in store.files("executions")
        if "/" not in name and name.count(".") == 1 and name.endswith(".json")
    ]
    # A run's id ends with its date and time: NAME-20260101-120000-123456.
    names.sort(key=lambda name: name.split("-")[-3:], reverse=True)
    found: dict[str, None] = {}
    for name in names[:RUNS_READ]:
        with contextlib.suppress(ValueError):
            if record := store.read_json(f"executions/{name}"):
                nodes = nodes_of(store, record).values()
                found |= {r["folder"]: None for r in nodes if r["state"] == "done"}
    return list(found)


def estimate(
    plan: Plan, nodes: Mapping[str, Mapping[str, Any]], durations: Durations, now: datetime
) -> dict[str, Any]:
    """Estimate how long a run still takes.

    Args:
        plan: the run's plan.
        nodes: node id → its part of the run's record.
        durations: what is known of finished nodes.
        now: the present time, in UTC.

    Returns:
        JSON: ``seconds`` until the last node ends, ``unknown``, the ids of the nodes that are left
        out since nothing like them was ever timed, and ``grows``, whether a tree may yet get
        experts that nobody knows of.
    """
    capacity = {"cpus": float(plan.spec.cpus), "gpus": float(plan.spec.gpus)}
    at_work: dict[str, list[float]] = {}
    for verdict in plan.verdicts.values():
        record = nodes.get(verdict.node.id, {})
        if verdict.node.kind == "train" and record.get("state") == "running" and "rate" in record:
            at_work.setdefault(speed_key(verdict.node), []).append(record["rate"])
    lengths, tasks, unknown = path_lengths(plan), [], []
    for verdict in plan.verdicts.values():
        node = verdict.node
        record = nodes.get(node.id, {"state": "waiting"})
        if record["state"] not in ("running", "waiting"):
            continue
        is_running = record["state"] == "running"
        seconds = _left_of(record) if is_running else None
        if seconds is None and (whole := durations.seconds(plan, node, at_work)) is not None:
            elapsed = timedelta()
            if is_running:
                elapsed = now - datetime.fromisoformat(record["since"])
            seconds = max(0.0, whole - elapsed.total_seconds())
        if seconds is None:
            unknown.append(node.id)
        tasks.append(
            Task(
                name=node.id,
                seconds=seconds or 0.0,
                needs=[] if is_running else node.dependencies,
                group="cpus",
                gang=min(node.cpus, capacity["cpus"]),  # one that never fits stops no estimate
                also={"gpus": min(node.gpus, capacity["gpus"])} if node.gpus else {},
                priority=FIRST if is_running else node.priority,
                path_length=lengths[node.id],
            )
        )
    seconds_left = simulate(tasks, capacity).makespan if tasks else 0.0
    return {"seconds": round(seconds_left, 1), "unknown": unknown, "grows": plan.is_growing}


def _left_of(record: Mapping[str, Any]) -> float | None:
    """Seconds that a running node still takes at its own speed; None before it has one."""
    if not record.get("rate") or not record.get("of"):
        return None
    left: float = (record["of"] - record["done"]) / record["rate"]
    return max(0.0, left)
