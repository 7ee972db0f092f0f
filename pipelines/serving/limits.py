"""What a request may ask for; :class:`~pipelines.spec.serving.Limits` has the numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from pipelines.models.rows import EXACT
from pipelines.serving.http_errors import Invalid
from pipelines.spec.sampling import Sampling
from pipelines.spec.serving import Limits

MOST_VALUES = 20_000
"""Lists, mappings and values of a request: parsed, each takes many times its bytes."""

OPERATORS = ("ema_length", "tile", "overlap", "precision")
"""Sampling settings that a request may not change: they load other weights, or multiply the time
or memory of a step."""

BLANKS = "\t\n\r"
"""Control characters that a text may have."""


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object, in memory in proportion to its bytes.

    Raises:
        Invalid: It is no such object, is nested deeply, or has numbers that are not finite or not
            exact.
    """
    count = body.count(b",") + body.count(b"[") + body.count(b"{")
    if count > MOST_VALUES:
        raise Invalid(f"the body has {count:,} values; send {MOST_VALUES:,} at most")
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Invalid(f"the body is a JSON {type(found).__name__}; send an object, {{…}}")
    _check_numbers(found, ())
    return found


def _check_numbers(value: Any, at: tuple[str, ...]) -> None:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            _check_numbers(part, (*at, str(key)[:100]))
    elif isinstance(value, float) and not math.isfinite(value):
        raise Invalid(f"`{'.'.join(at)}` is not finite; write a number", ".".join(at))
    elif isinstance(value, int) and abs(value) > EXACT:
        name = ".".join(at)
        raise Invalid(f"`{name}` is beyond 2**53, where JSON's numbers are not exact", name)


def check_text(name: str, text: str, limits: Limits) -> None:
    """Refuse texts that are too long or have control characters; :class:`Invalid`."""
    if len(text) > limits.prompt_chars:
        raise Invalid(
            f"`{name}` has {len(text):,} characters; write {limits.prompt_chars:,} at most", name
        )
    for i, character in enumerate(text):
        if unicodedata.category(character) == "Cc" and character not in BLANKS:
            raise Invalid(f"`{name}` has a control character at position {i + 1}; remove it", name)


def check_count(name: str, count: int, most: int) -> None:
    """Refuse too many of something; :class:`Invalid`."""
    if count > most:
        raise Invalid(f"`{name}` asks for {count:,}; the service takes {most:,} at most", name)


def check_sampling(
    own: Mapping[str, Sampling], changed: Mapping[str, Sampling], limits: Limits
) -> None:
    """Refuse settings beyond the limits, and those that are the operator's.

    What the ensemble has by itself is always taken.

    Args:
        own: stage → the ensemble's own settings.
        changed: the same with the request's changes.

    Raises:
        Invalid: A setting is refused; the message names it.
    """
    for stage, after in changed.items():
        before = own[stage]
        for name in OPERATORS:
            if getattr(after, name) != getattr(before, name):
                raise Invalid(
                    f"`{stage}.{name}` may not be changed by a request; use `ediffi sample`",
                    "sampling",
                )
        if after.steps > limits.steps and after.steps != before.steps:
            raise Invalid(
                f"`{stage}.steps` is {after.steps:,}; write {limits.steps:,} at most", "sampling"
            )
        scales = [after.guidance.scale, *after.guidance.experts.values()]
        if max(scales) > limits.guidance and after.guidance != before.guidance:
            raise Invalid(
                f"`{stage}.guidance` is {max(scales):g}; write {limits.guidance:g} at most",
                "sampling",
            )
