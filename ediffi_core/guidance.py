"""Classifier-free guidance: what turns a conditional denoiser into what the solvers integrate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning
from ediffi_core.sampling import Denoise

ConditionalDenoise = Callable[[Tensor, Tensor, Conditioning], Tensor]


def guided(denoiser: ConditionalDenoise, cond: Conditioning, scale: float) -> Denoise:
    """``D = D_c + w (D_c − D_u)`` in one batched pass; w = 0 is plain conditional, one evaluation.

    Args:
        denoiser: ``(x, σ, conditioning) → x̂``: a model or an ensemble.
        cond: one row a picture.
        scale: w, in the paper's counting (Imagen's scale is w + 1).
    """
    if scale == 0:
        return lambda x, sigma: denoiser(x, sigma, cond)
    both = Conditioning.cat([cond, cond.null()])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        with_text, without = denoiser(torch.cat([x, x]), sigma, both).chunk(2)
        return with_text + scale * (with_text - without)

    return denoise
