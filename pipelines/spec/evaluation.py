"""How finished ensembles are measured, as a spec says it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ediffi_core.noise import NoiseDistribution
from pipelines.spec.base import Labels, Strict


class Degrade(Strict):
    """How the small pictures are spoilt that super-resolution trains on (our defaults)."""

    probability: float = Field(0.5, ge=0, le=1)
    blur_sigma: float = Field(1.0, ge=0)
    shrink: float = Field(2.0, ge=1)
    gaussian_noise: float = Field(0.1, ge=0)
    poisson_noise: float = Field(0.1, ge=0)
    jpeg_quality: int = Field(40, ge=1, le=95)


UNTRAINED_CAPTIONS = 32
"""Of the row that shows what an untrained network draws."""

FEWEST_DRAWS = 512
"""Of an expert's interval, however many experts share the draws."""


class Losses(Strict):
    """How denoising losses are measured: the same for all that are compared, however trained.

    Of p(σ), the loss's weight and the degradation a spec's ``stages:`` may have others: a model
    that trains on easier draws is not measured on them.
    """

    draws: int = Field(4096, ge=FEWEST_DRAWS)
    """In equal parts for the intervals of a stage's experts, at least 512 for each; half of each
    part by p(σ), half by the sampler's steps."""

    P_mean: float = -1.2
    """Of the p(σ) that ``val_loss`` is the mean over; EDM's value, as the next two."""

    P_std: float = Field(1.2, gt=0)
    sigma_data: float = Field(0.5, gt=0)
    """Of the loss's weight λ(σ)."""

    degrade: Degrade = Degrade()
    """How super-resolution's small pictures are degraded."""

    @property
    def noise(self) -> NoiseDistribution:
        return NoiseDistribution(P_mean=self.P_mean, P_std=self.P_std)

    def draws_each(self, experts: int) -> int:
        """Draws of each expert's interval."""
        return max(FEWEST_DRAWS, self.draws // experts)


class Evaluate(Strict):
    """Pictures for the validation captions, and what is measured on them."""

    captions: int = Field(128, ge=2)
    batch: int = Field(64, ge=1)
    metrics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further measures, by the names that packages give them (:mod:`pipelines.metrics`), with their
    options: ``{emoji-scenes: {}}`` for the demo's scenes."""

    clip: str | None = None
    """The CLIP that scores, by name or folder: another than the one that conditions, which would
    judge its own wishes. Without it and without ``metrics`` the conditioning one scores, and the
    run says so."""

    clip_pretrained: str = "openai"
    losses: Losses = Losses()
    cpus: int = Field(1, ge=1)
    """That draw and measure together."""

    gpus: float = Field(0, ge=0, le=1)
    """One draws and measures instead, or a share of one; it has to hold all the experts."""

    labels: Labels = Field(default_factory=dict)
    """The machines that it may run on."""

    @field_validator("metrics")
    @classmethod
    def installed(cls, metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not metrics:
            return metrics
        from pipelines.metrics import metric

        for name, options in metrics.items():
            metric(name, options)
        return metrics
