"""The learning rate of a step: a function of the number of images seen and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "cosine", "linear", "inverse_sqrt"]


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A warm-up from zero, then a schedule, over the images that one node trains on.

    Let s be the images seen since ``begin`` at the start of a step, w the warm-up, L = end − begin:

    - ``constant``: peak, until the end
    - ``linear``: peak (1 − t), where t = (s − w) / (L − w) runs from 0 after the warm-up to 1
    - ``cosine``: peak (1 + cos πt) / 2
    - ``inverse_sqrt``: peak / √max(s / decay_images, 1) (EDM2, arXiv:2312.02696)

    The warm-up multiplies the rate by (s + batch) / w until that factor is 1. A node that continues
    another has the other's end as its ``begin``, so its warm-up and schedule restart, as a child's
    do. The exception is ``constant``: it has no schedule to restart, and counts s from image 0.
    """

    peak: float
    """The highest rate."""

    end: int
    """Images seen when the node ends."""

    begin: int = 0
    """Images seen when the node begins; above 0 if it continues another."""

    schedule: Schedule = "constant"
    warmup_images: int = 0
    """Images over which the rate rises from zero to the schedule; 0: no warm-up."""

    decay_images: int | None = None
    """Images at the peak rate before ``inverse_sqrt`` starts to fall; other schedules ignore it."""

    def __post_init__(self) -> None:
        if self.schedule == "inverse_sqrt" and not self.decay_images:
            raise ValueError("inverse_sqrt needs decay_images, from 1: the images at the peak")

    def at(self, images: int, batch: int) -> float:
        """The learning rate of the step from ``images`` to ``images + batch`` images seen."""
        since = images if self.schedule == "constant" else images - self.begin
        warmup = self.warmup_images
        ramp = min(1.0, (since + batch) / warmup) if warmup else 1.0
        return float(self.peak * ramp * self._decay(since))

    def _decay(self, since: int) -> float:
        if self.schedule == "constant":
            return 1.0
        if self.decay_images and self.schedule == "inverse_sqrt":
            return 1 / math.sqrt(max(since / self.decay_images, 1.0))
        left = self.end - self.begin - self.warmup_images
        t = min(max((since - self.warmup_images) / left, 0.0), 1.0) if left > 0 else 0.0
        return 1 - t if self.schedule == "linear" else (1 + math.cos(math.pi * t)) / 2
