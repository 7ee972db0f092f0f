"""Submit a pipeline to a Ray cluster as a job; one job per pipeline runs at a time."""

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
from pipelines.jobs import portability
from pipelines.spec.pipeline import Spec

STOP_WAIT_S = 60
"""Seconds that a stopped driver has to save before Ray kills it; Ray's default is 3 s."""


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
    """Submit a job that runs or retrains a pipeline.

    The job does not need this machine's disk: the spec is sent with it, alone or in its working
    directory.

    Args:
        client: from :func:`pipelines.jobs.client.connect`.
        file: the spec's file.
        storage: the store's path or address.
        verb: ``run`` or ``retrain``.
        working_dir: folder to send; its code takes precedence over what the cluster has installed.
        credentials: whether secrets may be sent.

    Returns:
        The job's id.

    Raises:
        ValueError: The cluster cannot run the spec, or is already running the pipeline.
    """
    variables = portability.job_environment(spec, os.environ, credentials=credentials)
    if working_dir is None:
        portability.check_paths(spec)
    if not jobs.is_local_cluster(client):
        portability.check_reachable(spec, storage, variables)
    job = next_job_id(spec.name, storage, jobs.list_jobs(client))
    with tempfile.TemporaryDirectory() as scratch:
        folder, command = Path(scratch), ["ediffi"]
        if working_dir is None:
            shutil.copy(file, folder / file.name)
            sent = file.name
        else:
            folder, command = working_dir, ["python", "-m", "pipelines.cli"]
            sent = path_inside(file, working_dir)
        try:
            with jobs.server_errors(f"job {job}"):
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
            next_job_id(spec.name, storage, jobs.list_jobs(client))  # if another was faster
            raise
    return job


def path_inside(file: Path, folder: Path) -> str:
    """Path of the spec relative to the folder that is sent; ValueError if it is not inside."""
    try:
        return str(file.resolve().relative_to(folder.resolve()))
    except ValueError:
        raise ValueError(
            f"{file} is not inside --working-dir {folder}; move it there, or omit --working-dir"
        ) from None


def next_job_id(pipeline: str, storage: str, known: Iterable[Any]) -> str:
    """Id for a pipeline's next job, which Ray accepts only once.

    Args:
        known: the cluster's jobs.

    Raises:
        ValueError: A job of this pipeline and store is pending or running.
    """
    attempts = [0]
    for job in known:
        if number := re.fullmatch(rf"{re.escape(pipeline)}-(\d+)", job.submission_id):
            attempts.append(int(number[1]))
        same = jobs.pipeline_of(job) == (pipeline, storage)
        if same and not job.status.is_terminal():
            raise ValueError(
                f"pipeline {pipeline} is already job {job.submission_id} ({job.status.lower()}); "
                f"follow it with `ediffi logs {job.submission_id} --follow`, or end it with "
                f"`ediffi stop {job.submission_id}`"
            )
    return f"{pipeline}-{max(attempts) + 1}"
