"""How far a study is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.dag.plan import Plan
from pipelines.formatting import align_columns, duration
from pipelines.runs.execution import Execution, latest
from pipelines.store.artifacts import Store
from pipelines.studies.cells import Opened
from pipelines.studies.planning import Work, done_cells, work_of


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study's progress, read from the store."""

    study: str
    state: str
    """Of its last run: ``running``, ``done``, …; ``never run``."""

    attempt: int
    done: tuple[str, ...]
    """Cells that are finished."""

    cells: int
    experiments: dict[str, tuple[int, int]]
    """Experiment → finished cells, and all its cells."""

    work: tuple[Work, ...]
    running: dict[str, str]
    """Running node → its progress in words."""

    failed: dict[str, str]
    """Failed node → its error."""

    cpus: int

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds on the study's CPUs; None if some kind was never run."""
        parts = [of.seconds for of in self.work]
        return None if None in parts else sum(p for p in parts if p) / self.cpus


def status(opened: Opened, store: Store, made: Plan) -> Status:
    """The progress of a study's last run.

    Args:
        made: the plan as the store is now.
    """
    execution = latest(store, opened.study.study)
    done = done_cells(made)
    experiments = {
        name: (
            sum(name in c.experiments and c.name in done for c in opened.cells),
            sum(name in c.experiments for c in opened.cells),
        )
        for name in opened.study.experiments
    }
    nodes = execution.nodes if execution and execution.state == "running" else {}
    return Status(
        study=opened.study.study,
        state=execution.state if execution else "never run",
        attempt=execution.attempt if execution else 0,
        done=tuple(done),
        cells=len(opened.cells),
        experiments=experiments,
        work=tuple(work_of(made)),
        running={n: _progress(row) for n, row in nodes.items() if row["state"] == "running"},
        failed=_failures(execution, made),
        cpus=made.spec.cpus,
    )


def _progress(row: dict[str, Any]) -> str:
    return f"{row['done']:,} of {row['of']:,} {row['unit']}" if "done" in row else "started"


def _failures(execution: Execution | None, made: Plan) -> dict[str, str]:
    rows = execution.nodes if execution else {}
    return {
        name: row.get("error", "")
        for name, row in rows.items()
        if row["state"] == "failed" and name in made.verdicts and not made.verdicts[name].cached
    }


def data(found: Status) -> dict[str, Any]:
    """A status as JSON."""
    return {
        **found.__dict__,
        "work": [of.__dict__ for of in found.work],
        "seconds_left": found.seconds_left,
    }


def text(found: Status) -> str:
    """A status for the terminal."""
    attempt = f", attempt {found.attempt}" if found.attempt > 1 else ""
    lines = [
        f"study {found.study}: {found.state}{attempt}; "
        f"{len(found.done)} of {found.cells} cells are finished"
    ]
    rows = [[f"  {n}", f"{done} of {of} cells"] for n, (done, of) in found.experiments.items()]
    rows += [[f"  {w.kind}", f"{w.reused} of {w.nodes} nodes"] for w in found.work]
    lines += align_columns(rows, right={1})
    lines += [f"running: {node}, {how}" for node, how in found.running.items()]
    lines += [f"failed: {node}: {why}" for node, why in found.failed.items()]
    left = found.seconds_left
    if left:
        lines.append(f"about {duration(left)} left on {found.cpus} CPUs")
    elif left is None:
        lines.append("the time left is not known before each kind of node has run once")
    return "\n".join(lines)
