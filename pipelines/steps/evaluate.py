"""Evaluate an ensemble: draw pictures for the validation captions, and measure them and the
losses."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ediffi_core.distances import Measured
from ediffi_core.encoders import CLIP
from ediffi_core.features import Features
from ediffi_core.measures import measure
from ediffi_core.metrics import MIN_KERNEL_PICTURES, Moments, frechet_distance, kernel_distance
from pipelines.evaluation import losses as losses_file
from pipelines.evaluation import scores as scores_file
from pipelines.evaluation.job import PARTS, Embedded, Job
from pipelines.evaluation.parts import (
    DRAWN,
    ENLARGED,
    REAL,
    SHUFFLED,
    UNTRAINED,
    Parts,
    stored_features,
)
from pipelines.evaluation.scores import Scores, summary
from pipelines.evaluation.scoring import MAIN, Scoring
from pipelines.evaluation.workers import run
from pipelines.models.encoders import encoder_sources, load_clip
from pipelines.models.sheet import grid
from pipelines.runs.context import Context, Result
from pipelines.spec.evaluation import MeasureOptions
from pipelines.steps.ensemble_weights import weights_of
from pipelines.steps.eval_setup import loader, progress_of, workers_of
from pipelines.store.reader import Reader

GRID = 16
SHOWN_SIDE = 96  # pixels, of a picture in the sample sheet
MEASURES = "measures.json"
"""File with what is measured on ``evaluate.features``: each value with its interval, number of
pictures, and network."""

FRECHET_PICTURES_PER_FEATURE = 10
"""With fewer pictures, a Fréchet distance rewards pictures that are all alike."""


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Draw, measure, and store scores, losses and a sample sheet.

    Pictures are drawn and scored in chunks, by ``evaluate.workers`` workers; an interrupted
    evaluation continues with the chunks that are left.
    """
    torch.set_num_threads(ctx.cpus)
    side = settings["stages"][-1]["resolution"]
    validation = Reader(ctx.store, inputs["validation"], side)
    if problem := encoder_mismatch(ctx, settings, validation):
        return Result(files=[], info={"strange": problem})
    job = job_of(ctx, settings, inputs, len(validation))
    check_enough(settings, job.count)
    parts = run(job, workers_of(ctx), progress_of(ctx))
    measured = parts.losses(len(validation))
    scores, metrics = reduced(ctx, parts, measured.scores())
    files = ["samples.png", "captions.txt", scores_file.FILE, losses_file.FILE]
    if sets := measured_sets(ctx, settings, inputs, parts):
        metrics |= {k: v for (name, _), one in sets.items() for k, v in one.metrics(name).items()}
        found = {f"{name}/{of}": one.to_json() for (name, of), one in sets.items()}
        ctx.store.write_json(f"{ctx.folder}/{MEASURES}", found)
        files.append(MEASURES)

    scores_file.write(ctx.store, ctx.folder, scores)
    measured.write(ctx.store, ctx.folder)
    captions = validation.captions(range(min(GRID, job.count)))
    ctx.store.write(f"{ctx.folder}/captions.txt", "\n".join(captions).encode())
    sheet = io.BytesIO()
    grid(parts.shown(), columns=8, scale=max(1, SHOWN_SIDE // side)).save(sheet, format="PNG")
    ctx.store.write(f"{ctx.folder}/samples.png", sheet.getvalue())
    made_by = {role: dict(e) for role, e in validation.version.header.encoders.items()}
    return Result(files=files, metrics=metrics, info={"encoders": made_by}, scratch=[PARTS])


def encoder_mismatch(ctx: Context, settings: Mapping[str, Any], shards: Reader) -> str | None:
    """A message if the models were trained with other encoders than the data's; else None."""
    theirs = settings.get("trained_with")
    if theirs is None:
        return None
    if theirs.keys() == shards.version.header.encoders.keys():
        with contextlib.suppress(ValueError):  # here it only matters that they differ
            shards.version.check_encoders(theirs)
            return None
    why = "the champion was trained with other encoders, so the two cannot be compared"
    ctx.report(message=why)
    return why


def job_of(ctx: Context, settings: Mapping[str, Any], inputs: Mapping[str, str], pairs: int) -> Job:
    """The node's work, as the workers get it.

    Args:
        pairs: number of validation pairs.
    """
    side = settings["stages"][-1]["resolution"]
    losses = {
        **settings["losses"],
        "seed": settings["seed"],
        "resolution": side,
        "conditioning": "text",
        "validation": ctx.manifests["validation"]["fingerprint"],
    }
    return Job(
        store=ctx.store,
        folder=ctx.folder,
        source=partial(Embedded, ctx.store, inputs["validation"], side),
        scoring=scoring_of(ctx, settings, inputs),
        count=min(settings["captions"], pairs),
        batch=ctx.runtime["batch"],
        stages=settings["stages"],
        weights=weights_of(ctx, settings["stages"], inputs),
        seed=settings["seed"],
        controls=settings["controls"],
        losses=losses,
        shown=GRID,
        device="cuda" if ctx.runtime["gpus"] else "cpu",
        threads=workers_of(ctx).cpus,
    )


def scoring_of(ctx: Context, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Scoring:
    """The spec's metrics, and CLIP if it is named or there are none."""
    metrics = {
        name: {"options": requested["options"], "folder": inputs[f"metric/{name}"]}
        for name, requested in settings["metrics"].items()
    }
    return Scoring(
        metrics=metrics,
        clip=scoring_clip(ctx, settings, inputs, needed=not metrics),
        features={
            name: loader(ctx, inputs, name, network)
            for name, network in ctx.runtime.get("features", {}).items()
        },
    )


def scoring_clip(
    ctx: Context, settings: Mapping[str, Any], inputs: Mapping[str, str], *, needed: bool
) -> Callable[..., CLIP] | None:
    """Loads the CLIP that scores pictures, given a ``device``; None for no CLIP score.

    It should not be the CLIP that conditions the model; that one is used only if there is no other
    measure (``needed``).
    """
    if named := ctx.runtime["scoring_clip"]:
        return partial(CLIP, named, pretrained=settings["scoring_pretrained"])
    if not needed:
        return None
    ctx.report(
        message="is scored by the CLIP that conditions it: set `evaluate.clip` to another one"
    )
    places = encoder_sources(ctx.store, inputs.get("encoders"), ctx.runtime["encoders"])
    return partial(load_clip, places)


def reduced(ctx: Context, parts: Parts, losses: Scores) -> tuple[Scores, dict[str, float]]:
    """The scores of each picture, and the node's metrics.

    Args:
        losses: scores of the denoising losses.
    """
    scores = dict(parts.scores[DRAWN])
    if (kernel := kernel_scores(parts, DRAWN)) is not None:
        scores["kernel_distance"] = kernel
    scores |= losses
    real = dict(parts.scores.get(REAL, {}))
    likeness = {name: real.pop(name) for name in ("clip_score",) if name in real}
    drop_inflated_clip_score(ctx, scores, likeness)
    metrics = summary(scores)
    if "clip_score" in scores:
        metrics |= summary(likeness, "real/")
    metrics |= summary(real, "real/")
    for of in (UNTRAINED, SHUFFLED):
        metrics |= summary(parts.scores.get(of, {}), f"{of}/")
    if ENLARGED in parts.extractors or ENLARGED in parts.scores:
        found = dict(parts.scores.get(ENLARGED, {}))
        if (kernel := kernel_scores(parts, ENLARGED)) is not None:
            found["kernel_distance"] = kernel
        metrics |= summary({k: v for k, v in found.items() if k in scores}, f"{ENLARGED}/")
    return scores, metrics | frechet(parts)


def check_enough(settings: Mapping[str, Any], count: int) -> None:
    """Check the number of pictures before any is drawn.

    Raises:
        ValueError: A measure needs more.
    """
    options = MeasureOptions.from_settings(settings.get("measure_options", {}))
    for measures in settings.get("measures", {}).values():
        for name in measures:
            if (needed := options.fewest(name)) > count:
                raise ValueError(
                    f"{name} needs {needed:,} pictures, but there are {count:,} validation "
                    f"captions to draw; raise `evaluate.captions`, add validation data, or remove "
                    f"{name} from `evaluate.measures`"
                )


def measured_sets(
    ctx: Context, settings: Mapping[str, Any], inputs: Mapping[str, str], parts: Parts
) -> dict[tuple[str, str], Measured]:
    """Measures of all drawn pictures: (measure, features) → result; empty without features."""
    found: dict[tuple[str, str], Measured] = {}
    options = MeasureOptions.from_settings(settings.get("measure_options", {}))
    for features, measures in settings.get("measures", {}).items():
        made = parts.features(DRAWN, features)
        assert made is not None
        training = f"training/{features}"
        results = measure(
            measures,
            made,
            reference(ctx, inputs, f"real/{features}"),
            training=reference(ctx, inputs, training) if training in inputs else None,
            seed=settings["seed"],
            **options.model_dump(),
        )
        found |= {(name, features): one for name, one in results.items()}
    return found


def reference(ctx: Context, inputs: Mapping[str, str], role: str) -> Features:
    """Features of real pictures that a node has computed."""
    manifest, folder = ctx.manifests[role], inputs[role]
    paths = [f"{folder}/{f}" for f in sorted(manifest["files"]) if f.endswith(".safetensors")]
    count = int(manifest["metrics"]["pictures"])
    return stored_features(ctx.store, paths, REAL, role.partition("/")[2], count=count)


def kernel_scores(parts: Parts, of: str) -> torch.Tensor | None:
    """Kernel distance of pictures to the real ones of the same captions, picture by picture.

    None without features, or with too few pictures.
    """
    made, real = parts.features(of, MAIN), parts.features(REAL, MAIN)
    if made is None or real is None or len(made) < MIN_KERNEL_PICTURES:
        return None
    return kernel_distance(made, real)


def frechet(parts: Parts) -> dict[str, float]:
    """The Fréchet distance, given enough pictures that it does not reward collapsed ones; else
    empty."""
    made, real = parts.features(DRAWN, MAIN), parts.features(REAL, MAIN)
    if made is None or real is None or not is_enough_for_frechet(made):
        return {}
    distance = frechet_distance(Moments.of(made), Moments.of(real))
    return {"frechet_distance": distance, "frechet_distance_pictures": len(made)}


def is_enough_for_frechet(made: Features) -> bool:
    """Whether there are many times as many pictures as features."""
    return len(made) >= FRECHET_PICTURES_PER_FEATURE * made.dim


def drop_inflated_clip_score(ctx: Context, scores: Scores, real: Scores) -> None:
    """Remove the CLIP score if generated pictures score above real ones: it is then meaningless."""
    if "clip_score" not in scores:
        return
    mine, theirs = (float(of["clip_score"].mean()) for of in (scores, real))
    if mine < theirs:
        return
    ctx.report(
        message=f"its CLIP score ({mine:.3f}) is not below that of real pictures ({theirs:.3f}), "
        "so it is not shown"
    )
    del scores["clip_score"]
