"""What an expert makes of the same pictures as it learns: one sheet a milestone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.noise import EVERYTHING, Interval, NoiseDistribution, edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS

COUNT = 8
LEVELS = (0.1, 0.35, 0.65, 0.9)
"""Where in the expert's interval pictures are denoised."""

STEPS = 20


@torch.no_grad()
def sheet(
    model: Denoiser, x: Tensor, cond: Conditioning, settings: Mapping[str, Any]
) -> tuple[Tensor, int]:
    """→ rows of pictures [rows × N, 3, R, R] in [-1, 1], and N.

    The real ones; what the expert sees in each at four noise levels of its interval; and, if it is
    trained on all noise levels, what it draws for their captions. Noise is fixed.
    """
    interval, noise = Interval(*settings["interval"]), NoiseDistribution(**settings["noise"])
    eps = draws.normal(
        settings["seed"], "pictures/eps", torch.arange(len(x)), tuple(x.shape[1:])
    ).to(x)  # drawn on the CPU: the same on every device
    rows = [x]
    for sigma in interval.draw(torch.tensor(LEVELS), noise).flip(0).tolist():
        rows.append(model(x + sigma * eps, torch.tensor(sigma, dtype=x.dtype), cond))
    if interval == EVERYTHING:
        sigmas = edm_grid(STEPS)
        start = eps * float(sigmas[0])
        rows.append(SOLVERS["deis3"](lambda x, sigma: model(x, sigma, cond), start, sigmas))
    return torch.cat(rows), len(x)


def png(pictures: Tensor, columns: int) -> bytes:
    from pipelines.models.text_to_image import grid

    as_bytes = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
    scale = max(1, 96 // pictures.shape[-1])
    out = io.BytesIO()
    grid(as_bytes.numpy(), columns=columns, scale=scale).save(out, format="PNG")
    return out.getvalue()
