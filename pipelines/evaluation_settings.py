"""How finished ensembles are measured, as a spec says it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from pipelines.metrics import metric
from pipelines.strict import Labels, Strict


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
    cpus: int = Field(1, ge=1)
    """That draw and measure together."""

    gpus: float = Field(0, ge=0, le=1)
    """One draws and measures instead, or a share of one; it has to hold all the experts."""

    labels: Labels = Field(default_factory=dict)
    """The machines that it may run on."""

    @field_validator("metrics")
    @classmethod
    def installed(cls, metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in metrics.items():
            metric(name, options)
        return metrics
