"""A pipeline as a job of a Ray cluster: sent to its job server, one at a time."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.jobs import client as jobs
from pipelines.jobs import portability as reach
from pipelines.spec.pipeline import Spec

STOP_WAIT_S = 60
"""What a stopped driver has to save and leave before Ray kills it. By itself Ray gives it 3 s."""


def submit(
    client: Any,
    spec: Spec,
    file: Path,
    storage: str,
    *,
    verb: str,
    working_dir: Path | None,
    credentials: bool,
) -> str:
    """Has a cluster run or retrain a pipeline; → the job's id.

    The job does not depend on this machine's disk: the spec travels with it, or with the working
    directory that it lies in.

    Args:
        file: where the spec was read.
        storage: the store's path or address.
        working_dir: sent along, its code coming before what the cluster has installed.
        credentials: whether secrets may be sent.

    Raises:
        ValueError: The cluster could not work with it, or is at work on the pipeline already.
    """
    variables = reach.passed(spec, os.environ, credentials=credentials)
    if working_dir is None:
        reach.check_paths(spec)
    if not jobs.is_here(client):
        reach.check_reach(spec, storage, variables)
    job = next_id(spec.name, storage, jobs.listed(client))
    with tempfile.TemporaryDirectory() as scratch:
        folder, command = Path(scratch), ["ediffi"]
        if working_dir is None:
            shutil.copy(file, folder / file.name)
            sent = file.name
        else:
            folder, command = working_dir, ["python", "-m", "pipelines.cli"]
            sent = within(file, working_dir)
        try:
            with jobs.answered(f"job {job}"):
                client.submit_job(
                    submission_id=job,
                    entrypoint=shlex.join([*command, verb, sent, "--storage", storage]),
                    metadata={jobs.PIPELINE: spec.name, jobs.STORAGE: storage},
                    runtime_env={
                        "working_dir": str(folder),
                        "excludes": [".git"],
                        "env_vars": {**variables, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                    },
                )
        except ValueError:
            next_id(spec.name, storage, jobs.listed(client))  # says so, if another was quicker
            raise
    return job


def within(file: Path, folder: Path) -> str:
    """The spec's path in the directory that is sent."""
    try:
        return str(file.resolve().relative_to(folder.resolve()))
    except ValueError:
        raise ValueError(
            f"{file} is not in {folder}, which is sent; move it there, or leave out --working-dir"
        ) from None


def next_id(pipeline: str, storage: str, known: Iterable[Any]) -> str:
    """The id of a pipeline's next job, which Ray takes once; ValueError if one is at work."""
    attempts = [0]
    for job in known:
        if number := re.fullmatch(rf"{re.escape(pipeline)}-(\d+)", job.submission_id):
            attempts.append(int(number[1]))
        same = jobs.of(job) == (pipeline, storage)
        if same and not job.status.is_terminal():
            raise ValueError(
                f"pipeline {pipeline} is job {job.submission_id} already, which is "
                f"{job.status.lower()}; see `ediffi logs {job.submission_id} --follow`, or end it "
                f"with `ediffi stop {job.submission_id}`"
            )
    return f"{pipeline}-{max(attempts) + 1}"
