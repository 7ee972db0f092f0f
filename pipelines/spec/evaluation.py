"""The spec's ``evaluate:``: how finished ensembles are measured."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from ediffi_core.noise import NoiseDistribution
from pipelines.spec.base import LATER, Labels, Strict
from pipelines.spec.renamed import Renamed


class Degrade(Strict):
    """Degradation of the low-resolution pictures that super-resolution is trained on.

    It teaches the network to repair artefacts of the stage below (eDiff-I section 4). Each picture
    draws its own strength, from none to the values here. Kinds and strengths are our defaults.
    """

    probability: float = Field(0.5, ge=0, le=1)
    """Probability of each of the five degradations, independently."""

    blur_sigma: float = Field(1.0, ge=0)
    """Maximum Gaussian blur: its standard deviation in pixels of the low-resolution picture."""

    downscale: Annotated[float, Field(ge=1), Renamed("shrink")] = 2.0
    """Maximum factor by which the sides are divided, before the picture is enlarged back."""

    gaussian_noise: float = Field(0.1, ge=0)
    """Maximum Gaussian noise: its standard deviation, with pixels in [-1, 1]."""

    poisson_noise: float = Field(0.1, ge=0)
    """Maximum Poisson noise: its standard deviation at white, with pixels in [-1, 1]. It falls
    with the square root of the brightness."""

    jpeg_quality: int = Field(40, ge=1, le=95)
    """Minimum JPEG quality; the maximum is 95."""


UNTRAINED_CAPTIONS = 32
"""Captions that the untrained network draws pictures for."""

FEWEST_DRAWS = 512
"""Minimum number of draws in an expert's interval, however many experts share the draws."""


class Losses(Strict):
    """How denoising losses are measured, identically for all models that are compared.

    Stages may train with another p(σ), loss weight or degradation; these here decide what they are
    measured on. So a model that trains on easier draws has no advantage.
    """

    draws: int = Field(4096, ge=FEWEST_DRAWS)
    """Number of draws (a picture with a σ and its noise) per stage, divided evenly between the
    intervals of its experts, but at least 512 for each. Half of σ follow p(σ), half the sampler's
    steps."""

    P_mean: float = -1.2
    """Mean of ln σ in the p(σ) that ``val_loss`` is averaged over; EDM's value
    (arXiv:2206.00364)."""

    P_std: float = Field(1.2, gt=0)
    """Standard deviation of ln σ in that p(σ); EDM's value."""

    sigma_data: float = Field(0.5, gt=0)
    """σ_data in the loss weight λ(σ) = (σ² + σ_data²) / (σ σ_data)²; EDM's value."""

    degrade: Degrade = Degrade()
    """Degradation of the low-resolution pictures in super-resolution stages."""

    @property
    def noise(self) -> NoiseDistribution:
        return NoiseDistribution(P_mean=self.P_mean, P_std=self.P_std)

    def draws_each(self, experts: int) -> int:
        """Return the number of draws in each expert's interval."""
        return max(FEWEST_DRAWS, self.draws // experts)


class Evaluate(Strict):
    """How a finished ensemble is evaluated: sampling for validation captions, metrics, losses."""

    captions: int = Field(128, ge=2)
    """Number of validation captions to draw a picture for."""

    batch: int = Field(64, ge=1)
    """Pictures that are drawn together."""

    metrics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Additional metrics with their options, by the names under which packages register them (see
    :mod:`pipelines.metrics`): ``{emoji-scenes: {}}`` is the demo's."""

    clip: str | None = None
    """CLIP model that computes the CLIP score, by name or folder. Choose another than
    ``encoders.clip``: a model favours pictures that were conditioned on its own embeddings. By
    default there is no CLIP score; without ``metrics`` too, ``encoders.clip`` is used, and the run
    warns."""

    clip_pretrained: str = "openai"
    """OpenCLIP's tag of the weights for ``clip``, as in ``open_clip.list_pretrained()``."""

    losses: Losses = Losses()
    """How denoising losses are measured."""

    workers: Annotated[int, Field(ge=1), LATER] = 1
    """Processes that share an evaluation's pictures, on any machines of the cluster. Results do not
    depend on their number. Each holds ``cpus`` and ``gpus``."""

    cpus: int = Field(1, ge=1)
    """CPUs that draw and measure, of each worker."""

    gpus: float = Field(0, ge=0, le=1)
    """GPU that draws and measures, of each worker, from 0 (none) to 1 (a whole one); a fraction
    shares it. All experts must fit in its memory."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the machines to run on, as Ray selects nodes by label."""

    @field_validator("metrics")
    @classmethod
    def installed(cls, metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not metrics:
            return metrics
        from pipelines.metrics import metric

        for name, options in metrics.items():
            metric(name, options)
        return metrics
