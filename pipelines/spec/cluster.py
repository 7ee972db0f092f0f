"""The spec's ``cluster:``: which GPUs there are, what they cost, and which stage works on which."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from pipelines.spec.base import Strict
from pipelines.spec.gpus import GPUS, known_gpu

EMBEDDING = "embedding"


class Group(Strict):
    """GPUs of one kind, on machines of one kind."""

    gpu: str
    count: int = Field(ge=1)
    price: float = Field(0.0, ge=0)
    """Of one GPU for an hour."""

    utilisation: float = Field(0.35, gt=0, le=1)
    """Share of the peak that training reaches, where nothing was measured. Ours: PaLM reports 0.46
    for a transformer (arXiv:2204.02311); a U-Net's convolutions reach less."""

    per_machine: int = Field(8, ge=1)

    @field_validator("gpu")
    @classmethod
    def known(cls, gpu: str) -> str:
        return known_gpu(gpu)

    def peak(self, precision: str) -> float:
        """FLOP/s of one GPU at best; ``precision`` is float32 or bfloat16."""
        peak: float = getattr(GPUS[self.gpu], precision)
        return peak


class Cluster(Strict):
    """What a plan reckons with. Nothing here changes a result, or what a run asks Ray for."""

    groups: dict[str, Group] = Field(default_factory=dict)
    stages: dict[str, str] = Field(default_factory=dict)
    """Stage, or ``embedding``, → its group. Where there is one group, it is everyone's."""

    currency: str = "USD"

    @model_validator(mode="after")
    def sound(self) -> Self:
        for stage, group in self.stages.items():
            if group not in self.groups:
                known = ", ".join(self.groups) or "none"
                raise ValueError(f"`stages.{stage}` names group {group!r}; there are {known}")
        return self

    def group_of(self, stage: str) -> str | None:
        """The name of a stage's group; None if the spec leaves it open."""
        only = next(iter(self.groups)) if len(self.groups) == 1 else None
        return self.stages.get(stage, only)
