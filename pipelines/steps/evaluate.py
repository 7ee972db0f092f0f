"""Draws pictures for the validation captions and measures them."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning
from ediffi_core.encoders import CLIP
from ediffi_core.ensemble import Ensemble
from ediffi_core.metrics import Moments, clip_score, frechet_distance, validation_losses
from ediffi_core.noise import EVERYTHING
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet
from pipelines.model import draw, grid, load_clip, load_stages
from pipelines.steps.context import Context, Result
from pipelines.steps.seats import weights_of
from pipelines.store.reader import Reader
from pipelines.training.validation import validation_pictures

GRID = 16
SHOWN_SIDE = 96  # of a picture in the sample sheet
LOSSES = "losses.json"  # of the same draws for whoever is measured on the same pictures
LOSS_DRAWS = 1024
UNTRAINED_CAPTIONS = 32


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    torch.set_num_threads(ctx.cpus)
    device = torch.device("cuda" if ctx.runtime["gpus"] else "cpu")
    how = settings["stages"][-1]
    shards = Reader(ctx.store, inputs["validation"], how["resolution"])
    if strange := other_encoders(ctx, settings, shards):
        return Result(files=[], info={"strange": strange})
    weights = weights_of(ctx, settings["stages"], inputs)
    stages = load_stages(ctx.store, settings["stages"], weights, device=device)
    mine = stages[-1]
    count = min(settings["captions"], len(shards))
    captions = shards.captions(range(count))
    real, cond = shards.rows(range(count))
    cond = text_only(cond).to(device)
    drawing = {"seed": settings["seed"], "batch": ctx.runtime["batch"]}

    drawn = draw(
        stages,
        cond,
        **drawing,
        progress=lambda done: ctx.report(done=done, of=count, unit="pictures"),
    )
    pictures = drawn[mine.name].numpy()
    clip = scoring_clip(ctx, settings, inputs, str(device))
    metrics = similarity(clip, pictures, as_bytes(real), captions)
    losses = validation(cast(Ensemble, mine.denoiser), shards, {**settings, **how}, ctx)
    metrics["val_loss"] = float(losses.mean())
    ctx.store.write_json(f"{ctx.folder}/{LOSSES}", losses.tolist())
    if settings["scorer"]:
        metrics |= alignment(pictures, captions, "")
        if settings["controls"]:
            few = min(UNTRAINED_CAPTIONS, count)
            noise = draw([*stages[:-1], untrained(mine)], cond[slice(0, few)], **drawing)
            metrics |= alignment(noise[mine.name].numpy(), captions[:few], "untrained_")
            metrics |= alignment(pictures, captions[1:] + captions[:1], "shuffled_")
            metrics |= alignment(as_bytes(real), captions, "real_")
            if len(stages) > 1:
                plain = enlarged(drawn[stages[-2].name].numpy(), mine.resolution)
                metrics |= alignment(plain, captions, "enlarged_")
                distance = similarity(clip, plain, as_bytes(real), captions)
                metrics |= {f"enlarged_{k}": v for k, v in distance.items()}

    sheet = io.BytesIO()
    scale = max(1, SHOWN_SIDE // mine.resolution)
    grid(pictures[:GRID], columns=8, scale=scale).save(sheet, format="PNG")
    ctx.store.write(f"{ctx.folder}/samples.png", sheet.getvalue())
    ctx.store.write(f"{ctx.folder}/captions.txt", "\n".join(captions[:GRID]).encode())
    files = ["samples.png", "captions.txt", LOSSES]
    made_by = {role: dict(e) for role, e in shards.version.header.encoders.items()}
    return Result(files=files, metrics=metrics, info={"encoders": made_by})


def other_encoders(ctx: Context, settings: Mapping[str, Any], shards: Reader) -> str | None:
    """In words, that the models were trained with other encoders than these pictures'."""
    theirs = settings.get("trained_with")
    if theirs is None:
        return None
    if theirs.keys() == shards.version.header.encoders.keys():
        with contextlib.suppress(ValueError):  # which says what differs; that it does is enough
            shards.version.check_encoders(theirs)
            return None
    why = "the champion was trained with other encoders, so the two cannot be compared"
    ctx.report(message=why)
    return why


def scoring_clip(
    ctx: Context, settings: dict[str, Any], inputs: dict[str, str], device: str
) -> CLIP:
    """Another CLIP than the one that conditions, if there is one."""
    if named := ctx.runtime["scoring_clip"]:
        return CLIP(named, pretrained=settings["scoring_pretrained"], device=device)
    if made := inputs.get("encoders"):
        return CLIP(str(ctx.store.local(f"{made}/scorer")), device=device)
    ctx.report(message="is scored by the CLIP that conditions it: set `evaluate.clip` to another")
    return load_clip(ctx.runtime["encoders"], device)


def validation(
    ensemble: Ensemble, shards: Reader, settings: dict[str, Any], ctx: Context
) -> torch.Tensor:
    """The denoising losses over all noise levels, each by the expert whose it is."""
    device = next(ensemble.parameters()).device

    def batches(index: torch.Tensor) -> tuple[torch.Tensor, Conditioning]:
        pictures, cond = validation_pictures(shards, index, settings)
        return pictures.to(device), cond.to(device)

    _, losses = validation_losses(
        ensemble,
        ensemble.experts[0].denoiser.sigma_data,
        batches,
        index=torch.arange(LOSS_DRAWS),
        batch=ctx.runtime["batch"],
        interval=EVERYTHING,
        noise=ensemble.noise,
        seed=settings["seed"],
    )
    return losses


def untrained(stage: CascadeStage) -> CascadeStage:
    """The same stage with a network that has learned nothing: what the measures say of noise."""
    trained = cast(Ensemble, stage.denoiser).experts[0].denoiser
    torch.manual_seed(0)
    fresh = Denoiser(UNet(cast(UNet, trained.net).config), trained.sigma_data)
    fresh = fresh.eval().requires_grad_(False).to(next(trained.parameters()).device)
    return replace(stage, denoiser=fresh)


def enlarged(pictures: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """The pictures of the stage below, simply enlarged: what super-resolution has to beat."""
    method = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), method)) for p in pictures])


def text_only(cond: Conditioning) -> Conditioning:
    """The validation captions without their pictures: what a user's prompt is."""
    absent = torch.zeros_like(cond.pooled["clip_image"])
    return replace(cond, pooled={**cond.pooled, "clip_image": absent})


def as_bytes(x: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[N, 3, R, R] in [-1, 1] → uint8 [N, R, R, 3]"""
    out: np.ndarray[Any, np.dtype[np.uint8]] = (
        ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    )
    return out


def similarity(
    clip: CLIP, pictures: np.ndarray[Any, Any], real: np.ndarray[Any, Any], captions: list[str]
) -> dict[str, float]:
    """Fréchet distance to the real pictures of the stage, and CLIP score, by a CLIP."""
    made = clip.image([Image.fromarray(p) for p in pictures])
    truth = clip.image([Image.fromarray(p) for p in real])
    _, text = clip.text(captions)
    return {
        "frechet_distance": frechet_distance(Moments.of(made), Moments.of(truth)),
        "clip_score": clip_score(made, text),
        "clip_score_real": clip_score(truth, text),
    }


@cache
def scorer(side: int) -> Any:
    """The demo's scorer for pictures of a side; fitting it takes seconds, so once a process."""
    from pipelines.demo.scorer import Scorer

    return Scorer.fit(side)


def alignment(pictures: np.ndarray[Any, Any], captions: list[str], prefix: str) -> dict[str, float]:
    """How many of the asked digits, colours and places the pictures have, by the demo's scorer."""
    score = scorer(pictures.shape[1]).score(pictures, captions)
    named = {
        "alignment": score.overall,
        "objects": score.objects,
        "colours": score.colours,
        "places": score.places,
        "papers": score.papers,
    }
    return {f"{prefix}{k}": float(v) for k, v in named.items() if not math.isnan(v)}
