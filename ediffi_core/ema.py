"""Exponential moving average of the weights, its length counted in images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """``ema ← β ema + (1 − β) weights`` with ``β = ½^(images / half-life)``.

    The half-life starts short and grows to its full length, so that early weights are forgotten
    (EDM's ramp-up, 5 % of the images seen).
    """

    def __init__(self, model: nn.Module, halflife_images: float, rampup: float = 0.05) -> None:
        if halflife_images <= 0:
            raise ValueError(f"ema half-life must be positive, got {halflife_images} images")
        self.halflife_images = halflife_images
        self.rampup = rampup
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """Takes in the weights after a step of ``batch`` images, ``images`` seen in all."""
        halflife = min(self.halflife_images, max(images * self.rampup, 1e-8))
        keep = 0.5 ** (batch / halflife)
        averages: list[Tensor] = list(self.weights.values())
        torch._foreach_lerp_(averages, list(model.state_dict().values()), 1 - keep)
