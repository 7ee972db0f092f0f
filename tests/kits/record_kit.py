"""Drive the record like a driver, and read it back from MLflow."""

import time
from collections.abc import Callable
from pathlib import Path

from paths import SMOKE

from pipelines.dag import plan, sources
from pipelines.lineage import Lineage, quiet_mlflow
from pipelines.lineage.pages import every
from pipelines.runs import execution
from pipelines.spec.loading import load
from pipelines.store.artifacts import Store

NODE = "train/base/E0_0"
PATIENCE_S = 300


class Driver:
    """A driver without Ray: a plan, its execution, and the logged lines."""

    def __init__(
        self,
        root: Path,
        uri: str | None = None,
        spec: Path = SMOKE,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = Store.open(str(root))
        loaded = load(spec).model_copy(update={"tracking": uri})
        self.plan = plan.make(loaded, self.store, sources.identify_all(loaded))
        self.execution = execution.begin(self.plan, self.store)
        self.execution.save(self.store)
        self.said: list[str] = []
        self.lineage = Lineage(self.plan, self.store, self.execution, self.said.append, check)

    def start(self, node: str = NODE) -> None:
        self.lineage.started(self.plan.verdicts[node])

    def report(self, at: int, node: str = NODE, **metrics: float) -> None:
        row = {"time_ms": 1_700_000_000_000 + at, "images": at, "metrics": metrics}
        self.lineage.report(node, row)

    def close(self, state: str = "done", **waits: float) -> None:
        self.execution.state = state
        self.execution.save(self.store)
        self.lineage.close(state, {}, **waits)

    def until(self, reached, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < deadline, f"never came to {what}: {self.said}"
            time.sleep(0.02)


def runs_of(uri: str) -> dict[str, list]:
    """Node id → its runs in MLflow; ``""`` stands for the executions' own."""
    client = quiet_mlflow().MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("smoke").experiment_id
    found: dict[str, list] = {}
    for one in every(client.search_runs, [experiment]):
        found.setdefault(one.data.tags.get("ediffi.node", ""), []).append(one)
    return found


def points(uri: str, key: str, node: str = NODE) -> list[tuple[int, float]]:
    """All (step, value) of a curve that MLflow has."""
    client = quiet_mlflow().MlflowClient(tracking_uri=uri)
    [only] = runs_of(uri)[node]
    return sorted((m.step, m.value) for m in client.get_metric_history(only.info.run_id, key))
