"""Contact sheets: what an expert makes of the same images at successive points of training."""

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
"""Images in a row."""

LEVELS = (0.1, 0.35, 0.65, 0.9)
"""Quantiles of the expert's interval at which images are denoised."""

STEPS = 20
"""Sampling steps of the generated row."""


@torch.no_grad()
def contact_sheet(
    model: Denoiser, x: Tensor, cond: Conditioning, settings: Mapping[str, Any]
) -> tuple[Tensor, int]:
    """Real images, denoised images at four noise levels and, for a root, generated images.

    An expert of a narrower interval cannot generate from pure noise, so it has no last row. The
    noise is fixed.

    Args:
        x: [N, 3, R, R] in [-1, 1].

    Returns:
        Images [rows × N, 3, R, R] in [-1, 1], row by row, and N.
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


def to_png(pictures: Tensor, columns: int) -> bytes:
    """Images [N, 3, R, R] in [-1, 1] as one PNG of several columns, enlarged to about 96 pixels."""
    from pipelines.models.sheet import grid

    as_bytes = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()
    scale = max(1, 96 // pictures.shape[-1])
    out = io.BytesIO()
    grid(as_bytes.numpy(), columns=columns, scale=scale).save(out, format="PNG")
    return out.getvalue()
