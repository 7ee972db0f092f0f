"""The record of a run in the store, which is shown to users and from which a run continues.

It is one file, ``executions/<id>.json``. The nodes of a large run are in parts of their own beside
it, ``executions/<id>/nodes-00000.json`` and so on, so that a change of one node writes only its
part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.data.shard_pool import prefetch
from pipelines.spec.names import check_name
from pipelines.store.artifacts import Store

if TYPE_CHECKING:
    from pipelines.dag.plan import Plan

UNFINISHED = ("running", "interrupted")

PART = 256
"""Nodes of a part; a run of no more has them in the record itself."""


@dataclass
class Execution:
    """One run of a plan."""

    id: str
    pipeline: str
    fingerprint: str
    """Fingerprint of the plan; a stopped run continues only with the same one."""

    attempt: int
    """Counts the drivers that have worked on the run, from 1."""

    state: str = "running"
    """``running``, ``done``, ``failed``, ``interrupted``, ``cancelled`` or ``killed``."""

    started: str = ""
    """ISO 8601 in UTC; so is ``ended``, which is empty while the run lasts."""

    ended: str = ""
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Node id → its state, folder, progress and times."""

    tracking: dict[str, Any] = field(default_factory=dict)
    """Where MLflow has the run: ``uri`` and more."""

    left: dict[str, Any] = field(default_factory=dict)
    """The estimate of the remaining time, as of :func:`pipelines.planning.remaining.estimate`, and
    ``at``, when it was made; empty if nothing runs."""

    parts: int = 0
    """Number of parts that ``nodes`` is stored in; 0 if the record itself has them."""

    def __post_init__(self) -> None:
        self._part_of: dict[str, int] = {}
        self._members: dict[int, list[str]] = {}
        self._touched: set[str] = set()
        self._is_latest = False

    def touch(self, node: str) -> None:
        """Take note that a node's part of :attr:`nodes` has changed, for the next :meth:`save`."""
        self._touched.add(node)

    @property
    def seconds(self) -> float:
        """Seconds from the start to the end, or to now; pauses between attempts count."""
        end = datetime.fromisoformat(self.ended) if self.ended else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.started)).total_seconds()

    def sort_nodes(self, order: Iterable[str]) -> None:
        """Put the nodes into this order, those that it does not name last."""
        everything = (*order, *self.nodes)
        self.nodes = {i: self.nodes[i] for i in everything if i in self.nodes}

    def record(self) -> dict[str, Any]:
        """The record with all nodes, as JSON."""
        return {of.name: getattr(self, of.name) for of in fields(self)}

    def save(self, store: Store) -> None:
        """Write the record, and make it the pipeline's latest run.

        Of a large run's nodes, those are written that are new or were touched, with their parts.
        """
        record = self.record()
        if self.parts or len(self.nodes) > PART:
            self._save_parts(store)
            record |= {"nodes": {}, "parts": self.parts}
        else:
            del record["parts"]
            # The store sorts an object's keys, so the order of the nodes is kept beside them.
            record["order"] = list(self.nodes)
        store.write_json(f"executions/{self.id}.json", record)
        if not self._is_latest:
            store.write_json(f"executions/{self.pipeline}.latest.json", {"id": self.id})
            self._is_latest = True

    def _save_parts(self, store: Store) -> None:
        if len(self._part_of) < len(self.nodes):
            for node in self.nodes:
                if node not in self._part_of:
                    self._join(node, len(self._part_of) // PART)
                    self.touch(node)
        changed = {self._part_of[node] for node in self._touched}

        def write(part: int) -> None:
            mine = [(node, self.nodes[node]) for node in self._members[part]]
            store.write_json(part_path(self.id, part), mine)

        for _ in prefetch(sorted(changed), write):
            pass
        self._touched.clear()
        self.parts = len(self._members)

    def _join(self, node: str, part: int) -> None:
        self._part_of[node] = part
        self._members.setdefault(part, []).append(node)

    @staticmethod
    def of(store: Store, record: Mapping[str, Any]) -> Execution:
        """The run of a record as it is stored.

        Raises:
            ValueError: A part of it is missing or damaged.
        """
        made = from_record(record)
        for part, nodes in enumerate(_parts(store, record)):
            made.nodes |= nodes
            for node in nodes:
                made._join(node, part)
        return made


def latest(store: Store, pipeline: str | None = None) -> Execution | None:
    """The latest run of a pipeline, or of all pipelines; None if there is none."""
    if pipeline is None:
        names = [f for f in store.files("executions") if f.endswith(".latest.json")]
        found = [latest(store, name.removesuffix(".latest.json")) for name in names]
        return max((e for e in found if e), key=lambda e: e.started, default=None)
    check_name(pipeline, "name of a pipeline")
    pointer = store.read_json(f"executions/{pipeline}.latest.json")
    return by_id(store, pointer["id"]) if pointer else None


def by_id(store: Store, execution: str) -> Execution | None:
    """The run of that id; None if the store has none; ValueError for what can be no id."""
    check_name(execution, "id of a run")
    record = store.read_json(f"executions/{execution}.json")
    return Execution.of(store, record) if record else None


def nodes_of(store: Store, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of a record as it is stored; ValueError as :meth:`Execution.of`."""
    found = dict(record.get("nodes", {}))
    for nodes in _parts(store, record):
        found |= nodes
    return found


def _parts(store: Store, record: Mapping[str, Any]) -> Iterator[dict[str, dict[str, Any]]]:
    paths = [part_path(record["id"], part) for part in range(record.get("parts", 0))]
    for path, nodes in zip(paths, prefetch(paths, store.read_json), strict=True):
        if nodes is None:
            raise ValueError(f"{store.full(path)} is missing, a part of the record of its run")
        yield dict(nodes)


def part_path(execution: str, part: int) -> str:
    """Path in the store of a part of a run's nodes."""
    return f"executions/{execution}/nodes-{part:05}.json"


def from_record(record: Mapping[str, Any]) -> Execution:
    """A run as its record has it, its nodes in the order of the DAG; without those in parts.

    Earlier versions kept no order; what a later version adds is left out.
    """
    known = {f.name for f in fields(Execution)}
    found = Execution(**{key: value for key, value in record.items() if key in known})
    found.sort_nodes(record.get("order", ()))
    return found


def record_names(store: Store) -> list[str]:
    """Names of the records of all runs, from the newest run to the oldest."""
    names = [
        name
        for name in store.files("executions")
        if "/" not in name and name.count(".") == 1 and name.endswith(".json")
    ]
    # A run's id ends with its date and time: NAME-20260101-120000-123456.
    return sorted(names, key=lambda name: name.split("-")[-3:], reverse=True)


def recent(store: Store, pipeline: str | None = None, most: int | None = None) -> list[Execution]:
    """The runs of a pipeline, or of all, from the newest to the oldest.

    Args:
        most: How many, at most; None for all.
    """
    if pipeline is not None:
        check_name(pipeline, "name of a pipeline")
    ids = [name.removesuffix(".json") for name in record_names(store)]
    ids = [i for i in ids if pipeline is None or i.rsplit("-", 3)[0] == pipeline]
    return [run for i in ids[:most] if (run := by_id(store, i))]


def cancel_request_path(execution: str) -> str:
    """Path in the store of the request to cancel a run."""
    return f"executions/{execution}.cancel.json"


def is_cancelled(store: Store, execution: str) -> bool:
    """Whether somebody has asked to cancel a run."""
    return store.read_json(cancel_request_path(execution)) is not None


def now() -> str:
    """The time as records hold it: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def begin(plan: Plan, store: Store) -> Execution:
    """Continue the latest run if it is unfinished and has the same plan; else start a new one.

    Args:
        plan: what is to be run.

    Returns:
        The run's record, not saved yet.
    """
    last = latest(store, plan.spec.name)
    if last and last.state in UNFINISHED and is_cancelled(store, last.id):
        last.state = "cancelled"  # it had no live driver to act on the request
        last.save(store)
    unfinished = last and last.state in UNFINISHED
    if last and unfinished and last.fingerprint == plan.fingerprint:
        last.state, last.ended = "running", ""
        last.attempt += 1
        return last
    if last and last.state == "running":
        last.state = "killed"
        last.save(store)
    moment = datetime.now(UTC)
    return Execution(
        id=f"{plan.spec.name}-{moment:%Y%m%d-%H%M%S-%f}",
        pipeline=plan.spec.name,
        fingerprint=plan.fingerprint,
        attempt=1,
        started=moment.isoformat(timespec="seconds"),
    )
