"""The learning rate of a step: a function of the clock of images alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "cosine", "linear", "inverse_sqrt"]


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A warm-up from zero, then a schedule, over the images that one node trains on.

    With s the images since ``begin`` at the start of a step, w the warm-up and L = end − begin:

    - ``constant``: peak, until the end
    - ``linear``: peak (1 − t), with t = (s − w) / (L − w) from the warm-up's end to the node's
    - ``cosine``: peak (1 + cos πt) / 2
    - ``inverse_sqrt``: peak / √max(s / decay_images, 1) (EDM2, arXiv:2312.02696)

    The warm-up multiplies by (s + batch) / w until that is 1. A node that continues another begins
    where that one ended: its warm-up and its schedule start anew, as a child's do. Only
    ``constant``, which has nothing to start anew, goes on from the clock's own zero.
    """

    peak: float
    end: int
    """The clock at which the node ends."""

    begin: int = 0
    """The clock at which it begins: not 0 for one that continues another."""

    schedule: Schedule = "constant"
    warmup_images: int = 0
    decay_images: int | None = None
    """Images at the peak before ``inverse_sqrt`` falls."""

    def __post_init__(self) -> None:
        if self.schedule == "inverse_sqrt" and not self.decay_images:
            raise ValueError("inverse_sqrt needs decay_images, from 1: the images at the peak")

    def at(self, images: int, batch: int) -> float:
        """Of the step that takes the clock from ``images`` to ``images + batch``."""
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
