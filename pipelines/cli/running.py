"""Verbs that run a pipeline, and say how it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import (
    AsJson,
    SpecPath,
    Storage,
    app,
    asked_execution,
    asked_tree,
    opened,
    writable,
)


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


@app.command(
    epilog="\b\nExamples:\n  ediffi tree\n  ediffi tree --html lineage.html\n"
    "  ediffi tree --compare RUN_A RUN_B"
)
def tree(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="An execution's id; else the last.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write it as one page, with pictures, to this file.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="RUN_A RUN_B", help="Set two runs' trees side by side."),
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Draws the expert tree of a run.

    Intervals, budgets, gains over the parents, and how the ensemble measures up.
    """
    from pipelines import tree_compare, tree_page, tree_view
    from pipelines.lineage.address import Runs

    if compare and (run or html):
        raise ValueError("--compare names both runs itself; leave RUN and --html out")
    if compare:
        trees = [asked_tree(storage, name)[2] for name in compare]
        both = tree_compare.compare(*trees)
        typer.echo(json.dumps(both, indent=1) if as_json else tree_compare.text(both))
        return
    store, execution, found = asked_tree(storage, run)
    if html:
        writable(html, "--html")
        runs, pictures = Runs.of(execution.tracking), tree_page.thumbnails(store, found)
        html.write_text(tree_page.html(found, runs=runs, pictures=pictures), encoding="utf-8")
        typer.echo(f"{html}: the tree of {execution.id}")
        return
    typer.echo(json.dumps(found, indent=1) if as_json else tree_view.text(found))
