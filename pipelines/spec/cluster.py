"""The spec's ``cluster:``: which GPUs there are, what they cost, and which stage uses which."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from pipelines.spec.base import Strict
from pipelines.spec.gpus import GPUS, known_gpu

EMBEDDING = "embedding"


class Group(Strict):
    """GPUs of one model, on identical machines."""

    gpu: str = Field(json_schema_extra={"enum": list(GPUS)})
    """GPU model."""

    count: int = Field(ge=1)
    """Number of GPUs in the group."""

    price: float = Field(0.0, ge=0)
    """Price of one GPU for one hour, in ``currency``."""

    utilisation: float = Field(0.35, gt=0, le=1)
    """Share of the GPU's peak FLOP/s that training reaches, where no finished expert of the stage
    was measured. Our default: PaLM reports 0.46 for a transformer (arXiv:2204.02311), and the
    convolutions of a U-Net reach less."""

    per_machine: int = Field(8, ge=1)
    """GPUs on each machine."""

    @field_validator("gpu")
    @classmethod
    def known(cls, gpu: str) -> str:
        return known_gpu(gpu)

    def peak(self, precision: str) -> float:
        """Return the peak FLOP/s of one GPU; ``precision`` is float32 or bfloat16."""
        peak: float = getattr(GPUS[self.gpu], precision)
        return peak


class Cluster(Strict):
    """The GPUs that ``ediffi plan`` estimates time and cost for.

    Nothing here changes a result, or which resources a run requests from Ray.
    """

    groups: dict[str, Group] = Field(default_factory=dict)
    """Groups of identical GPUs, by name."""

    stages: dict[str, str] = Field(default_factory=dict)
    """Name of the group that each stage trains on; the key ``embedding`` stands for the embedding
    job. Not needed with a single group."""

    currency: str = "USD"
    """Currency of the prices, for display only."""

    @model_validator(mode="after")
    def sound(self) -> Self:
        for stage, group in self.stages.items():
            if group not in self.groups:
                known = ", ".join(self.groups) or "none"
                raise ValueError(f"`stages.{stage}` names group {group!r}; there are {known}")
        return self

    def group_of(self, stage: str) -> str | None:
        """Return the name of a stage's group; None if the spec names none."""
        only = next(iter(self.groups)) if len(self.groups) == 1 else None
        return self.stages.get(stage, only)
