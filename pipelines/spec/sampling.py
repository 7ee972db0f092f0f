"""Settings for sampling from a stage: the same class for specs, the shell and registered models."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ediffi_core.solver_names import MULTISTEP, SINGLE_STEP, SOLVER_NAMES
from pipelines.spec.base import LATER, Strict, did_you_mean


class SamplingWarning(UserWarning):
    """A sampling setting has no effect."""


class Guidance(Strict):
    """Classifier-free guidance. A number in its place is the scale at all noise levels."""

    scale: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Guidance scale w of ``D = D_c + w (D_c − D_u)``, where D_c and D_u are the denoisers with and
    without the caption. 0 is no guidance. The ``guidance_scale`` of diffusers is w + 1."""

    experts: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Expert of the ensemble → its own w; ``scale`` for all others."""

    interval: list[float] | None = Field(None, min_length=2, max_length=2)
    """Noise levels ``[σ_lo, σ_hi]`` between which there is guidance; elsewhere w is 0, at half the
    cost (arXiv:2404.07724). By default there is guidance at all noise levels."""

    @model_validator(mode="after")
    def interval_is_not_empty(self) -> Self:
        if self.interval and not 0 <= self.interval[0] < self.interval[1]:
            low, high = self.interval
            raise ValueError(
                f"guidance between σ = {low} and {high} is nowhere; write `interval: [σ_lo, σ_hi]` "
                "with 0 <= σ_lo < σ_hi"
            )
        return self

    @property
    def is_used(self) -> bool:
        """Whether any expert is guided."""
        return bool(self.scale or any(self.experts.values()))

    def settings(self, only: Collection[str] | None = None) -> Any:
        """As :meth:`Strict.settings`; a plain number if guidance has the same scale everywhere."""
        return super().settings(only) if self.experts or self.interval else self.scale


def _as_mapping(given: Any) -> Any:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    return {"scale": given} if is_number else given


class Churn(Strict):
    """Fresh noise during sampling, which corrects errors of earlier steps (EDM, algorithm 2).

    Only ``euler`` and ``heun`` take it, since it makes the history of other solvers useless.
    """

    amount: float = Field(gt=0, allow_inf_nan=False)
    """S_churn, spread over all steps; EDM uses up to 80."""

    sigma_min: float = Field(0.05, ge=0)
    """S_tmin: no noise is added below this noise level."""

    sigma_max: float = Field(50.0, gt=0)
    """S_tmax: no noise is added above this noise level."""

    scale: float = Field(1.003, gt=0, allow_inf_nan=False)
    """S_noise: factor on the standard deviation of the added noise."""

    @model_validator(mode="after")
    def range_is_not_empty(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"churn between σ = {self.sigma_min} and {self.sigma_max} is nowhere; write "
                "`sigma_min` below `sigma_max`"
            )
        return self


class Sampling(Strict):
    """Settings for sampling from a stage.

    They are the defaults of the trained ensemble. ``ediffi sample --set``, the column ``sampling``
    of the registered model and ``TextToImage.sample(sampling=…)`` change them for one call.
    """

    steps: int = Field(25, ge=1)
    """Sampling steps."""

    solver: str = Field("deis3", json_schema_extra={"enum": list(SOLVER_NAMES)})
    """Solver of the sampling ODE. ``deis3`` is the paper's."""

    guidance: Annotated[
        Guidance, BeforeValidator(_as_mapping, json_schema_input_type=float | Guidance)
    ] = Guidance()
    """Classifier-free guidance: a number, which is its scale w, or ``{scale, experts, interval}``
    to change it with the noise level."""

    threshold: Annotated[Literal["none", "static", "dynamic"], LATER] = "none"
    """What keeps guided pictures in range. ``static``: clip pixels to [-1, 1]. ``dynamic``: clip at
    a percentile of each picture's own pixels and scale back (Imagen, arXiv:2205.11487)."""

    percentile: Annotated[float, Field(gt=0, le=1), LATER] = 0.995
    """Share of the pixels that ``threshold: dynamic`` leaves unclipped."""

    sigma_min: Annotated[float, Field(gt=0), LATER] = 0.002
    """Last noise level before 0."""

    sigma_max: Annotated[float, Field(gt=0, allow_inf_nan=False), LATER] = 80.0
    """First noise level."""

    rho: Annotated[float, Field(ge=1, le=100), LATER] = 7.0
    """Exponent of EDM's noise levels (arXiv:2206.00364, equation 5): the higher, the more steps at
    low noise."""

    churn: Annotated[Churn | None, LATER] = None
    """Fresh noise during sampling, for ``euler`` and ``heun``; none by default."""

    history: Annotated[Literal["keep", "drop"], LATER] = "keep"
    """Whether a multistep solver keeps its history where another expert takes over."""

    tile: Annotated[int | None, Field(ge=4), LATER] = None
    """Super-resolution: side in pixels of the tiles to sample in, which bounds memory. By default
    the whole picture is sampled at once."""

    overlap: Annotated[int, Field(ge=0), LATER] = 32
    """Margin in pixels on each side of a tile that is computed and discarded."""

    precision: Annotated[Literal["float32", "bfloat16", "float16"], LATER] = "float32"
    """Type in which the networks compute. ``float16`` is for GPUs."""

    ema_length: Annotated[float | None, Field(gt=0, lt=0.288), LATER] = None
    """Length of the weights' average as EDM2's σ_rel (arXiv:2312.02696): its width as a share of
    the training. It is made from the snapshots of ``training.snapshot_images``, which every expert
    of the stage must have. By default the weights are those of ``ema_halflife_images``."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.solver not in SOLVER_NAMES:
            raise ValueError(
                f"solver {self.solver!r} is unknown; there are {', '.join(SOLVER_NAMES)}"
            )
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"`sigma_min` is {self.sigma_min}, and must be below `sigma_max`, {self.sigma_max}"
            )
        if self.churn and self.solver not in SINGLE_STEP:
            raise ValueError(
                f"solver {self.solver} takes no churn; write `solver: {SINGLE_STEP[-1]}`, or leave "
                "`churn` out"
            )
        if self.tile is not None and 2 * self.overlap >= self.tile:
            raise ValueError(
                f"an overlap of {self.overlap} on both sides leaves nothing of a tile of "
                f"{self.tile}; write a smaller `overlap` or a larger `tile`"
            )
        return self

    @property
    def network_calls(self) -> int:
        """Evaluations of the network for one picture; a guided one counts as two."""
        sigmas = self._sigmas()
        levels = sigmas + sigmas[1:] if self.solver == "heun" else sigmas
        low, high = self.guidance.interval or (0.0, math.inf)
        is_guided = self.guidance.is_used
        return len(levels) + sum(is_guided and low <= sigma < high for sigma in levels)

    def _sigmas(self) -> list[float]:
        """EDM's noise levels without the final 0; see :func:`ediffi_core.noise.edm_grid`."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        last = max(self.steps - 1, 1)
        return [(high + i / last * (low - high)) ** self.rho for i in range(self.steps)]

    def ineffective(
        self, *, resolution: int, experts: Collection[str]
    ) -> Iterator[tuple[str, str]]:
        """Settings that are changed from their defaults and have no effect here.

        Args:
            resolution: side of the stage's pictures.
            experts: names of the stage's ensemble.

        Yields:
            The dotted name of the setting, and why it has no effect.
        """
        defaults = type(self)()
        guidance = self.guidance
        if self.percentile != defaults.percentile and self.threshold != "dynamic":
            yield "percentile", "without `threshold: dynamic`"
        if self.history == "drop" and self.solver not in MULTISTEP:
            yield "history", f"with solver {self.solver}, which keeps none"
        elif self.history == "drop" and len(experts) < 2:
            yield "history", "with one expert"
        if guidance.interval and not guidance.is_used:
            yield "guidance.interval", "without guidance; set `guidance.scale`"
        if self.tile is not None and self.tile >= resolution:
            yield "tile", f"on pictures of {resolution} pixels"
        if self.overlap != defaults.overlap and self.tile is None:
            yield "overlap", "without `tile`"
        if guidance.interval and not (
            guidance.interval[0] < self.sigma_max and guidance.interval[1] > self.sigma_min
        ):
            yield "guidance.interval", "outside the noise levels that are sampled"
        if self.churn and not (
            self.churn.sigma_min < self.sigma_max and self.churn.sigma_max > self.sigma_min
        ):
            yield "churn", "outside the noise levels that are sampled"

    def warn_ineffective(self, stage: str, *, resolution: int, experts: Collection[str]) -> None:
        """Warn of each setting of a stage that has no effect, with a :class:`SamplingWarning`."""
        for name, why in self.ineffective(resolution=resolution, experts=experts):
            message = f"{stage}: `{name}` has no effect {why}"
            warnings.warn(message, SamplingWarning, stacklevel=3)


def with_changes(stages: Mapping[str, Sampling], changes: Mapping[str, Any]) -> dict[str, Sampling]:
    """Change the settings of a cascade for one call.

    Args:
        stages: stage → its settings, the base first.
        changes: dotted name of a setting → value. A name may begin with that of a stage, such as
            ``sr256.steps``; without one it means the base stage.

    Raises:
        ValueError: A name is unknown or a value invalid.
    """
    edited: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        stage, path = _split(key, stages)
        settings = edited.setdefault(stage, _plain(stages[stage]))
        if path == "guidance":
            value = _as_mapping(value)
        _set(settings, path.split("."), value)
    found = dict(stages)
    for name, settings in edited.items():
        try:
            found[name] = Sampling.from_settings(settings)
        except ValidationError as error:
            raise ValueError(_one_line(error, name, stages)) from None
    return found


def warn_not_run(changes: Iterable[str], stages: Collection[str], run: Collection[str]) -> None:
    """Warn of each change of a stage that is not run, with a :class:`SamplingWarning`.

    Args:
        changes: dotted names, as of :func:`with_changes`.
        stages: of the cascade, as ``run``: those that are run.
    """
    for key in changes:
        stage, _ = _split(key, stages)
        if stage not in run:
            message = f"`{key}` has no effect: stage {stage} is not run"
            warnings.warn(message, SamplingWarning, stacklevel=3)


def _split(key: str, stages: Iterable[str]) -> tuple[str, str]:
    """Stage and setting that a dotted name means."""
    names = list(stages)
    first, dot, rest = key.partition(".")
    return (first, rest) if dot and first in names else (names[0], key)


def _plain(sampling: Sampling) -> dict[str, Any]:
    """Settings as new mappings; guidance is one, too."""
    found = copy.deepcopy(sampling.settings())
    return {**found, "guidance": _as_mapping(found["guidance"])}


def _set(into: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value in nested mappings. A mapping changes the keys that it has, and no others."""
    for part in path[:-1]:
        if not isinstance(into.get(part), dict):
            into[part] = {}
        into = into[part]
    last, before = path[-1], into.get(path[-1])
    is_merged = isinstance(value, dict) and isinstance(before, dict)
    into[last] = {**before, **value} if is_merged else value  # type: ignore[dict-item]


def _one_line(error: ValidationError, stage: str, stages: Mapping[str, Sampling]) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = list(Sampling.model_fields)
        return (
            f"there is no sampling setting `{name}`{did_you_mean(name, known)} (the settings are "
            f"{', '.join(known)}; the stages {', '.join(stages)})"
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message if stage == next(iter(stages)) else f"stage {stage}: {message}"
    if first["type"] == "model_type":
        part = Guidance if name == "guidance" else Churn
        number = "a number, or " if part is Guidance else ""
        message = f"Write {number}a mapping of {', '.join(part.model_fields)}"
    where = f"`{name}`" if stage == next(iter(stages)) else f"`{stage}.{name}`"
    return f"{where} is {first['input']!r}: {message[0].lower()}{message[1:]}"
