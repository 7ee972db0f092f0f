"""Verbs that run a pipeline, and say how it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.app import (
    AsJson,
    RunId,
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
    from pipelines.executor.driver import drive

    _, store, made, _ = opened(spec, storage)
    finish(*drive(made, store))


@app.command(epilog="Example:  ediffi retrain pipelines/specs/demo.yaml")
def retrain(spec: SpecPath, storage: Storage = None) -> None:
    """Goes on from the champion with new data, and keeps the better of the two.

    Every expert of the champion's is trained on for a part of its images; the result is compared
    with the champion on old and new validation data. Without new data nothing is done.
    """
    from pipelines.dag.new_data import why_not
    from pipelines.executor.driver import drive

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


@app.command(epilog="Example:  ediffi status --follow")
def status(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="Of which pipeline; else the last run.")
    ] = None,
    storage: Storage = None,
    run: RunId = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on saying what changes, until it ends.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Says how the last run stands, node by node.

    Who drives it, since when each node is at work, how fast, and how long it will take.
    """
    from pipelines.reports import status as status_view
    from pipelines.runs.execution import by_id

    store, execution = asked_execution(spec, storage, run)
    if as_json:
        typer.echo(json.dumps(status_view.data(store, execution), indent=1))
        return
    if not follow:
        typer.echo(status_view.text(status_view.describe_state(store, execution), execution))
        return

    def look() -> tuple[str, Any]:
        found = by_id(store, execution.id) or execution
        return status_view.describe_state(store, found), found

    for line in status_view.follow(look):
        typer.echo(line)


@app.command(epilog="Example:  ediffi cancel pipelines/specs/demo.yaml")
def cancel(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="Of which pipeline; else the last run.")
    ] = None,
    storage: Storage = None,
    run: RunId = None,
) -> None:
    """Gives a run up; what it has finished or saved is kept.

    Its driver, wherever it is, hears of it within seconds, has training nodes save and leave, and
    ends with code 3. The next `ediffi run` begins a new run, which goes on from what was saved.
    """
    from pipelines.executor.cancel import cancel as give_up

    typer.echo(give_up(*asked_execution(spec, storage, run)))


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
    from pipelines.lineage.address import Runs
    from pipelines.reports import tree as tree_view
    from pipelines.reports import tree_compare, tree_page

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
        runs, pictures = Runs.from_tracking(execution.tracking), tree_page.thumbnails(store, found)
        page = tree_page.html(found, links=runs.links() if runs else None, pictures=pictures)
        html.write_text(page, encoding="utf-8")
        typer.echo(f"{html}: the tree of {execution.id}")
        return
    typer.echo(json.dumps(found, indent=1) if as_json else tree_view.text(found))
