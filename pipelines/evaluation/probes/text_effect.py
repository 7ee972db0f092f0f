"""How much the denoised picture depends on its caption, by noise level (eDiff-I figure 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.analysis import TextEffect, text_effect
from ediffi_core.metrics import Estimate
from pipelines.evaluation.probes.model import Found, Model, estimate_json
from pipelines.spec.probes import TextEffectProbe


def levels_of(model: Model, count: int) -> list[float]:
    """Noise levels, evenly spaced in ln σ over those that are sampled, lowest first."""
    low, high = math.log(model.sampling.sigma_min), math.log(model.sampling.sigma_max)
    return torch.linspace(low, high, count, dtype=torch.float64).exp().tolist()


def measure(model: Model, options: TextEffectProbe) -> Found:
    """Measure the effect of the text at every noise level, on the same pictures and noise.

    Raises:
        ValueError: The validation data has no pictures.
    """
    points, effects = [], []
    levels = levels_of(model, options.levels)
    for sigma in levels:
        effect = _at(model, options.pictures, sigma)
        effects.append(effect)
        points.append(
            {
                "sigma": sigma,
                "expert": effect.expert,
                "change": estimate_json(Estimate.of(effect.change)),
                "explained": estimate_json(Estimate.of(explained(effect))),
                "attention": effect.attention,
            }
        )
    half = len(levels) // 2
    parts = {"": effects, "/low_noise": effects[:half], "/high_noise": effects[half:]}
    metrics: dict[str, float] = {}
    for part, some in parts.items():
        metrics[f"change{part}"] = _mean([float(e.change.mean()) for e in some])
        metrics[f"explained{part}"] = _mean([float(explained(e).mean()) for e in some])
        if all(e.attention for e in some):
            text = [1 - e.attention["null"] for e in some]
            metrics[f"attention{part}"] = _mean(text)
    data: dict[str, Any] = {"pictures": len(effects[0].change), "points": points}
    return Found(data=data, metrics=metrics)


def explained(effect: TextEffect) -> Tensor:
    """Share of the error without text that the text removes; its mean is 1 − Σ with / Σ without.

    One value a picture, by linearisation, so that :meth:`Estimate.of` has the interval of the
    ratio. [N] float64
    """
    ratio = effect.error_with.sum() / effect.error_without.sum()
    left = effect.error_with - ratio * effect.error_without
    return 1 - ratio - left / effect.error_without.mean()


def _at(model: Model, pictures: int, sigma: float) -> TextEffect:
    """The effect at one noise level, on the first validation pictures."""
    parts = []
    for batch in model.batches(pictures):
        if batch.real is None:
            raise ValueError("the effect of text needs validation pictures; there are none")
        x = torch.from_numpy(batch.real).permute(0, 3, 1, 2).float() / 127.5 - 1
        index = torch.arange(batch.first, batch.first + len(x))
        eps = draws.normal(model.seed, "probe/text_effect", index, tuple(x.shape[1:]))
        x, eps = x.to(model.device), eps.to(model.device)
        parts.append(text_effect(model.ensemble, x, eps, batch.cond, sigma))
    sizes = [len(part.change) for part in parts]
    attention = {
        name: sum(p.attention[name] * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes)
        for name in parts[0].attention
        if all(name in part.attention for part in parts)
    }
    return TextEffect(
        expert=parts[0].expert,
        change=torch.cat([part.change for part in parts]),
        error_with=torch.cat([part.error_with for part in parts]),
        error_without=torch.cat([part.error_without for part in parts]),
        attention=attention,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
