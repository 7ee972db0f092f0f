"""Validated rows of prompts and options, of MLflow's model and of the service, and drawing them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from ediffi_core.control import Phrase
from pipelines.models import painting
from pipelines.models.controls import check_options
from pipelines.models.limits import (
    EXACT,
    SAMPLING_CHARS,
    InvalidField,
    check_count,
    check_sampling,
    check_text,
    check_values,
    parse_json,
)
from pipelines.spec.sampling import Sampling, with_changes
from pipelines.spec.serving import Limits

if TYPE_CHECKING:
    from pipelines.models.attention import WordAttention
    from pipelines.models.text_to_image import TextToImage
    from pipelines.models.watch import Pictures, Watch

SHORTHANDS = ("guidance", "steps", "solver")
"""Columns for the same settings of the base stage, without `sampling`."""

OPTIONS = (
    "seed",
    "sampling",
    *SHORTHANDS,
    "paint",
    "style",
    "style_weights",
    "variation",
    "negative",
    "then",
    "switch",
    "switch_sigma",
    "image",
    "sigma",
    "mask",
)
"""Columns besides ``prompt``.

The MLflow signature leaves their types open, and this module checks them: MLflow would refuse
missing numbers, integers in a float column, and lists written as JSON. In return, its server cannot
parse CSV input."""

PICTURES = ("image", "mask", "variation")
"""Columns of one picture each, in base64."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sampling options; None for the ensemble's own. Rows with equal options share a batch."""

    sampling: str = "{}"
    """Changes of the sampling settings, as JSON with sorted keys."""

    style: tuple[str, ...] = ()
    """Pictures as base64, as in ``variation``, ``image`` and ``mask``."""

    style_weights: tuple[float, ...] | None = None
    variation: str | None = None
    image: str | None = None
    sigma: float | None = None
    mask: str | None = None
    switch: float | None = None
    switch_sigma: float | None = None
    is_painted: bool = False
    has_second_prompt: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One validated row."""

    prompt: str
    seed: int
    paint: Sequence[Phrase]
    options: Options
    negative: str = ""
    then: str = ""
    number: int = 0
    """Tells apart the pictures of one seed."""


def draw(
    model: TextToImage,
    requests: Sequence[Row],
    stage: str | None = None,
    *,
    watch: Watch | None = None,
    attention: WordAttention | None = None,
) -> list[Pictures]:
    """Generate one image per request, in order; requests with equal options share a batch.

    Args:
        stage: last stage to run; all by default.
        watch, attention: as of ``TextToImage.sample``; all requests must have equal options.

    Raises:
        ValueError: The requests do not fit the model or, with these, each other.
        Abandoned: The watch wants none of the images any more.
    """
    groups: dict[Options, list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(request.options, []).append(row)
    if (watch or attention) and len(groups) > 1:
        raise ValueError(
            "`watch` and `attention` follow requests that are drawn at once, but these have "
            f"{len(groups)} different options; draw those of equal options in a call each"
        )
    found: dict[int, Pictures] = {}
    for options, rows in groups.items():
        mine = [requests[row] for row in rows]
        pictures = model.sample(
            [r.prompt for r in mine],
            seed=[r.seed for r in mine],
            first=[r.number for r in mine],
            sampling=json.loads(options.sampling),
            negative=[r.negative for r in mine],
            **{name: _picture(name, getattr(options, name)) for name in PICTURES},
            sigma=options.sigma,
            style=[painting.decode_image(picture) for picture in options.style],
            style_weights=options.style_weights,
            then=[r.then for r in mine] if options.has_second_prompt else None,
            switch=options.switch,
            switch_sigma=options.switch_sigma,
            paint=[r.paint for r in mine] if options.is_painted else None,
            up_to=stage,
            batch=len(mine) if watch or attention else 64,
            watch=watch,
            attention=attention,
        )
        found |= dict(zip(rows, pictures, strict=True))
    return [found[row] for row in range(len(requests))]


def parse_row(given: dict[str, Any], own: Mapping[str, Sampling], limits: Limits) -> Row:
    """Validate one row.

    Args:
        given: ``prompt`` and some of :data:`OPTIONS`; missing values left out.
        own: stage → the ensemble's own settings.

    Raises:
        ValueError: It is invalid or beyond the limits; the message names the column or setting.
    """
    for name, value in given.items():
        check_values(value, name)
    prompt, then = _text(given, "prompt", limits), _text(given, "then", limits)
    if prompt is None:
        raise ValueError("`prompt` is None; write a text")
    paint, pixels = _phrases(given, limits), limits.upload_pixels
    sampling = _mapping(given, "sampling")
    if len(str(sampling)) > SAMPLING_CHARS:
        raise InvalidField(f"`sampling` is longer than {SAMPLING_CHARS:,} characters", "sampling")
    shorthands = {
        "guidance": _number(given, "guidance"),
        "steps": _whole(given, "steps"),
        "solver": given.get("solver"),
    }
    sampling |= {name: value for name, value in shorthands.items() if value is not None}
    changed = with_changes(own, sampling)
    check_sampling(own, changed, limits)
    base = next(iter(changed.values()))
    pictures = {name: _picture(name, given.get(name), pixels) for name in PICTURES}
    styles = [given["style"]] if _is_base64(given.get("style")) else _list(given, "style")
    check_count("style", len(styles or ()), limits.styles)
    for text in styles or ():
        if _picture("style", text, pixels) is None:
            raise ValueError("`style` has a missing picture; give PNG, JPEG or WebP as base64")
    options = Options(
        sampling=json.dumps(sampling, sort_keys=True, default=methodcaller("tolist")),  # of NumPy
        style=tuple(styles or ()),
        style_weights=_weights(given),
        sigma=_number(given, "sigma"),
        switch=_number(given, "switch"),
        switch_sigma=_number(given, "switch_sigma"),
        is_painted=bool(paint),
        has_second_prompt=then is not None,
        **{name: given.get(name) for name in PICTURES},
    )
    check_options(
        **pictures,
        sigma=options.sigma,
        styles=len(options.style),
        style_weights=options.style_weights,
        then=then,
        switch=options.switch,
        switch_sigma=options.switch_sigma,
        sigma_min=base.sigma_min,
        sigma_max=base.sigma_max,
    )
    return Row(
        prompt=prompt,
        seed=_seed(given),
        paint=paint,
        options=options,
        negative=_text(given, "negative", limits) or "",
        then=then or "",
    )


def _text(given: dict[str, Any], name: str, limits: Limits) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"`{name}` is {value!r}; write a text")
    check_text(name, value, limits)
    return value


def _is_base64(value: Any) -> bool:
    return isinstance(value, str) and not value.lstrip().startswith("[")


def _picture(name: str, value: Any, pixels: int | None = None) -> Any:
    """A PIL image from base64; None for none.

    Args:
        pixels: at most; no limit by default, for a picture that has passed.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"`{name}` is {str(value)[:40]!r}; give a PNG, JPEG or WebP as base64")
    try:
        return painting.decode_image(value, "black" if name == "mask" else "white", pixels)
    except ValueError as error:
        raise ValueError(f"`{name}` {error}") from error


def _list(given: dict[str, Any], name: str) -> list[Any] | None:
    """A list, or the same as JSON."""
    value = given.get(name)
    if value is None:
        return None
    try:
        raw = parse_json(value, f"`{name}`") if isinstance(value, str) else list(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` {str(value)[:80]!r} is not a JSON list ({error})") from error
    if not isinstance(raw, list):
        raise ValueError(f"`{name}` {str(value)[:80]!r} is not a list; write […]")
    return raw


def _weights(given: dict[str, Any]) -> tuple[float, ...] | None:
    raw = _list(given, "style_weights")
    if raw is None:
        return None
    return tuple(_number({"style_weights": w}, "style_weights") or 0.0 for w in raw)


def _number(given: dict[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}; write a number")
    return float(value)


def _whole(given: dict[str, Any], name: str) -> int | None:
    """An integer, or a float without fraction: a column with a missing value holds floats."""
    value = given.get(name)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    number = _number(given, name)
    if number is None:
        return None
    if number != int(number) or abs(number) > EXACT:
        raise ValueError(f"`{name}` is {value!r}; write a whole number, exact up to {EXACT}")
    return int(number)


def _seed(given: dict[str, Any]) -> int:
    seed = _whole(given, "seed") or 0
    if seed < 0:
        raise InvalidField(f"`seed` is {seed}; write a whole number from 0 on", "seed")
    return seed


def _mapping(given: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping, or the same as JSON."""
    value = given.get(name, {})
    try:
        raw = parse_json(value, f"`{name}`") if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"`{name}` {value[:80]!r} is not a JSON object ({error})") from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ValueError(f"`{name}` {str(value)[:80]!r} is not a mapping; write {{setting: value}}")
    return dict(raw)


def _phrases(given: dict[str, Any], limits: Limits) -> list[Phrase]:
    """Phrases from a list of ``{phrase, where, strength}``, or from the same as JSON."""
    painted = _list(given, "paint") or []
    check_count("paint", len(painted), limits.phrases)
    phrases = painting.phrases_from_json(painted, limits.upload_pixels)
    for i, phrase in enumerate(phrases):
        check_text(f"paint.{i}.phrase", phrase.text, limits)
    return phrases
