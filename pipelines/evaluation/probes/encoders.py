"""Pictures drawn with each text encoder alone, with all and with none (eDiff-I figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import cast

import torch

from ediffi_core.conditioning import Conditioning
from ediffi_core.embeddings import EmbeddingSpec, text_encoders
from ediffi_core.unet import UNet
from pipelines.evaluation.probes.model import Found, Model, estimates, flat
from pipelines.spec.probes import EncodersProbe

ALL, NONE = "all", "none"


def embeddings_of(model: Model) -> tuple[EmbeddingSpec, ...]:
    """Embeddings that the model's networks read."""
    return cast(UNet, model.ensemble.experts[0].denoiser.net).config.embeddings


def kept_alone(cond: Conditioning, kept: str, specs: Sequence[EmbeddingSpec]) -> Conditioning:
    """Conditioning on one text encoder alone, or on :data:`ALL` or :data:`NONE`."""
    if kept == ALL:
        return cond
    absent = torch.zeros(len(cond), dtype=torch.bool, device=cond.device)
    return cond.keep({name: absent for name in text_encoders(specs) if name != kept}, specs)


def measure(model: Model, options: EncodersProbe) -> Found:
    """Draw the same captions with each encoder, and measure all, the short and the long ones.

    Short captions have at most the median number of words.
    """
    specs = embeddings_of(model)
    captions = [c for batch in model.batches(options.captions) for c in batch.captions]
    variants = [ALL, *text_encoders(specs), NONE]
    model.to_draw = len(captions) * len(variants)
    words = torch.tensor([len(caption.split()) for caption in captions])
    middle = float(median(words.tolist()))
    lengths = {"all": words >= 0, "short": words <= middle, "long": words > middle}
    points = []
    metrics: dict[str, float] = {}
    for kept in variants:
        seen = model.see(len(captions), changed=partial(kept_alone, kept=kept, specs=specs))
        for length, rows in lengths.items():
            if not rows.any():
                continue
            found = estimates(seen.measures(rows))
            of = {"encoders": kept, "captions": length, "pictures": int(rows.sum())}
            points.append({**of, "measures": found})
            metrics |= flat(found, f"{kept}/" if length == "all" else f"{kept}/{length}/")
    return Found(data={"median_words": middle, "points": points}, metrics=metrics)
