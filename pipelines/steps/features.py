"""Compute features of real pictures, for all evaluations that compare with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from pipelines.evaluation.job import Embedded, Job, Source, Spread
from pipelines.evaluation.parts import NETWORKS, REAL
from pipelines.evaluation.scoring import Scoring
from pipelines.evaluation.workers import run
from pipelines.runs.context import Context, Result
from pipelines.steps.eval_setup import loader, progress_of, workers_of
from pipelines.store.artifacts import Store

PART_ROWS = 4096
"""Pictures whose features one file holds, about."""


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Compute the features in chunks, as an evaluation does; continues after an interruption."""
    torch.set_num_threads(ctx.cpus)
    source = partial(_pictures, ctx.store, inputs["data"], settings)
    batch, name = ctx.runtime["batch"], ctx.runtime["name"]
    workers = workers_of(ctx)
    job = Job(
        store=ctx.store,
        folder=ctx.folder,
        source=source,
        scoring=Scoring(features={name: loader(ctx, inputs, name, ctx.runtime["network"])}),
        count=min(settings["rows"], len(source())),
        batch=batch,
        batches_per_part=max(1, PART_ROWS // batch),
        device="cuda" if ctx.runtime["gpus"] else "cpu",
        threads=workers.cpus,
    )
    parts = run(job, workers, progress_of(ctx))
    features = parts.features(REAL, name)
    assert features is not None
    paths = [f"{job.parts_folder}/{NETWORKS}", *(job.path(chunk) for chunk in job.pictures())]
    return Result(
        files=[path.removeprefix(f"{ctx.folder}/") for path in paths],
        metrics={"pictures": job.count, "dim": features.dim},
        info={"network_sha256": features.sha256},
    )


def _pictures(store: Store, folder: str, settings: Mapping[str, Any]) -> Source:
    """The pictures of a data set version, of which ``rows`` are spread over it or the first."""
    data = Embedded(store, folder, settings["resolution"], conditioning=False)
    return Spread(data, settings["rows"]) if settings.get("spread") else data
