"""Run a plan to its end, then close its record and decide which ensemble is champion."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipelines.dag.inputs import SPLITS
from pipelines.dag.plan import Plan
from pipelines.executor import cancel, notify
from pipelines.executor.console import Console
from pipelines.executor.runner import Runner, one_line
from pipelines.executor.stopping import Stop
from pipelines.lineage import Lineage
from pipelines.models import champions
from pipelines.planning import lint
from pipelines.planning.findings import Finding
from pipelines.reports import tree as tree_view
from pipelines.runs.claims import Claims
from pipelines.runs.continued import keep_listings
from pipelines.runs.execution import Execution, begin
from pipelines.runs.lease import LeaseLost, only_driver
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError

RECORD_WHEN_STOPPED_S = 5.0
"""How long a driver that got a signal waits for MLflow to take the rest of the record."""

CANCELLED = 3
STOPPED = {
    "interrupted": "run the same command again to continue",
    "cancelled": "finished nodes and checkpoints are kept, and the next run continues from them",
}


def drive(
    made: Plan,
    store: Store,
    found: Sequence[Finding] | None = None,
    metrics_port: int | None = None,
) -> tuple[int, str, list[str]]:
    """Run a plan.

    Args:
        found: What checks have found in a plan of several pipelines; None to check the plan.
        metrics_port: As of :func:`pipelines.executor.ray_cluster.start_ray`.

    Returns:
        The exit code, a report for stdout, and error lines for stderr. Exit codes:

        - 0: all nodes are done.
        - 1: a node failed.
        - 2: all failures are the user's mistakes or errors of the storage.
        - 3: the run was cancelled; whatever supervises it should not restart it.
        - 128 + n: stopped by signal n.
    """
    try:
        return _drive(made, Store.open(store.root), found, metrics_port)
    except LeaseLost as error:  # whatever was to be written, the successor writes
        return 1, "", [str(error)]


def _drive(
    made: Plan, store: Store, found: Sequence[Finding] | None, metrics_port: int | None
) -> tuple[int, str, list[str]]:
    name = made.spec.name
    found = lint.check(made.spec, made) if found is None else found
    lint.raise_errors(found)
    with (
        Console() as console,
        only_driver(store, name, console.log) as lease,
        Stop() as stop,
        contextlib.ExitStack() as exits,
    ):
        records = lease.fenced("executions")
        execution = begin(made, records)
        keep_listings(made, records)
        execution.save(records)
        attempt = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
        console.log(f"{execution.id}{attempt}: {len(made.verdicts)} nodes in {store.root}")
        for verdict in made.verdicts.values():
            if verdict.cached:
                console.log(f"{verdict.node.id} reused: {verdict.why}")
        for split in SPLITS:
            if arrived := made.sources.get(split, {}).get("arrived"):
                console.log(
                    f"data.{split}: {arrived:,} files that arrived since this run began are left "
                    "for the next one"
                )
        for finding in found:
            console.log(str(finding))
        lineage = Lineage(made, store, execution, console.log, lease.check_if_overdue)
        exits.push(partial(abandon_if_lost, lineage))
        claims = Claims(store, name, lease)
        runner = Runner(made, store, execution, lineage, console, stop, claims, metrics_port)
        with cancel.watch_for_cancel(store, execution.id, stop):
            try:
                good = runner.run()
            except LeaseLost:
                raise
            except Exception as error:
                execution.state = "failed"
                notify.send(made.spec.notify, execution, {"run": one_line(error)}, console.log)
                raise
        if execution.state in STOPPED:
            waits = (RECORD_WHEN_STOPPED_S,) if stop.signal else ()
            lineage.close(execution.state, runner.manifests, *waits)
            execution.save(records)
            notify.send(
                made.spec.notify, execution, {}, console.log, tries=1, timeout_s=3.0, total_s=5.0
            )
            console.log(f"run {execution.state}; {STOPPED[execution.state]}")
            return CANCELLED if stop.signal is None else 128 + stop.signal, "", []
        if good:
            runner.patiently(lease.check)
            decide = partial(register_ensemble, runner.plan, store, execution, runner.manifests)
            for line in runner.patiently(decide):
                console.log(line)
        console.log("completing the MLflow record")
        lineage.close(execution.state, runner.manifests)
        runner.patiently(lambda: execution.save(records))
        here = " on this machine, as a bucket cannot hold it" if lineage.is_outside_store else ""
        failed = {node: one_line(error) for node, error in runner.failed.items()}
        notify.send(made.spec.notify, execution, failed, console.log)
        console.log(f"run {execution.state}; MLflow record: {lineage.shown}{here}")
    shown = ""
    if not made.cells:
        tree = tree_view.build(runner.plan, execution, runner.manifests)
        shown = "\n" + tree_view.text(tree)
    if good and (promoted := runner.plan.verdicts.get(f"promote/{name}")):
        path = store.full(f"{promoted.folder}/{champions.MANIFEST}")
        shown += f"\n\nensemble: {os.path.relpath(path) if store.is_local else path}"
    if good:
        return 0, shown, []
    mistakes = all(isinstance(e, ValueError | StorageError) for e in runner.failed.values())
    wrong = [f"{node}: {why}" for node, why in failed.items()]
    return 2 if mistakes else 1, shown, wrong


def abandon_if_lost(lineage: Lineage, kind: Any, error: BaseException | None, trace: Any) -> None:
    """Leave the record to the driver that has taken over; for an ``ExitStack``."""
    if isinstance(error, LeaseLost):
        lineage.abandon()


def register_ensemble(
    made: Plan, store: Store, execution: Execution, manifests: Mapping[str, Any]
) -> list[str]:
    """Make a run's ensemble the candidate, and the champion if there is none or the gate says so.

    Args:
        manifests: node id → manifest of the run's finished nodes.

    Returns:
        What was decided, as lines for the user.
    """
    name = made.spec.name
    promoted = made.verdicts.get(f"promote/{name}")
    if promoted is None or promoted.node.id not in manifests:
        return []
    mine, by = promoted.fingerprint, f"run {execution.id}"
    before = champions.read(store, name)
    entry = champions.Entry(fingerprint=mine, folder=promoted.folder, why="finished", by=by)
    known = mine in before.versions
    anew = execution.nodes.get(promoted.node.id, {}).get("state") == "done"
    book = champions.add_candidate(store, name, entry, anew)
    if before.champion and before.champion.fingerprint == mine:
        return []
    try:
        if before.champion is None:
            why = "there was no champion"
            book = champions.promote(store, name, mine, why, by=by, instead_of=None)
        else:
            gate = manifests.get(f"gate/{name}")
            if gate is None:
                return [
                    f"{name}: {entry.short} stays candidate: it cannot be compared with the "
                    "champion, which is incomplete or has other stages; `ediffi promote` makes it "
                    "champion"
                ]
            decision = gate["info"]
            if not decision["wins"]:
                return [f"{name}: {entry.short} stays candidate: {decision['why']}"]
            book = champions.promote(
                store,
                name,
                mine,
                decision["why"],
                by=by,
                numbers={k: v for k, v in gate["metrics"].items() if k != "wins"},
                instead_of=decision["champion"],
            )
    except champions.ChampionChanged as changed:
        return [
            f"{name}: {entry.short} stays candidate: {changed}; run the same command again to "
            "compare it with the champion, or promote it by `ediffi promote`"
        ]
    except champions.NotSigned as unsigned:
        return [f"{name}: {entry.short} stays candidate: {unsigned}, or promote it where it is set"]
    if book.champion and book.champion.fingerprint == mine:
        return [f"{name}: {entry.short} is champion: {book.champion.why}"]
    if known:
        return []
    return [f"{name}: {entry.short} was champion before, so it is not promoted again"]
