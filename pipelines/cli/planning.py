"""Verbs that show what a pipeline would do before it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import AsJson, SpecPath, SpecStorage, app, echo, opened, writable

Assume = Annotated[
    bool,
    typer.Option(
        "--assume",
        help="Plan without the store and the data: as if nothing were done, with as many pairs "
        "as `pairs:` says.",
    ),
]


@app.command(name="plan", epilog="Example:  ediffi plan pipelines/specs/demo.yaml")
def show_plan(
    spec: SpecPath,
    storage: SpecStorage = None,
    as_json: AsJson = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw the schedule on the spec's cluster.",
            show_default="no drawing",
        ),
    ] = None,
    assume: Assume = False,
) -> None:
    """Show what a run would do, and why.

    For each node: what it waits for, its σ interval, the images to train, and whether it is
    reused or why not. For your own data: what is still to embed, and the cost. With `cluster:` in
    the spec also GPU-hours, storage, money and time of each node and in total.
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
            raise ValueError(
                "--svg draws the schedule on a cluster; describe it with `cluster:` in the spec"
            )
        writable(svg)
    if as_json:
        told = {**plan_view.data(made, work, seen), "findings": [f.__dict__ for f in findings]}
        echo(json.dumps(told, indent=1))
    else:
        echo(plan_view.text(made, work, seen))
        echo("".join(f"\n{f}" for f in findings if not f.is_error), nl=bool(findings))
    lint.raise_errors(findings)
    if svg and seen:
        svg.write_text(gantt.svg(made, seen))


@app.command(epilog="Example:  ediffi diff pipelines/specs/demo.yaml mine.yaml")
def diff(
    old: Annotated[Path, typer.Argument(metavar="SPEC_A", help="A pipeline's YAML file.")],
    new: Annotated[
        Path, typer.Argument(metavar="SPEC_B", help="The YAML file to compare it with.")
    ],
    as_json: AsJson = False,
    assume: Assume = False,
) -> None:
    """Show which nodes of two pipelines differ, and why.

    A node is new, gone, changed by a setting, changed only through its inputs, or made in another
    way with the same result. No store is read.
    """
    from pipelines.planning import diff as differences

    before, after = (opened(path, os.devnull, assume=assume)[2] for path in (old, new))
    found = differences.compare(before, after)
    if as_json:
        echo(json.dumps([d.__dict__ for d in found], indent=1))
    else:
        echo(differences.text(before, after, found))
