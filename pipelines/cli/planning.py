"""Verbs that show what a pipeline would do before it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import AsJson, SpecPath, SpecStorage, app, echo, echo_found, opened, writable

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

    if svg:
        if svg.suffix.lower() != ".svg":
            raise ValueError(f"--svg draws an SVG; end the name of {svg} in .svg")
        writable(svg, "--svg")
    loaded, store, made, sources = opened(spec, storage, assume=assume)
    if svg and loaded.cluster is None:
        raise ValueError(
            "--svg draws the schedule on a cluster; describe it with `cluster:` in the spec"
        )
    work = embedding.estimate(made, store, sources)
    findings = lint.check(loaded, made)
    errors = [f for f in findings if f.is_error]
    seen = None if errors else forecast.make_forecast(made, work)
    told = {**plan_view.data(made, work, seen), "findings": [f.__dict__ for f in findings]}
    echo_found(told, lambda _: plan_view.text(made, work, seen), as_json)
    if not as_json:
        echo("".join(f"\n{f}" for f in findings if not f.is_error), nl=bool(findings))
    lint.raise_errors(findings)
    if not (assume or as_json) and store.is_local and not Path(store.root).is_dir():
        echo(f"note: there is no store at {store.root} yet; a run makes it", err=True)
    if svg and seen:
        svg.write_text(gantt.svg(made, seen), encoding="utf-8")


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
    told = [d.__dict__ for d in found]
    echo_found(told, lambda _: differences.text(before, after, found), as_json)
