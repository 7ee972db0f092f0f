"""A stage's ``network:``: a preset with any of its fields changed, or all fields written out."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic.config import JsonDict

from ediffi_core.unet import PRESETS, FieldError, UNetConfig
from ediffi_core.unet.config import Layout, Norm
from pipelines.spec.base import Strict

DEFAULT = "demo"
"""The preset of a stage that has no `network:`, or nothing but `channels:` in it."""

FOLLOWING = {
    "resolution": "is that of the stage: write `resolution:`, or `crop:`, beside `network:`",
    "embeddings": "follow from `encoders:`: write them there",
    "image_channels": "are 3, as of all pictures: leave them out",
    "low_res": "follows from the place in `stages:`, all but the first enlarge: leave it out",
}
"""Fields of :class:`UNetConfig` that a spec cannot set, and what determines them."""

OPTIONAL = {f.name: f.default for f in fields(UNetConfig) if f.default is not MISSING}
REQUIRED = [f.name for f in fields(UNetConfig) if f.default is MISSING and f.name not in FOLLOWING]

Positive = Annotated[int, Field(ge=1)]

AT_LEAST_ONE: JsonDict = {"minimum": 1, "items": {"type": "integer", "minimum": 1}}
"""Bounds of ``blocks`` in the JSON schema; :meth:`Network.counts` checks them."""


class Network(Strict):
    """A stage's U-Net: a preset, with any of its fields changed, or a network of your own.

    Fields that are left out are the preset's. Without a preset, ``channels``, ``channel_mult`` and
    ``blocks`` are required, and the others default to those of
    :class:`ediffi_core.unet.UNetConfig`. A stage without ``network``, or with ``channels`` alone,
    uses the preset ``demo``.
    """

    preset: str | None = Field(None, json_schema_extra={"enum": [*PRESETS, None]})
    """Network to start from. ``base64``, ``sr256`` and ``sr1024`` are eDiff-I's."""

    channels: int | None = Field(None, ge=2)
    """Channels of the first level, an even number."""

    channel_mult: list[Positive] | None = Field(None, min_length=1)
    """Channels of each level, as a multiple of ``channels``. Each level has half the side of the
    level before."""

    blocks: int | list[int] | None = Field(None, json_schema_extra=AT_LEAST_ONE)
    """Residual blocks per level on the way down: one number for all levels, or one for each."""

    layout: Layout | None = None
    """Where the network resamples. ``adm``: inside residual blocks, with the first level at full
    resolution. ``efficient``: before the blocks of each level on the way down and after them on
    the way up, so that no block works at full resolution (Imagen). Default ``adm``."""

    self_attention: list[Positive] | None = None
    """Sides, in pixels, of the levels with self-attention. None by default."""

    cross_attention: list[Positive] | None = None
    """Sides, in pixels, of the levels with cross-attention to the text tokens. None by default."""

    head_channels: Positive | None = None
    """Channels of each attention head. Default 64."""

    token_dim: Positive | None = None
    """Width to which text tokens are projected for cross-attention. Default 256."""

    norm: Norm | None = None
    """Normalisation. ``group``: group norm. ``pixel``: per pixel, which keeps the receptive field
    finite, as needed for a stage with ``crop``. Default ``group``."""

    residual: bool | None = None
    """Super-resolution: predict the difference from the enlarged picture (SRDiff, Li et al. 2022).
    Set the stage's ``sigma_data`` to the standard deviation of that difference, about 0.15.
    Default false."""

    @model_validator(mode="before")
    @classmethod
    def choices_only(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for key, why in FOLLOWING.items():
            if key in given:
                raise FieldError(f"{key} {why}", key)
        return {"preset": DEFAULT, **given} if given.keys() <= {"channels"} else given

    @field_validator("blocks", mode="before")
    @classmethod
    def counts(cls, given: Any) -> Any:
        each = given if isinstance(given, list) and given else [given]
        if given is not None and any(type(n) is not int or n < 1 for n in each):
            raise ValueError(
                f"write a whole number from 1, or a list of one for each level, got {given!r:.40}"
            )
        return given

    @model_validator(mode="after")
    def has_a_beginning(self) -> Self:
        if self.preset is not None and self.preset not in PRESETS:
            raise FieldError(
                f"preset {self.preset!r} is unknown; there are {', '.join(PRESETS)}", "preset"
            )
        for key in REQUIRED:
            if self.preset is None and getattr(self, key) is None:
                raise FieldError(
                    f"is missing: without `preset:` a network needs {', '.join(REQUIRED)}; write "
                    f"it, or a preset to change, of {', '.join(PRESETS)}",
                    key,
                )
        return self

    def chosen(self) -> dict[str, Any]:
        """Return the fields that the spec sets besides the preset."""
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self
            if name != "preset" and value is not None
        }

    def described(self, *, resolution: int, low_res: bool) -> dict[str, Any]:
        """Return the network as :meth:`UNetConfig.from_dict` reads it, without its embeddings.

        What depends on the resolution is checked later, when the plan is linted.
        """
        begin = PRESETS[self.preset].to_dict() if self.preset else {}
        found = {**OPTIONAL, **begin, **self.chosen(), "resolution": resolution, "low_res": low_res}
        del found["embeddings"]
        if not found["residual"]:  # as in a UNetConfig's own dictionary
            del found["residual"]
        return found
