"""Verbs for pipelines that run on a Ray cluster, as jobs."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.app import AsJson, SpecPath, SpecStorage, app, echo, echo_found
from pipelines.formatting import align_columns, clock

VERBS = ("run", "retrain")

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours the names of workers in a log."""

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        metavar="URL",
        help="Address of the cluster's dashboard, http://HOST:8265.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id; `ediffi jobs` lists them.")]


@app.command(epilog="Example:  ediffi submit mine.yaml --address http://ray-head:8265 --wait")
def submit(
    spec: SpecPath,
    address: Address,
    storage: SpecStorage = None,
    verb: Annotated[
        str, typer.Option(metavar="VERB", help="The verb to run there: run or retrain.")
    ] = "run",
    working_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Also send this folder; its code takes precedence over what the cluster has "
            "installed.",
            show_default="none",
        ),
    ] = None,
    pass_credentials: Annotated[
        bool,
        typer.Option(
            "--pass-credentials",
            help="Send the AWS and MLflow secrets of this environment. Everyone with access to "
            "the cluster's dashboard can read them; prefer credentials of the machines' own.",
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Print the job's output until it ends, then exit with its code."
        ),
    ] = False,
) -> None:
    """Run a pipeline on a Ray cluster, or continue it there.

    Checks the spec and sends it; the project must be installed on the cluster. A pipeline has at
    most one running job.
    """
    from pipelines.jobs import client as jobs
    from pipelines.jobs import portability
    from pipelines.jobs import submit as sending
    from pipelines.planning import lint
    from pipelines.spec import loading as specs
    from pipelines.store.artifacts import Store

    if verb not in VERBS:
        raise ValueError(f"--verb {verb!r} cannot be submitted; write {' or '.join(VERBS)}")
    loaded = specs.load(spec)
    root = Store.at(storage or loaded.storage).root
    found = portability.lint_without_data(loaded)
    echo("".join(f"{f}\n" for f in found if not f.is_error), nl=False, err=True)
    lint.raise_errors(found)
    client = jobs.connect(address)
    job = sending.submit(
        client,
        loaded,
        spec,
        root,
        verb=verb,
        working_dir=working_dir,
        credentials=pass_credentials,
    )
    echo(f"job {job}: {loaded.name} in {root}")
    if wait:
        followed(client, job)
    else:
        echo(f"follow it with `ediffi logs {job} --follow`, end it with `ediffi stop {job}`")


@app.command(name="jobs", epilog="Example:  ediffi jobs --address http://ray-head:8265")
def show_jobs(
    address: Address,
    job: Annotated[
        str | None,
        typer.Argument(metavar="JOB", help="Show this job alone.", show_default="all jobs"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs of a cluster, or show one of them."""
    from pipelines.jobs import client as jobs

    client = jobs.connect(address)
    every = [jobs.job_info(client, job)] if job else jobs.list_jobs(client)
    found = [each for each in every if job or jobs.pipeline_of(each)]
    rows = [row(one) for one in found]
    if job:
        echo_found(rows[0], lambda of: "\n".join(f"{k:<10} {v}" for k, v in of.items()), as_json)
    elif rows or as_json:
        echo_found(rows, table, as_json)
    else:
        echo("no pipelines; submit one with `ediffi submit SPEC`")


@app.command(epilog="Example:  ediffi logs mine-1 --follow --address http://ray-head:8265")
def logs(
    job: JobId,
    address: Address,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the job ends, then exit with its code."),
    ] = False,
) -> None:
    """Print the output of a job."""
    from pipelines.jobs import client as jobs

    client = jobs.connect(address)
    if follow:
        followed(client, job)
    echo(_plain(jobs.logs(client, job)), nl=False)


@app.command(epilog="Example:  ediffi stop mine-1 --address http://ray-head:8265")
def stop(job: JobId, address: Address) -> None:
    """Stop a job after it has saved its work.

    The same `ediffi submit` continues from there.
    """
    from pipelines.jobs import client as jobs

    found = jobs.stop(jobs.connect(address), job)
    echo(f"job {job}: {found.status.lower()}")


def followed(client: Any, job: str) -> None:
    """Print a job's output until it ends, then exit with its code."""
    from pipelines.jobs import client as jobs

    try:
        found = jobs.follow(client, job, lambda text: echo(_plain(text), nl=False))
    except KeyboardInterrupt:
        echo(f"\njob {job} is still running; end it with `ediffi stop {job}`", err=True)
        raise SystemExit(130) from None
    code = jobs.exit_code(found)
    echo(f"job {job}: {found.status.lower()}")
    if code and (why := jobs.startup_error(found)):
        echo(f"ediffi: {why}", err=True)
    raise SystemExit(code)


def row(job: Any) -> dict[str, Any]:
    """What `ediffi jobs` shows of a job."""
    from pipelines.jobs import client as jobs

    pipeline, storage = jobs.pipeline_of(job) or ("", "")
    begun, ended = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000 or time.time()
    return {
        "job": job.submission_id,
        "state": job.status.lower(),
        "pipeline": pipeline,
        "storage": storage,
        "started": f"{datetime.fromtimestamp(begun, UTC):%Y-%m-%d %H:%M:%S} UTC",
        "took": clock(ended - begun),
        "exit code": job.driver_exit_code if job.status.is_terminal() else "",
        "command": job.entrypoint,
        "why": jobs.startup_error(job),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Jobs as a table for people."""
    columns = ("job", "state", "started", "took", "storage")
    return "\n".join(align_columns([[str(one[key]) for key in columns] for one in rows]))


def _plain(log: str) -> str:
    """A job's log without colours, and with each state of a progress bar on a line of its own."""
    return COLOUR.sub("", log).replace("\r\n", "\n").replace("\r", "\n")
