"""Verbs that run a pipeline, and say how it stands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import AsJson, SpecPath, Storage, app, asked_execution, opened

RECORD_WHEN_STOPPED_S = 5.0


@app.command(epilog="Example:  ediffi run pipelines/specs/demo.yaml")
def run(spec: SpecPath, storage: Storage = None) -> None:
    """Runs a pipeline, or goes on where a kill stopped it."""
    from pipelines import tree_view
    from pipelines.console import Console
    from pipelines.lineage import Lineage
    from pipelines.remote import StorageError
    from pipelines.run import Runner, begin, only_driver, reason
    from pipelines.stopping import Stop
    from pipelines.store.artifacts import Store

    loaded, store, made, _ = opened(spec, storage)
    store = Store.open(store.root)
    with only_driver(store, loaded.name), Console() as console, Stop() as stop:
        execution = begin(made, store)
        execution.save(store)
        again = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
        console.say(f"{execution.id}{again}: {len(made.verdicts)} nodes in {store.root}")
        for verdict in made.verdicts.values():
            if verdict.cached:
                console.say(f"{verdict.node.id} reused: {verdict.why}")
        lineage = Lineage(made, store, execution, console.say)
        runner = Runner(made, store, execution, lineage, console, stop)
        good = runner.run()
        if stop.signal and execution.state == "interrupted":
            lineage.close(execution.state, runner.manifests, RECORD_WHEN_STOPPED_S)
            execution.save(store)
            console.say("interrupted; the same command goes on from here")
            raise SystemExit(128 + stop.signal)
        console.say("finishing the MLflow record")
        lineage.close(execution.state, runner.manifests)
        execution.save(store)
        here = " on this machine, as a bucket cannot hold it" if lineage.is_aside else ""
        console.say(f"{execution.state}; record: {lineage.uri}{here}")
    typer.echo("\n" + tree_view.text(tree_view.build(made, execution, runner.manifests)))
    if good and (promoted := made.verdicts.get(f"promote/{loaded.name}")):
        path = store.full(f"{promoted.folder}/ensemble.json")
        typer.echo(f"\nensemble: {os.path.relpath(path) if store.is_local else path}")
    if not good:
        mistakes = all(isinstance(e, ValueError | StorageError) for e in runner.failed.values())
        for node, error in runner.failed.items():
            typer.echo(f"ediffi: {node}: {reason(error)}", err=True)
        raise SystemExit(2 if mistakes else 1)


@app.command(epilog="Example:  ediffi status --json")
def status(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="Of which pipeline; else the last run.")
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Says how the last run stands, node by node."""
    from pipelines.run import is_driven

    store, execution = asked_execution(spec, storage, None)
    if execution.state == "running":
        driven = is_driven(store, execution.pipeline)
        if driven is None:
            execution.state = "running, or stopped: a bucket has no lock to tell by"
        elif not driven:
            execution.state = "stopped (its driver is gone; the same `ediffi run` continues it)"
    if execution.state == "interrupted":
        execution.state = "interrupted (the same `ediffi run` continues it)"
    if as_json:
        typer.echo(json.dumps(execution.__dict__, indent=1))
        return
    typer.echo(f"{execution.id}: {execution.state}")
    for node, record in execution.nodes.items():
        progress = ""
        if record["state"] == "running" and "done" in record:
            progress = f"  {record['done']:,} of {record['of']:,} {record['unit']}"
        why = f"  {record['error']}" if "error" in record else ""
        typer.echo(f"  {node:<24} {record['state']}{progress}{why}")


@app.command(epilog="Example:  ediffi tree")
def tree(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="An execution's id; else the last.")
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Draws the expert tree of a run.

    Intervals, budgets, gains over the parents, and how the ensemble measures up.
    """
    from pipelines import tree_view

    store, execution = asked_execution(None, storage, run)
    found = store.read_json(f"executions/{execution.id}.tree.json")
    if found is None:
        raise ValueError(f"run {execution.id} has no tree yet; it is {execution.state}")
    typer.echo(json.dumps(found, indent=1) if as_json else tree_view.text(found))
