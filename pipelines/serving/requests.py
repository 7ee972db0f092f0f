"""Bodies of requests, and the orders that they stand for."""

from __future__ import annotations

import re
import reprlib
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from pipelines.models import painting
from pipelines.models.limits import EXACT, InvalidField, check_count
from pipelines.models.rows import parse_row
from pipelines.serving.engine import ModelInfo, Order, Status
from pipelines.serving.errors import NotReady, UnknownModel
from pipelines.serving.http_errors import Invalid
from pipelines.spec.base import Strict, did_you_mean
from pipelines.spec.sampling import Sampling
from pipelines.spec.serving import Serving

SEEDS = 2**32
"""Seeds that are drawn at random lie below this."""

Body = TypeVar("Body", bound=Strict)


class Painting(Strict):
    """A phrase of the prompt, and where it is painted."""

    phrase: str
    where: Any
    """A box ``[left, top, right, bottom]`` in fractions of the sides, or a black-and-white picture
    in base64, white where the phrase is."""

    strength: float = Field(painting.STRENGTH, ge=0)


class StyleReference(Strict):
    """A picture whose style is taken."""

    image: str
    """Base64."""

    weight: float | None = Field(None, gt=0)
    """Relative to the other references; 1 by default."""


class Sample(Strict):
    """Body of ``POST /v1/ediffi/sample``: the options of ``ediffi sample``."""

    prompt: str = ""
    """May be empty beside ``variation``."""

    n: int | None = Field(None, ge=1)
    """Pictures; 1, or as many as ``seeds``, by default. Picture i depends on ``seed`` and i."""

    seed: int | None = Field(None, ge=0, le=EXACT)
    """Drawn at random by default, and told with each picture."""

    seeds: list[int] | None = Field(None, min_length=1)
    """A seed for each picture, instead of ``seed``."""

    negative: str | None = None
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Changes of the sampling settings, as ``--set``: ``{"steps": 20, "sr64.steps": 8}``."""

    stage: str | None = None
    """Last stage to run; all by default."""

    paint: list[Painting] = Field(default_factory=list)
    style: list[StyleReference] = Field(default_factory=list)
    image: str | None = None
    """Picture to start from, in base64, as ``mask`` and ``variation``."""

    sigma: float | None = None
    mask: str | None = None
    variation: str | None = None
    then: str | None = None
    switch: float | None = None
    switch_sigma: float | None = None
    model: str | None = None
    """``NAME``, ``NAME@champion`` or ``NAME@candidate``; the served model by default."""

    previews: bool = False
    """Whether the events of a stream show the picture as it forms."""

    attention: bool = False
    """Whether the answer has where the picture attended to each word."""

    stream: bool = False
    """Whether events are sent while the picture is drawn."""

    deadline_s: float | None = Field(None, gt=0)
    """Seconds after which to give up; the service's own limit by default."""


def validated(kind: type[Body], given: Mapping[str, Any]) -> Body:
    """A body; :class:`Invalid` with the name of the first field that is wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        errors = sorted(
            error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden"
        )
    first = errors[0]
    param = ".".join(map(str, first["loc"]))[:200]
    if first["type"] == "extra_forbidden":
        known = list(kind.model_fields) if len(first["loc"]) == 1 else []
        message = f"`{param}` is unknown{did_you_mean(param, known)}"
    elif first["type"] == "missing":
        message = f"`{param}` is missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
        message = f"`{param}` is {reprlib.repr(first['input'])}: {text[:1].lower()}{text[1:]}"
    raise Invalid(message, param)


def find_model(status: Status, name: str | None) -> ModelInfo:
    """The model that a request names; the served one by default.

    Raises:
        UnknownModel: There is no such model.
        NotReady: No model is loaded yet.
    """
    if not status.models:
        raise NotReady("no model is loaded yet")
    alias = role_of(name, status)
    if alias is None:
        return status.models[0]
    for model in status.models:
        if alias == model.name or alias in model.aliases:
            return model
    names = ", ".join(model.name for model in status.models)
    raise UnknownModel(f"there is no model {str(name)[:100]!r}; there are {names}")


def role_of(name: str | None, status: Status) -> str | None:
    """As :attr:`Order.model`: None for the served model, or an alias of the same pipeline."""
    served = status.models[0]
    if name in (None, served.name, served.id.name):
        return None
    return str(name).removeprefix(f"{served.id.name}@")


def to_order(asked: Sample, status: Status, serving: Serving, request_id: str) -> Order:
    """The order of a body. It decodes pictures, so it takes time.

    Raises:
        Refused: The body is malformed, or beyond the limits.
    """
    limits, model = serving.limits, find_model(status, asked.model)
    stages = [stage.name for stage in model.stages]
    if asked.stage is not None and asked.stage not in stages:
        raise Invalid(f"`stage` is {asked.stage[:100]!r}; there are {', '.join(stages)}", "stage")
    most_s = serving.queue.deadline_s
    if asked.deadline_s is not None and asked.deadline_s > most_s:
        raise Invalid(f"`deadline_s` is {asked.deadline_s:g}; write up to {most_s:g}", "deadline_s")
    if not asked.prompt.strip() and asked.variation is None:
        raise Invalid("`prompt` is empty; write what to draw", "prompt")
    own = {stage.name: Sampling.from_settings(stage.sampling) for stage in model.stages}
    try:
        noise = _noise(asked, limits.pictures)
        row = parse_row(_columns(asked), own, limits)
        for phrase in row.paint:
            painting.holders(phrase.text, [asked.prompt], asked.then)
    except InvalidField as error:
        raise Invalid(str(error)[:500], error.param) from None
    except ValueError as error:
        raise Invalid(str(error)[:500], _field_in(str(error))) from None
    return Order(
        rows=[replace(row, seed=seed, number=number) for seed, number in noise],
        model=role_of(asked.model, status),
        stage=asked.stage,
        previews=asked.previews,
        attention=asked.attention,
        deadline_s=asked.deadline_s or most_s,
        tags={"request": request_id},
    )


def _noise(asked: Sample, most: int) -> list[tuple[int, int]]:
    """Seed and number of each picture; as ``ediffi sample`` with ``-n`` and ``--seeds``."""
    count = asked.n or len(asked.seeds or [0])
    check_count("n", count, most)
    if asked.seeds is None:
        seed = secrets.randbelow(SEEDS) if asked.seed is None else asked.seed
        return [(seed, number) for number in range(count)]
    if asked.seed is not None:
        raise Invalid("`seed` and `seeds` are both given; keep one", "seeds")
    if len(asked.seeds) != count:
        raise Invalid(f"`seeds` has {len(asked.seeds)} seeds for `n` = {count}", "seeds")
    if min(asked.seeds) < 0:
        raise Invalid(f"`seeds` has {min(asked.seeds)}; write whole numbers from 0 on", "seeds")
    return [(seed, 0) for seed in asked.seeds]


def _columns(asked: Sample) -> dict[str, Any]:
    """The columns of :func:`~pipelines.models.rows.parse_row`; those without a value left out."""
    same = asked.model_dump(
        include={"prompt", "negative", "sampling", "image", "sigma", "mask", "variation"}
        | {"then", "switch", "switch_sigma", "paint"},
        exclude_none=True,
    )
    if asked.style:
        same["style"] = [style.image for style in asked.style]
    if any(style.weight is not None for style in asked.style):
        same["style_weights"] = [style.weight or 1.0 for style in asked.style]
    return same


def _field_in(message: str) -> str | None:
    """The field that an error message names in backticks."""
    named = re.findall(r"`(\w+)`", message)
    return next((name for name in named if name in Sample.model_fields), None)
