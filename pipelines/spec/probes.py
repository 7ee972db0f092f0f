"""The spec's ``evaluate.probes``: what else is looked at in the models of the base stage."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.spec.base import Strict

ProbeName = Literal["text_effect", "prompt_switch", "encoders", "guidance", "seconds"]

Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TextEffectProbe(Strict):
    """How much the denoised picture depends on the caption, by noise level (eDiff-I figure 3)."""

    levels: int = Field(24, ge=2)
    """Noise levels, evenly spaced in ln σ from ``sampling.sigma_min`` to ``sigma_max``."""

    pictures: int = Field(64, ge=2)
    """Validation pictures that noise is added to."""


class PromptSwitchProbe(Strict):
    """What a picture shows if the caption changes while it is drawn (eDiff-I figure 4)."""

    captions: int = Field(64, ge=2)
    """Pairs of captions; twice as many validation captions are used."""

    fractions: list[Fraction] = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], min_length=1
    )
    """Shares of the sampling steps after which the second caption takes over."""


class EncodersProbe(Strict):
    """Pictures drawn with each text encoder alone, with all and with none (eDiff-I figure 8)."""

    captions: int = Field(96, ge=2)
    """Validation captions to draw a picture for."""


class GuidanceProbe(Strict):
    """The quality–alignment curve over the guidance scale (eDiff-I figure 7)."""

    captions: int = Field(96, ge=2)
    """Validation captions to draw a picture for."""

    scales: list[Scale] = Field([0.0, 0.5, 1.0, 2.0, 3.0, 5.0], min_length=1)
    """Guidance scales; all other sampling settings are the stage's."""


class SecondsProbe(Strict):
    """Time of an evaluation of the denoiser and of drawing, and capacity (eDiff-I figure 13)."""

    pictures: int = Field(16, ge=1)
    """Pictures that are denoised, and drawn, together."""

    repeats: int = Field(5, ge=1)
    """Measurements that the medians are of."""


def _as_mapping(given: Any) -> Any:
    """A list of names as names without options.

    Raises:
        ValueError: It names one twice.
    """
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        return given
    if twice := [name for name, times in Counter(given).items() if times > 1]:
        raise ValueError(f"names {twice[0]} twice; write each probe once")
    return {name: {} for name in given}


class Probes(Strict):
    """What else is looked at in the root, the ensemble and the single model of the base stage.

    Either a list of names, ``[text_effect, guidance]``, or names with options,
    ``{text_effect: {}, guidance: {scales: [0, 2]}}``. There are none by default.
    """

    text_effect: TextEffectProbe | None = None
    """How much the denoised picture depends on the caption, and the share of cross-attention on
    it, by noise level."""

    prompt_switch: PromptSwitchProbe | None = None
    """What a picture shows if another caption takes over midway, by the metrics."""

    encoders: EncodersProbe | None = None
    """Metrics and kernel distance with each text encoder alone, with all and with none; of short
    and of long captions too."""

    guidance: GuidanceProbe | None = None
    """Metrics and kernel distance over the guidance scale."""

    seconds: SecondsProbe | None = None
    """Seconds of an evaluation and of drawing a picture, parameters and FLOPs."""

    @property
    def chosen(self) -> dict[ProbeName, Strict]:
        """The probes that the spec asks for, with their options."""
        asked: dict[ProbeName, Strict | None] = {
            "text_effect": self.text_effect,
            "prompt_switch": self.prompt_switch,
            "encoders": self.encoders,
            "guidance": self.guidance,
            "seconds": self.seconds,
        }
        return {name: options for name, options in asked.items() if options is not None}

    @model_validator(mode="after")
    def distinct(self) -> Self:
        for name, options in self.chosen.items():
            for key, values in options.model_dump().items():
                if isinstance(values, list) and len(set(values)) < len(values):
                    raise ValueError(f"`{name}.{key}` names a value twice; write each once")
        return self


GivenProbes = Annotated[
    Probes, BeforeValidator(_as_mapping, json_schema_input_type=list[ProbeName] | Probes)
]
"""A :class:`Probes` that may also be written as a list of names."""
