"""One run of a plan, as the store keeps it: to be looked at, and to be gone on with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.store.artifacts import Store

if TYPE_CHECKING:
    from pipelines.dag.plan import Plan

UNFINISHED = ("running", "interrupted")


@dataclass
class Execution:
    """One run of a plan; kept in the store, so that it can be looked at and continued."""

    id: str
    pipeline: str
    fingerprint: str
    attempt: int
    state: str = "running"
    started: str = ""
    ended: str = ""
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From its start to its end, or to now; pauses between attempts count."""
        end = datetime.fromisoformat(self.ended) if self.ended else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.started)).total_seconds()

    def save(self, store: Store) -> None:
        store.write_json(f"executions/{self.id}.json", self.__dict__)
        store.write_json(f"executions/{self.pipeline}.latest.json", {"id": self.id})


def latest(store: Store, pipeline: str | None = None) -> Execution | None:
    """The last execution of a pipeline, or of any."""
    if pipeline is None:
        names = [f for f in store.files("executions") if f.endswith(".latest.json")]
        found = [latest(store, name.removesuffix(".latest.json")) for name in names]
        return max((e for e in found if e), key=lambda e: e.started, default=None)
    pointer = store.read_json(f"executions/{pipeline}.latest.json")
    return by_id(store, pointer["id"]) if pointer else None


def by_id(store: Store, execution: str) -> Execution | None:
    record = store.read_json(f"executions/{execution}.json")
    return Execution(**record) if record else None


def cancel_word(execution: str) -> str:
    """Where word is left that an execution is to be given up."""
    return f"executions/{execution}.cancel.json"


def is_cancelled(store: Store, execution: str) -> bool:
    return store.read_json(cancel_word(execution)) is not None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def begin(plan: Plan, store: Store) -> Execution:
    """Continues the last execution if it was stopped before its end, else starts a new one."""
    last = latest(store, plan.spec.name)
    if last and last.state in UNFINISHED and is_cancelled(store, last.id):
        last.state = "cancelled"  # while no driver lived to hear of it
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
