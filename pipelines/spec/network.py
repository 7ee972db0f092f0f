"""A stage's network: a preset, with any of its fields changed, or all of them written."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ediffi_core.unet import PRESETS, FieldError, UNetConfig
from ediffi_core.unet.config import Layout, Norm
from pipelines.spec.base import Strict

DEFAULT = "demo"
"""The preset of a stage that writes nothing of its network, or `channels:` alone."""

FOLLOWING = {
    "resolution": "is that of the stage: write `resolution:`, or `crop:`, beside `network:`",
    "embeddings": "follow from `encoders:`: write them there",
    "image_channels": "are 3, as of all pictures: leave them out",
    "low_res": "follows from the place in `stages:`, all but the first enlarge: leave it out",
}
"""Fields of :class:`UNetConfig` that are no choice, and where they come from."""

OPTIONAL = {f.name: f.default for f in fields(UNetConfig) if f.default is not MISSING}
REQUIRED = [f.name for f in fields(UNetConfig) if f.default is MISSING and f.name not in FOLLOWING]

Positive = Annotated[int, Field(ge=1)]


class Network(Strict):
    """What the fields mean: :class:`ediffi_core.unet.UNetConfig`. Those left out are the preset's.

    Without a preset `channels:`, `channel_mult:` and `blocks:` must be written; the others have
    the defaults of :class:`UNetConfig`.
    """

    preset: str | None = None
    channels: int | None = Field(None, ge=2)
    channel_mult: list[Positive] | None = Field(None, min_length=1)
    blocks: int | list[int] | None = None
    layout: Layout | None = None
    self_attention: list[Positive] | None = None
    cross_attention: list[Positive] | None = None
    head_channels: Positive | None = None
    token_dim: Positive | None = None
    norm: Norm | None = None
    residual: bool | None = None

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
        """The fields that were written beside a preset."""
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self
            if name != "preset" and value is not None
        }

    def described(self, *, resolution: int, low_res: bool) -> dict[str, Any]:
        """The network as :meth:`UNetConfig.from_dict` reads it, but for its embeddings.

        Nothing is checked that depends on the resolution: a plan says it of its stage.
        """
        begin = PRESETS[self.preset].to_dict() if self.preset else {}
        found = {**OPTIONAL, **begin, **self.chosen(), "resolution": resolution, "low_res": low_res}
        del found["embeddings"]
        if not found["residual"]:  # as in a UNetConfig's own dictionary
            del found["residual"]
        return found
