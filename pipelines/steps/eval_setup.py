"""What the steps that look at pictures have in common: their workers, progress and networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pipelines.evaluation.workers import Progress, Workers
from pipelines.features.extractor import Extractor
from pipelines.features.opening import open_extractor
from pipelines.models.encoders import encoder_sources
from pipelines.runs.context import Context
from pipelines.spec.evaluation import FeatureNetwork


def workers_of(ctx: Context) -> Workers:
    """The node's workers, which share its CPUs evenly."""
    count = ctx.runtime["actors"]
    return Workers(
        count=count,
        cpus=ctx.cpus // count,
        gpus=ctx.runtime["gpus"],
        labels=ctx.runtime["labels"],
    )


def progress_of(ctx: Context) -> Progress:
    """Reports the pictures that are done to the driver, and records them for the next plan."""

    def progress(done: int, of: int) -> None:
        ctx.save_progress(done, of, "pictures")
        ctx.report(done=done, of=of, unit="pictures")

    return progress


def loader(
    ctx: Context, inputs: Mapping[str, str], name: str, network: Mapping[str, Any]
) -> partial[Extractor]:
    """Loads a network of ``evaluate.features``, given a ``device``.

    Args:
        network: its settings in the spec.
    """
    encoders = encoder_sources(ctx.store, inputs.get("encoders"), ctx.runtime["encoders"])
    return partial(
        open_extractor,
        name,
        FeatureNetwork.from_settings(network),
        clip=encoders.get("clip"),
        clip_pretrained=encoders.get("clip_pretrained"),
    )
