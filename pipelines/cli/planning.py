"""Verbs that say what a pipeline would do, before it does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import AsJson, SpecPath, Storage, app, opened, writable

Assume = Annotated[
    bool,
    typer.Option(
        "--assume", help="Look at neither store nor data: nothing done, data as `pairs:` says."
    ),
]


@app.command(name="plan", epilog="Example:  ediffi plan pipelines/specs/demo.yaml")
def show_plan(
    spec: SpecPath,
    storage: Storage = None,
    as_json: AsJson = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the schedule on the spec's cluster.")
    ] = None,
    assume: Assume = False,
) -> None:
    """Says what a run would do, and why.

    Every node: what it waits for, its σ interval, the images to train, cached or why not; and of
    your own data what is still to embed, and what that will cost. With a `cluster:` in the spec
    also GPU-hours, storage, money and time, of each node and in all.
    """
    from pipelines.planning import embedding, forecast, gantt, lint
    from pipelines.reports import plan as plan_view

    loaded, store, made, sources = opened(spec, storage, assume=assume)
    work = embedding.estimate(made, store, sources)
    findings = lint.check(loaded, made)
    errors = [f for f in findings if f.is_error]
    seen = None if errors else forecast.make_forecast(made, work)
    if svg:
        if loaded.cluster is None:
            raise ValueError("--svg draws what runs when, which takes a `cluster:` in the spec")
        writable(svg)
    if as_json:
        told = {**plan_view.data(made, work, seen), "findings": [f.__dict__ for f in findings]}
        typer.echo(json.dumps(told, indent=1))
    else:
        typer.echo(plan_view.text(made, work, seen))
        typer.echo("".join(f"\n{f}" for f in findings if not f.is_error), nl=bool(findings))
    lint.raise_errors(findings)
    if svg and seen:
        svg.write_text(gantt.svg(made, seen))


@app.command(epilog="Example:  ediffi diff pipelines/specs/demo.yaml mine.yaml")
def diff(
    old: Annotated[Path, typer.Argument(metavar="SPEC_A", help="A pipeline's YAML.")],
    new: Annotated[Path, typer.Argument(metavar="SPEC_B", help="Another's, or a changed one.")],
    as_json: AsJson = False,
    assume: Assume = False,
) -> None:
    """Says which nodes of two pipelines differ, and why.

    New, gone, changed by a setting, or changed only because what they read did; and those that give
    the same result but are made otherwise. No store is looked at.
    """
    from pipelines.planning import diff as differences

    before, after = (opened(path, os.devnull, assume=assume)[2] for path in (old, new))
    found = differences.compare(before, after)
    if as_json:
        typer.echo(json.dumps([d.__dict__ for d in found], indent=1))
    else:
        typer.echo(differences.text(before, after, found))
