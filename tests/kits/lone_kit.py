"""A runner of single nodes, without a record in MLflow."""

from __future__ import annotations

from typing import Any

from pipelines.dag.plan import Plan, Verdict
from pipelines.executor.console import Console
from pipelines.executor.runner import Runner
from pipelines.executor.stopping import Stop
from pipelines.runs.claims import Claims
from pipelines.runs.lease import acquire
from pipelines.store.artifacts import Store


class LoneRunner(Runner):
    """Claims each node that it is asked to run, as the driver of the pipeline."""

    def __init__(self, plan: Plan, store: Store) -> None:
        name = plan.spec.name
        claims = Claims(store, name, acquire(store, name))
        nothing: Any = None
        super().__init__(plan, store, nothing, nothing, Console(), Stop(), claims)

    def run_node(self, verdict: Verdict) -> dict[str, Any]:
        assert self.claims.acquire(verdict.folder) is None
        try:
            return super().run_node(verdict)
        finally:
            self.claims.release(verdict.folder)
