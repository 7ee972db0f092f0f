"""Classifier-free guidance (arXiv:2207.12598): from a conditional denoiser to a solver's input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble
from ediffi_core.sampling import Denoise

ConditionalDenoise = Callable[[Tensor, Tensor, Conditioning], Tensor]
Scale = float | Callable[[float], float]
"""Guidance scale w: a constant, or a function of σ."""
Threshold = Callable[[Tensor], Tensor]
"""Maps denoised images [N, C, H, W] back into range."""


def guided(
    denoiser: ConditionalDenoise,
    cond: Conditioning,
    scale: Scale,
    *,
    negative: Conditioning | None = None,
    threshold: Threshold | None = None,
    batched: bool = True,
) -> Denoise:
    """``D = D_c + w (D_c − D_u)``; with w = 0 the conditional D_c, at half the cost.

    A negative prompt takes the place of the absent one in D_u, so that guidance leads away from it.

    Args:
        denoiser: ``(x, σ, conditioning) → x̂``: a denoiser or an ensemble.
        cond: one row per image.
        scale: w as in eDiff-I; Imagen's and diffusers' scale is w + 1.
        negative: conditioning of D_u, one row per image; by default all embeddings are absent. Its
            paint is ignored, and ``low_res`` is that of ``cond``.
        threshold: applied to the guided image, such as :func:`static_threshold`.
        batched: evaluate D_c and D_u in one batch, or one after the other in half the memory.
    """
    null = cond.null()
    if negative is not None:
        if len(negative) != len(cond):
            raise ValueError(f"{len(negative)} negative prompts for {len(cond)} prompts")
        null = replace(negative, low_res=cond.low_res, paint=None)
    both = Conditioning.cat([cond, null]) if batched else None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        w = scale(float(sigma)) if callable(scale) else scale
        if w == 0:
            out = denoiser(x, sigma, cond)
        else:
            if both is not None:
                with_text, without = denoiser(torch.cat([x, x]), sigma, both).chunk(2)
            else:
                with_text, without = denoiser(x, sigma, cond), denoiser(x, sigma, null)
            out = with_text + w * (with_text - without)
        return threshold(out) if threshold else out

    return denoise


def per_expert(ensemble: Ensemble, scales: Mapping[str, float], default: float) -> Scale:
    """A scale for each expert of an ensemble; ValueError for an unknown name.

    Args:
        scales: expert → w.
        default: w of the experts that are not named.
    """
    names = [e.name for e in ensemble.experts]
    if unknown := sorted(set(scales) - set(names)):
        raise ValueError(
            f"guidance for {', '.join(unknown)}, but the ensemble has {', '.join(names)}"
        )
    return lambda sigma: scales.get(ensemble.expert_at(sigma).name, default)


def on_interval(scale: Scale, sigma_lo: float, sigma_hi: float) -> Scale:
    """Guidance for ``σ_lo <= σ < σ_hi`` (arXiv:2404.07724); elsewhere none, at half the cost."""
    if not 0 <= sigma_lo < sigma_hi:
        raise ValueError(f"guidance needs 0 <= sigma_lo < sigma_hi, got {sigma_lo} and {sigma_hi}")

    def inside(sigma: float) -> float:
        if not sigma_lo <= sigma < sigma_hi:
            return 0.0
        return scale(sigma) if callable(scale) else scale

    return inside


def static_threshold(x: Tensor) -> Tensor:
    """Clip pixels to [-1, 1]."""
    return x.clamp(-1, 1)


def dynamic_threshold(percentile: float = 0.995) -> Threshold:
    """Imagen's dynamic thresholding (arXiv:2205.11487, section 2.3).

    Clips each image at a percentile of its own absolute pixel values, then scales it to [-1, 1].
    The percentile is the nearest rank, and at least 1 (our default).
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile must lie in (0, 1], got {percentile}; 0.995 is usual")

    def apply(x: Tensor) -> Tensor:
        magnitude = x.flatten(1).abs().float()
        rank = math.ceil(percentile * magnitude.shape[1])
        bound = magnitude.kthvalue(rank, dim=1).values.clamp(min=1).to(x.dtype)
        bound = bound.view(-1, *(1 for _ in x.shape[1:]))
        return torch.minimum(torch.maximum(x, -bound), bound) / bound

    return apply
