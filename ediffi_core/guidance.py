"""Classifier-free guidance: what turns a conditional denoiser into what the solvers integrate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble
from ediffi_core.sampling import Denoise

ConditionalDenoise = Callable[[Tensor, Tensor, Conditioning], Tensor]
Scale = float | Callable[[float], float]
"""w, the same at every noise level or a function of σ."""
Threshold = Callable[[Tensor], Tensor]


def guided(
    denoiser: ConditionalDenoise,
    cond: Conditioning,
    scale: Scale,
    *,
    threshold: Threshold | None = None,
    batched: bool = True,
) -> Denoise:
    """``D = D_c + w (D_c − D_u)``; where w = 0 it is plain conditional, at one evaluation.

    Args:
        denoiser: ``(x, σ, conditioning) → x̂``: a model or an ensemble.
        cond: one row a picture.
        scale: w, in the paper's counting (Imagen's scale is w + 1).
        threshold: what brings the guided picture back into range, such as :func:`static_threshold`.
        batched: both halves in one pass, or one after the other in half the memory.
    """
    null = cond.null()
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
    """A scale for each expert of an ensemble; ValueError for a name it does not have."""
    names = [e.name for e in ensemble.experts]
    if unknown := sorted(set(scales) - set(names)):
        raise ValueError(
            f"guidance for {', '.join(unknown)}, but the ensemble has {', '.join(names)}"
        )
    return lambda sigma: scales.get(ensemble.expert_at(sigma).name, default)


def on_interval(scale: float, sigma_lo: float, sigma_hi: float) -> Scale:
    """Guidance on ``σ_lo <= σ < σ_hi`` alone; elsewhere none, at half the cost."""
    if not 0 <= sigma_lo < sigma_hi:
        raise ValueError(f"guidance needs 0 <= sigma_lo < sigma_hi, got {sigma_lo} and {sigma_hi}")
    return lambda sigma: scale if sigma_lo <= sigma < sigma_hi else 0.0


def static_threshold(x: Tensor) -> Tensor:
    """Pixels clipped to [-1, 1]."""
    return x.clamp(-1, 1)


def dynamic_threshold(percentile: float = 0.995) -> Threshold:
    """Imagen's: clips at a percentile of each picture's own pixels, then scales back to [-1, 1].

    The percentile is the nearest rank, and never below 1 (paper.md section 6: our default).
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"a percentile lies in (0, 1], got {percentile}; 0.995 is usual")

    def apply(x: Tensor) -> Tensor:
        magnitude = x.flatten(1).abs().float()
        rank = math.ceil(percentile * magnitude.shape[1])
        bound = magnitude.kthvalue(rank, dim=1).values.clamp(min=1).to(x.dtype)
        bound = bound.view(-1, *(1 for _ in x.shape[1:]))
        return torch.minimum(torch.maximum(x, -bound), bound) / bound

    return apply
