"""The verb that checks a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import DEFAULT_STORAGE, AsJson, SomeStorage, app


@app.command(
    epilog="\b\nExamples:\n  ediffi doctor\n  ediffi doctor my.yaml --storage s3://bucket/store"
)
def doctor(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC",
            help="Also check what this pipeline needs.",
            show_default="the machine alone",
        ),
    ] = None,
    storage: SomeStorage = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and what a run would connect to.

    Python, torch and its devices, memory, disks, Ray, MLflow, the store, and the encoders of
    SPEC. Exits with code 1 if there is a fault. Every check has a time-out.
    """
    from pipelines.executor.doctor import report

    found = []
    for check in report.examine(spec, storage, DEFAULT_STORAGE):
        found.append(check)
        if not as_json:
            typer.echo(report.line(check))
    typer.echo(report.as_json(found) if as_json else report.summary(found))
    if any(check.level == "fault" for check in found):
        raise SystemExit(1)
