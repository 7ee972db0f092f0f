"""Draws pictures for the validation captions and measures them."""

from __future__ import annotations

import io
import math
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ediffi_core.conditioning import Conditioning
from ediffi_core.metrics import Moments, clip_score, frechet_distance, validation_losses
from ediffi_core.noise import EVERYTHING, Interval
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet
from pipelines.model import draw, grid, load_encoders, load_ensemble
from pipelines.steps.context import Context, Result
from pipelines.store.shards import Shards

GRID = 16
LOSS_DRAWS = 2048
UNTRAINED_CAPTIONS = 32


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    torch.set_num_threads(ctx.cpus)
    experts = {
        name: (f"{inputs[name]}/ema.safetensors", Interval(*q))
        for name, q in settings["experts"].items()
    }
    ensemble, resolution = load_ensemble(ctx.store, experts)
    shards = Shards(ctx.store, inputs["validation"])
    count = min(settings["captions"], len(shards))
    captions = shards.captions[:count]
    real, cond = shards.rows(range(count))
    cond = text_only(cond)
    options = {k: settings[k] for k in ("guidance", "steps", "solver", "seed")}

    pictures = draw(
        ensemble,
        cond,
        resolution=resolution,
        batch=ctx.runtime["batch"],
        **options,
        progress=lambda done: ctx.report(done=done, of=count, unit="pictures"),
    ).numpy()
    metrics = similarity(ctx, settings, inputs, pictures, real, captions)
    sigma_data = ensemble.experts[0].denoiser.sigma_data
    _, losses = validation_losses(
        ensemble,
        sigma_data,
        lambda index: shards.rows((index % len(shards)).tolist()),
        count=LOSS_DRAWS,
        batch=ctx.runtime["batch"],
        interval=EVERYTHING,
        noise=ensemble.noise,
        seed=settings["seed"],
    )
    metrics["val_loss"] = float(losses.mean())

    if settings["scorer"]:
        metrics |= alignment(settings, pictures, captions, "")
        if settings["controls"]:
            config = cast(UNet, ensemble.experts[0].denoiser.net).config
            torch.manual_seed(settings["seed"])
            untrained = Denoiser(UNet(config), sigma_data).eval()
            few = min(UNTRAINED_CAPTIONS, count)
            noise = draw(untrained, cond[slice(0, few)], resolution=resolution, **options).numpy()
            metrics |= alignment(settings, noise, captions[:few], "untrained_")
            shuffled = captions[1:] + captions[:1]
            metrics |= alignment(settings, pictures, shuffled, "shuffled_")
            metrics |= alignment(settings, as_bytes(real), captions, "real_")

    sheet = io.BytesIO()
    grid(pictures[:GRID], columns=8, scale=6).save(sheet, format="PNG")
    ctx.store.write(f"{ctx.folder}/samples.png", sheet.getvalue())
    ctx.store.write(f"{ctx.folder}/captions.txt", "\n".join(captions[:GRID]).encode())
    return Result(files=["samples.png", "captions.txt"], metrics=metrics)


def text_only(cond: Conditioning) -> Conditioning:
    """The validation captions without their pictures: what a user's prompt is."""
    absent = torch.zeros_like(cond.pooled["clip_image"])
    return Conditioning(cond.sequences, cond.masks, {**cond.pooled, "clip_image": absent})


def as_bytes(x: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[N, 3, R, R] in [-1, 1] → uint8 [N, R, R, 3]"""
    out: np.ndarray[Any, np.dtype[np.uint8]] = (
        ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    )
    return out


def similarity(
    ctx: Context,
    settings: dict[str, Any],
    inputs: dict[str, str],
    pictures: np.ndarray[Any, Any],
    real: torch.Tensor,
    captions: list[str],
) -> dict[str, float]:
    """Fréchet distance to the real pictures of the stage, and CLIP score, with the spec's CLIP."""
    _, clip = load_encoders(ctx.store, inputs.get("encoders"), settings["encoders"])
    made = clip.image([Image.fromarray(p) for p in pictures])
    truth = clip.image([Image.fromarray(p) for p in as_bytes(real)])
    _, text = clip.text(captions)
    return {
        "frechet_distance": frechet_distance(Moments.of(made), Moments.of(truth)),
        "clip_score": clip_score(made, text),
        "clip_score_real": clip_score(truth, text),
    }


def alignment(
    settings: dict[str, Any], pictures: np.ndarray[Any, Any], captions: list[str], prefix: str
) -> dict[str, float]:
    """How many of the asked digits, colours and places the pictures have, by the demo's scorer."""
    from pipelines.demo.scorer import Scorer

    score = Scorer.fit(pictures.shape[1]).score(pictures, captions)
    named = {
        "alignment": score.overall,
        "objects": score.objects,
        "colours": score.colours,
        "places": score.places,
        "papers": score.papers,
    }
    return {f"{prefix}{k}": float(v) for k, v in named.items() if not math.isnan(v)}
