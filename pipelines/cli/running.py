"""Verbs that run a pipeline, and say how it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import AsJson, SpecPath, Storage, app, asked_execution, opened


@app.command(epilog="Example:  ediffi run pipelines/specs/demo.yaml")
def run(spec: SpecPath, storage: Storage = None) -> None:
    """Runs a pipeline, or goes on where a kill stopped it."""
    from pipelines.drive import drive

    _, store, made, _ = opened(spec, storage)
    finish(*drive(made, store))


@app.command(epilog="Example:  ediffi retrain pipelines/specs/demo.yaml")
def retrain(spec: SpecPath, storage: Storage = None) -> None:
    """Goes on from the champion with new data, and keeps the better of the two.

    Every expert of the champion's is trained on for a part of its images; the result is compared
    with the champion on old and new validation data. Without new data nothing is done.
    """
    from pipelines.drive import drive
    from pipelines.retrain import why_not

    _, store, made, sources = opened(spec, storage, retrains=True)
    assert made.champion is not None
    if reason := why_not(made, store, sources, made.champion):
        typer.echo(f"skipped: {reason}")
        return
    finish(*drive(made, store))


def finish(code: int, shown: str, wrong: list[str]) -> None:
    """Says how a run ended, and ends with its code."""
    if shown:
        typer.echo(shown)
    for line in wrong:
        typer.echo(f"ediffi: {line}", err=True)
    if code:
        raise SystemExit(code)


@app.command(epilog="Example:  ediffi status --json")
def status(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="Of which pipeline; else the last run.")
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Says how the last run stands, node by node."""
    from pipelines.lease import is_driven

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
