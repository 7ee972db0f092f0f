"""Fit an evaluation metric once, for all evaluations that use it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from pipelines.metrics import metric
from pipelines.runs.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Fit the metric and store what it learned."""
    torch.set_num_threads(ctx.cpus)
    one = metric(settings["metric"], settings["options"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = one.fit(
            folder,
            resolutions=settings["resolutions"],
            seed=settings["seed"],
            progress=lambda done, of: ctx.report(done=done, of=of, unit="images"),
        )
        ctx.store.put_folder(folder, ctx.folder)
        files = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
    return Result(files=sorted(files), metrics=found)
