"""A benchmark that published models are measured by: which captions, pictures and measures."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pipelines.spec.base import Strict
from pipelines.spec.evaluation import FeatureName, FeatureNetwork, Measure, MeasureOptions


class Captions(Strict):
    """Captions to draw pictures for, and their real pictures: a random choice from COCO."""

    annotations: str
    """COCO's ``captions_NAME.json``, a path or an ``s3://`` or ``https://`` URL."""

    images: str | None = None
    """Folder of the pictures. By default, for ``annotations/captions_val2014.json`` it is
    ``val2014/`` beside ``annotations/``."""

    count: int = Field(30_000, ge=3)
    """Number of pictures to choose, with one caption each."""

    seed: int = 0
    """Decides which pictures are chosen, and which of their captions."""


class Protocol(Strict):
    """A benchmark for ``ediffi evaluate --protocol``.

    Options of the command change it for one call.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name for reports: lower-case letters, digits and hyphens."""

    captions: Captions
    """Captions to draw pictures for, and their real pictures."""

    resolution: int = Field(256, ge=8)
    """Side of the pictures that are compared, in pixels. The stage of this resolution is measured,
    and the central squares of the real pictures are resized to it."""

    guidance: str | None = None
    """Guidance scales of the curve, as of ``--guidance``, in quotes: ``"0:10:0.5"``."""

    steps: str | None = None
    """Numbers of sampling steps to compare, as of ``--steps``, in quotes."""

    solver: str | None = None
    """Solvers to compare, as of ``--solver``."""

    sampling: dict[str, Any] = Field(default_factory=dict)
    """Other changes of the model's sampling settings, by dotted names as of ``--set``."""

    seed: int = 0
    """Seed of the pictures' noise."""

    batch: int = Field(64, ge=1)
    """Pictures that are drawn together."""

    clip: str | None = None
    """CLIP model for the CLIP score, by name or folder. It must not be one that the evaluated
    models are conditioned on."""

    clip_pretrained: str = "openai"
    """OpenCLIP's tag of the weights for ``clip``, as in ``open_clip.list_pretrained()``."""

    features: dict[FeatureName, FeatureNetwork] = Field(default_factory=dict)
    """Networks whose features ``measures`` are computed on, as in a spec's ``evaluate.features``.
    The first measure on the first of them is the vertical axis."""

    measures: list[Measure] = Field(["fid"])
    """What is measured on each of ``features``, as in a spec's ``evaluate.measures``, except
    ``neighbours``."""

    measure_options: MeasureOptions = MeasureOptions()
    """Options of ``measures``."""

    @field_validator("guidance", "steps", mode="before")
    @classmethod
    def in_quotes(cls, given: Any) -> Any:
        if isinstance(given, int | float):
            raise ValueError(
                f'write it in quotes, as "0:10:0.5"; YAML has read the number {given:g}, as it '
                "takes colons for those of a time"
            )
        return given

    @model_validator(mode="after")
    def can_be_measured(self) -> Self:
        if "neighbours" in self.measures:
            raise ValueError("`measures` has neighbours, which needs training pictures; remove it")
        if self.features:
            for measure in self.measures:
                if (least := self.measure_options.fewest(measure)) > self.captions.count:
                    raise ValueError(
                        f"`measures` has {measure}, which needs {least:,} pictures, but "
                        f"`captions.count` is {self.captions.count:,}"
                    )
        return self
