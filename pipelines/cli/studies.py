"""Verbs of studies: many variants of one pipeline, and what their differences show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.app import AsJson, SpecStorage, app, echo, echo_found, tell_copy, writable_folder
from pipelines.cli.running import finish

study = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    study,
    name="study",
    help="Run many variants of one pipeline, and report what their differences show.",
)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's YAML file.")]
Assume = Annotated[
    bool,
    typer.Option("--assume", help="Plan as if nothing were done, without the store and the data."),
]


def opened_study(
    path: Path, storage: str | None, *, assume: bool = False
) -> tuple[Any, Any, Any, Any]:
    """A study, its store, what its cells read from outside, and its plan."""
    from pipelines.studies import planning
    from pipelines.studies.cells import open_study

    found = open_study(path, storage=storage)
    store = planning.store_of(found, nowhere=assume)
    outside = planning.sources_of(found, assume=assume)
    return found, store, outside, planning.make(found, store, outside)


@study.command(name="plan", epilog="Example:  ediffi study plan pipelines/specs/studies/smoke.yaml")
def show_plan(
    path: StudyPath, storage: SpecStorage = None, as_json: AsJson = False, assume: Assume = False
) -> None:
    """Show a study's cells, and what is to be run.

    For each kind of node how many there are, the images to train, and the time that is left. With
    `cluster:` in the study or its base also GPU-hours, storage and money.
    """
    from pipelines.planning import lint
    from pipelines.studies import planning

    found, store, outside, made = opened_study(path, storage, assume=assume)
    problems = planning.findings(made)
    seen = None
    if not any(f.is_error for f in problems):
        seen = planning.forecast(made, store, outside)
    told = planning.data(found, made, seen)
    echo_found(told, lambda _: planning.text(found, made, seen), as_json)
    if not as_json:
        echo("".join(f"\n{f}" for f in problems if not f.is_error), nl=bool(problems))
    lint.raise_errors(problems)


@study.command(name="run", epilog="Example:  ediffi study run pipelines/specs/studies/smoke.yaml")
def run_study(path: StudyPath, storage: SpecStorage = None) -> None:
    """Run a study, or continue one that was stopped.

    At the end its report is written into the store. Nodes that cells have in common are made once.
    A finished study is only reported again.
    """
    from pipelines.executor.driver import drive
    from pipelines.studies import planning

    found, store, outside, made = opened_study(path, storage)
    finish(*drive(made, store, planning.findings(made)))
    _report(found, store, planning.make(found, store, outside), None)


@study.command(epilog="Example:  ediffi study status pipelines/specs/studies/smoke.yaml")
def status(path: StudyPath, storage: SpecStorage = None, as_json: AsJson = False) -> None:
    """Show how far a study is: cells, nodes, time left."""
    from pipelines.studies import status as view

    found, store, _, made = opened_study(path, storage)
    seen = view.status(found, store, made)
    echo_found(view.data(seen), lambda _: view.text(seen), as_json)


@study.command(epilog="Example:  ediffi study report pipelines/specs/studies/smoke.yaml -o report")
def report(
    path: StudyPath,
    storage: SpecStorage = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for the report.",
            show_default="studies/NAME in the store",
        ),
    ] = None,
) -> None:
    """Write a study's report, and print its claims.

    From its results in the store: a page, the same as Markdown, the figures, and their data as
    JSON. The report also becomes a run in MLflow. Cells that are not finished are named in it.
    """
    if output is not None:
        writable_folder(output)
    found, store, _, made = opened_study(path, storage)
    _report(found, store, made, output)


@study.command(epilog="Example:  ediffi study cells pipelines/specs/studies/smoke.yaml -o cells")
def cells(
    path: StudyPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the specs.")
    ],
    storage: SpecStorage = None,
) -> None:
    """Write every cell of a study as a pipeline's spec.

    `ediffi plan`, `diff` and `run` take these.
    """
    from pipelines.studies.cells import open_study, write_cells

    writable_folder(output)
    for made in write_cells(open_study(path, storage=storage), output):
        echo(str(made))


def _report(found: Any, store: Any, made: Any, output: Path | None) -> None:
    from pipelines.lineage import studies
    from pipelines.studies import claims, reporting

    name, tracking = found.study.study, found.base.tracking

    def record(findings: Any, folder: Path) -> None:
        tell_copy(lambda: studies.record(findings, folder, store, name, tracking), name)

    written = reporting.report(found, store, made, output, record)
    echo(claims.text(written.findings))
    echo(f"report: {written.place}/report.html")
