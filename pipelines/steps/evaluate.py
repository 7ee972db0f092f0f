"""Evaluate an ensemble: draw pictures for the validation captions, and measure them and the
losses."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning
from ediffi_core.encoders import CLIP
from ediffi_core.ensemble import Ensemble
from ediffi_core.metrics import (
    Moments,
    clip_scores,
    frechet_distance,
    kernel_distance,
)
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet
from pipelines.metrics import Metric, Pictures, metric
from pipelines.models.encoders import encoder_sources, load_clip
from pipelines.models.sheet import grid
from pipelines.models.stages import draw, load_stages
from pipelines.runs.context import Context, Result
from pipelines.spec.evaluation import UNTRAINED_CAPTIONS
from pipelines.steps import eval_losses
from pipelines.steps.ensemble_weights import weights_of
from pipelines.steps.eval_scores import FILE as SCORES
from pipelines.steps.eval_scores import Scores, summary
from pipelines.steps.eval_scores import write as write_scores
from pipelines.store.reader import Reader
from pipelines.training.validation import validation_batch

GRID = 16
SHOWN_SIDE = 96  # pixels, of a picture in the sample sheet
MIN_KERNEL_PICTURES = 3  # fewest pictures for a kernel distance
FRECHET_PICTURES_PER_FEATURE = 10
"""With fewer pictures, a Fréchet distance rewards pictures that are all alike."""


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Draw, measure, and store scores, losses and a sample sheet."""
    torch.set_num_threads(ctx.cpus)
    device = torch.device("cuda" if ctx.runtime["gpus"] else "cpu")
    how = settings["stages"][-1]
    shards = Reader(ctx.store, inputs["validation"], how["resolution"])
    if problem := encoder_mismatch(ctx, settings, shards):
        return Result(files=[], info={"strange": problem})
    weights = weights_of(ctx, settings["stages"], inputs)
    stages = load_stages(ctx.store, settings["stages"], weights, device=device)
    mine = stages[-1]
    count = min(settings["captions"], len(shards))
    captions = shards.captions(range(count))
    tensors, cond = shards.rows(range(count))
    real = as_bytes(tensors)
    cond = text_only(cond).to(device)
    drawing = {"seed": settings["seed"], "batch": ctx.runtime["batch"]}

    drawn = draw(
        stages,
        cond,
        **drawing,
        progress=lambda done: ctx.report(done=done, of=count, unit="pictures"),
    )
    pictures = drawn[mine.name].numpy()
    measures = Measures(ctx, settings, inputs, str(device))
    scores = measures.caption_scores(pictures, captions) | measures.reference_scores(
        pictures, real, captions
    )
    measured = validation(cast(Ensemble, mine.denoiser), shards, settings, ctx)
    scores |= measured.scores()
    real_likeness = measures.text_alignment(real, captions)
    drop_inflated_clip_score(ctx, scores, real_likeness)
    metrics = summary(scores)
    if "clip_score" in scores:
        metrics |= summary(real_likeness, "real/")
    if settings["controls"]:
        metrics |= summary(measures.caption_scores(real, captions), "real/")
        few = min(UNTRAINED_CAPTIONS, count)
        noise = draw([*stages[:-1], untrained(mine)], cond[slice(0, few)], **drawing)
        metrics |= summary(
            measures.caption_scores(noise[mine.name].numpy(), captions[:few]), "untrained/"
        )
        shuffled = captions[1:] + captions[:1]
        metrics |= summary(measures.caption_scores(pictures, shuffled), "shuffled/")
        if len(stages) > 1:
            plain = enlarged(drawn[stages[-2].name].numpy(), mine.resolution)
            found = measures.caption_scores(plain, captions) | measures.reference_scores(
                plain, real, captions
            )
            metrics |= summary({k: v for k, v in found.items() if k in scores}, "enlarged/")
    metrics |= measures.distances(pictures, real)

    write_scores(ctx.store, ctx.folder, scores)
    measured.write(ctx.store, ctx.folder)
    sheet = io.BytesIO()
    scale = max(1, SHOWN_SIDE // mine.resolution)
    grid(pictures[:GRID], columns=8, scale=scale).save(sheet, format="PNG")
    ctx.store.write(f"{ctx.folder}/samples.png", sheet.getvalue())
    ctx.store.write(f"{ctx.folder}/captions.txt", "\n".join(captions[:GRID]).encode())
    files = ["samples.png", "captions.txt", SCORES, eval_losses.FILE]
    made_by = {role: dict(e) for role, e in shards.version.header.encoders.items()}
    return Result(files=files, metrics=metrics, info={"encoders": made_by})


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


class Measures:
    """All measures of pictures: the spec's metrics, and CLIP if it is named or there are none.

    Distances between sets of pictures use CLIP's features, or those of the first metric that has
    features.
    """

    def __init__(
        self, ctx: Context, settings: Mapping[str, Any], inputs: Mapping[str, str], device: str
    ) -> None:
        self.metrics: list[Metric] = []
        for name, requested in settings["metrics"].items():
            one = metric(name, requested["options"])
            one.open(ctx.store.local(inputs[f"metric/{name}"]))
            self.metrics.append(one)
        self.clip = scoring_clip(ctx, settings, inputs, device, needed=not self.metrics)

    def caption_scores(self, pictures: Pictures, captions: list[str]) -> Scores:
        """How well pictures show what their captions ask for, by the spec's metrics."""
        return {
            name: torch.from_numpy(values)
            for one in self.metrics
            for name, values in one.score(pictures, captions).items()
        }

    def reference_scores(self, pictures: Pictures, real: Pictures, captions: list[str]) -> Scores:
        """Kernel distance to the real pictures of the same captions, and CLIP scores."""
        found: Scores = {}
        features, truth = self.features(pictures), self.features(real)
        if features is not None and truth is not None and len(pictures) >= MIN_KERNEL_PICTURES:
            found["kernel_distance"] = kernel_distance(features, truth)
        return found | self.text_alignment(pictures, captions)

    def text_alignment(self, pictures: Pictures, captions: list[str]) -> Scores:
        """CLIP score of each picture with its caption; empty without CLIP."""
        if not self.clip:
            return {}
        return {
            "clip_score": clip_scores(self._clip_features(pictures), self.clip.text(captions)[1])
        }

    def distances(self, pictures: Pictures, real: Pictures) -> dict[str, float]:
        """The Fréchet distance, given enough pictures that it does not reward collapsed ones; else
        empty."""
        features, truth = self.features(pictures), self.features(real)
        if features is None or truth is None:
            return {}
        if len(pictures) < FRECHET_PICTURES_PER_FEATURE * features.shape[1]:
            return {}
        distance = frechet_distance(Moments.of(features), Moments.of(truth))
        return {"frechet_distance": distance, "frechet_distance_pictures": len(pictures)}

    def features(self, pictures: Pictures) -> torch.Tensor | None:
        """Features for distances; None if nothing provides any. [N, features]"""
        if self.clip:
            return self._clip_features(pictures)
        found = (one.features(pictures) for one in self.metrics)
        first = next((f for f in found if f is not None), None)
        return None if first is None else torch.from_numpy(first)

    def _clip_features(self, pictures: Pictures) -> torch.Tensor:
        assert self.clip is not None
        key = hashlib.sha256(pictures.tobytes()).hexdigest()
        if key not in self._feature_cache:
            self._feature_cache[key] = self.clip.image([Image.fromarray(p) for p in pictures])
        return self._feature_cache[key]

    @cached_property
    def _feature_cache(self) -> dict[str, torch.Tensor]:
        """Hash of pictures → CLIP features, so that the real pictures are encoded once."""
        return {}


def scoring_clip(
    ctx: Context,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    device: str,
    *,
    needed: bool,
) -> CLIP | None:
    """The CLIP that scores pictures.

    It should not be the CLIP that conditions the model; that one is used only if there is no other
    measure (``needed``).
    """
    if named := ctx.runtime["scoring_clip"]:
        return CLIP(named, pretrained=settings["scoring_pretrained"], device=device)
    if not needed:
        return None
    ctx.report(
        message="is scored by the CLIP that conditions it: set `evaluate.clip` to another one"
    )
    places = encoder_sources(ctx.store, inputs.get("encoders"), ctx.runtime["encoders"])
    return load_clip(places, device)


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


def validation(
    ensemble: Ensemble, shards: Reader, settings: Mapping[str, Any], ctx: Context
) -> eval_losses.Losses:
    """Denoising losses, conditioned on text only, like a user's prompt.

    With the picture's own CLIP embedding, an expert that ignores the text would hardly be noticed.
    """
    device = next(ensemble.parameters()).device
    how = {
        **settings["losses"],
        "seed": settings["seed"],
        "resolution": shards.resolution,
        "conditioning": "text",
        "validation": ctx.manifests["validation"]["fingerprint"],
    }

    def batches(index: torch.Tensor) -> tuple[torch.Tensor, Conditioning]:
        pictures, cond = validation_batch(shards, index, how)
        return pictures.to(device), text_only(cond).to(device)

    return eval_losses.measure(
        ensemble, batches, how, pictures=len(shards), batch=ctx.runtime["batch"]
    )


def untrained(stage: CascadeStage) -> CascadeStage:
    """The same stage with an untrained network, as a baseline for the measures."""
    trained = cast(Ensemble, stage.denoiser).experts[0].denoiser
    torch.manual_seed(0)
    fresh = Denoiser.of(cast(UNet, trained.net).config, trained.sigma_data)
    fresh = fresh.eval().requires_grad_(False).to(next(trained.parameters()).device)
    return replace(stage, denoiser=fresh)


def enlarged(pictures: Pictures, side: int) -> Pictures:
    """Pictures of the previous stage, resized: the baseline for super-resolution."""
    method = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), method)) for p in pictures])


def text_only(cond: Conditioning) -> Conditioning:
    """Conditioning without the picture's embedding, like a user's prompt."""
    absent = torch.zeros_like(cond.pooled["clip_image"])
    return replace(cond, pooled={**cond.pooled, "clip_image": absent})


def as_bytes(x: torch.Tensor) -> Pictures:
    """Convert pictures [N, 3, R, R] in [-1, 1] to uint8 [N, R, R, 3]."""
    out: Pictures = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return out
