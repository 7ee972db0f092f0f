"""Drives a plan to its end, and settles what comes of it: the record, and who is champion."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pipelines.dag.plan import Plan
from pipelines.executor import cancel, notify
from pipelines.executor.console import Console
from pipelines.executor.runner import Runner, reason
from pipelines.executor.stopping import Stop
from pipelines.lineage import Lineage
from pipelines.models import champions
from pipelines.planning import lint
from pipelines.reports import tree as tree_view
from pipelines.runs.claims import Claims
from pipelines.runs.execution import Execution, begin
from pipelines.runs.lease import LeaseLost, only_driver
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError

RECORD_WHEN_STOPPED_S = 5.0
CANCELLED = 3
STOPPED = {
    "interrupted": "the same command goes on from here",
    "cancelled": "what is finished or saved is kept, and the next run goes on from it",
}


def drive(made: Plan, store: Store) -> tuple[int, str, list[str]]:
    """→ the exit code, what to print, and what went wrong.

    Codes: 0 all is done, 1 a node failed, 2 it failed of a mistake or of the storage,
    3 cancelled, which is no stop that whoever watches over it should make good; 128 + n stopped
    by signal n.
    """
    store = Store.open(store.root)
    name, found = made.spec.name, lint.check(made.spec, made)
    lint.refuse(found)
    with Console() as console, only_driver(store, name, console.say) as lease, Stop() as stop:
        execution = begin(made, store)
        execution.save(store)
        again = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
        console.say(f"{execution.id}{again}: {len(made.verdicts)} nodes in {store.root}")
        for verdict in made.verdicts.values():
            if verdict.cached:
                console.say(f"{verdict.node.id} reused: {verdict.why}")
        for finding in found:
            console.say(str(finding))
        lineage = Lineage(made, store, execution, console.say)
        claims = Claims(store, name, lease)
        runner = Runner(made, store, execution, lineage, console, stop, claims)
        with cancel.heard(store, execution.id, stop):
            try:
                good = runner.run()
            except LeaseLost as error:
                return 1, "", [str(error)]
            except Exception as error:
                execution.state = "failed"
                notify.tell(made.spec.notify, execution, {"run": reason(error)}, console.say)
                raise
        if execution.state in STOPPED:
            waits = (RECORD_WHEN_STOPPED_S,) if stop.signal else ()
            lineage.close(execution.state, runner.manifests, *waits)
            execution.save(store)
            notify.tell(made.spec.notify, execution, {}, console.say, tries=1, timeout_s=3.0)
            console.say(f"{execution.state}; {STOPPED[execution.state]}")
            return CANCELLED if stop.signal is None else 128 + stop.signal, "", []
        if good:
            for line in settle(runner.plan, store, execution, runner.manifests):
                console.say(line)
        console.say("finishing the MLflow record")
        lineage.close(execution.state, runner.manifests)
        execution.save(store)
        here = " on this machine, as a bucket cannot hold it" if lineage.is_aside else ""
        failed = {node: reason(error) for node, error in runner.failed.items()}
        notify.tell(made.spec.notify, execution, failed, console.say)
        console.say(f"{execution.state}; record: {lineage.uri}{here}")
    shown = "\n" + tree_view.text(tree_view.build(runner.plan, execution, runner.manifests))
    if good and (promoted := runner.plan.verdicts.get(f"promote/{name}")):
        path = store.full(f"{promoted.folder}/{champions.MANIFEST}")
        shown += f"\n\nensemble: {os.path.relpath(path) if store.is_local else path}"
    if good:
        return 0, shown, []
    mistakes = all(isinstance(e, ValueError | StorageError) for e in runner.failed.values())
    wrong = [f"{node}: {why}" for node, why in failed.items()]
    return 2 if mistakes else 1, shown, wrong


def settle(
    made: Plan, store: Store, execution: Execution, manifests: Mapping[str, Any]
) -> list[str]:
    """Makes the new ensemble the candidate, and champion if it won; → what to say of it."""
    name = made.spec.name
    promoted = made.verdicts.get(f"promote/{name}")
    if promoted is None or promoted.node.id not in manifests:
        return []
    mine, by = promoted.fingerprint, f"run {execution.id}"
    before = champions.read(store, name)
    entry = champions.Entry(fingerprint=mine, folder=promoted.folder, why="finished", by=by)
    known = mine in before.versions
    book = champions.add_candidate(store, name, entry)
    if before.champion is None:
        book = champions.promote(store, name, mine, "there was no champion", by=by)
    elif before.champion.fingerprint == mine:
        return []
    else:
        gate = manifests.get(f"gate/{name}")
        if gate is None:
            return [
                f"{entry.short} stays candidate: the champion is lost or has other stages, so the "
                "two cannot be compared; `ediffi promote` makes it champion"
            ]
        decision = gate["info"]
        if not decision["wins"]:
            return [f"{entry.short} stays candidate: {decision['why']}"]
        numbers = {k: v for k, v in gate["metrics"].items() if k != "wins"}
        book = champions.promote(store, name, mine, decision["why"], by=by, numbers=numbers)
    if book.champion and book.champion.fingerprint == mine:
        return [f"{name}: {entry.short} is champion: {book.champion.why}"]
    return [] if known else [f"{name}: {entry.short} was champion before, and is not made it again"]
