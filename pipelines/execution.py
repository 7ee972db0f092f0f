"""One run of a plan, as the store keeps it: to be looked at, and to be gone on with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.plan import Plan
from pipelines.store.artifacts import Store


@dataclass
class Execution:
    """One run of a plan; kept in the store, so that it can be looked at and continued."""

    id: str
    pipeline: str
    fingerprint: str
    attempt: int
    state: str = "running"
    started: str = ""
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)

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


def begin(plan: Plan, store: Store) -> Execution:
    """Continues the last execution if it was stopped before its end, else starts a new one."""
    last = latest(store, plan.spec.name)
    unfinished = last and last.state in ("running", "interrupted")
    if last and unfinished and last.fingerprint == plan.fingerprint:
        last.state = "running"
        last.attempt += 1
        return last
    if last and last.state == "running":
        last.state = "killed"
        last.save(store)
    now = datetime.now(UTC)
    return Execution(
        id=f"{plan.spec.name}-{now:%Y%m%d-%H%M%S-%f}",
        pipeline=plan.spec.name,
        fingerprint=plan.fingerprint,
        attempt=1,
        started=now.isoformat(timespec="seconds"),
    )
