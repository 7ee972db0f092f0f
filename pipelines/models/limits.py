"""What one request may ask of a model, of the service or through MLflow, and refusing the rest.

:class:`~pipelines.spec.serving.Limits` has the numbers that an operator sets.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from pydantic_core import from_json

from pipelines.spec.sampling import Sampling
from pipelines.spec.serving import Limits

MOST_VALUES = 20_000
"""Lists, mappings and values of a request: parsed, each takes many times its bytes."""

MOST_LEVELS = 20
"""Levels of lists and mappings in each other; no option needs more than six."""

SAMPLING_CHARS = 10_000
"""Characters of ``sampling`` at most: all settings of a long cascade need fewer."""

EXACT = 2**53
"""Integers beyond this change when they pass through a float."""

OPERATORS = ("ema_length", "tile", "overlap", "precision")
"""Sampling settings that a request may not change: they load other weights, or multiply the time
or memory of a step."""

BLANKS = "\t\n\r"
"""Control characters that a text may have."""


class InvalidField(ValueError):
    """A request has something that it may not have."""

    def __init__(self, message: str, param: str | None = None) -> None:
        """
        Args:
            param: dotted name of the field that is wrong.
        """
        super().__init__(message)
        self.param = param


def parse_json(text: str | bytes, name: str) -> Any:
    """A JSON value, in memory in proportion to its bytes.

    Args:
        name: of the text, for messages.

    Raises:
        InvalidField: It is not JSON, or as of :func:`check_values`.
    """
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    count = data.count(b",") + data.count(b"[") + data.count(b"{")
    if count > MOST_VALUES:
        raise InvalidField(f"{name} has {count:,} values; send {MOST_VALUES:,} at most")
    try:
        found = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidField(f"{name} is not JSON: {error}") from None
    check_values(found)
    return found


def check_values(value: Any, name: str = "") -> None:
    """Refuse values that are many, deeply nested, not finite or exact, or that JSON does not have.

    Args:
        value: NumPy's arrays and numbers may stand for lists and numbers.
        name: dotted name of the value.

    Raises:
        InvalidField: One is refused; ``param`` is its name.
    """
    count, left = 0, [(value, name, 0)]
    while left:
        value, at, level = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise InvalidField(f"`{name}` has too many values; send {MOST_VALUES:,} at most", name)
        if level > MOST_LEVELS:
            raise InvalidField(
                f"`{at[:100]}` is nested in more than {MOST_LEVELS} levels; write it flat", name
            )
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, Mapping | list | tuple):
            parts = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            for key, _ in parts:
                _check_unicode(at or "the request", str(key))
            left += [(v, f"{at}.{str(k)[:100]}".lstrip("."), level + 1) for k, v in parts[::-1]]
        elif isinstance(value, str):
            _check_unicode(at, value)
        elif isinstance(value, Integral):
            if abs(int(value)) > EXACT:
                raise InvalidField(f"`{at}` is beyond 2**53, where numbers are not exact", at)
        elif isinstance(value, Real):
            if not math.isfinite(value):
                raise InvalidField(f"`{at}` is not finite; write a number", at)
        elif value is not None:
            raise InvalidField(f"`{at}` is a {type(value).__name__}; write what JSON has", at)


def _check_unicode(name: str, text: str) -> None:
    """Refuse half of a pair of UTF-16 code units, which no encoder and no answer can take."""
    if not text.isascii():
        for i, character in enumerate(text):
            if unicodedata.category(character) == "Cs":
                raise InvalidField(f"`{name}` is no Unicode text at position {i + 1}", name)


def check_text(name: str, text: str, limits: Limits) -> None:
    """Refuse texts that are too long or have control characters; :class:`InvalidField`."""
    if len(text) > limits.prompt_chars:
        raise InvalidField(
            f"`{name}` has {len(text):,} characters; write {limits.prompt_chars:,} at most", name
        )
    for i, character in enumerate(text):
        if unicodedata.category(character) == "Cc" and character not in BLANKS:
            raise InvalidField(
                f"`{name}` has a control character at position {i + 1}; remove it", name
            )


def check_count(name: str, count: int, most: int) -> None:
    """Refuse too many of something; :class:`InvalidField`."""
    if count > most:
        raise InvalidField(f"`{name}` asks for {count:,}; ask for {most:,} at most", name)


def check_sampling(
    own: Mapping[str, Sampling], changed: Mapping[str, Sampling], limits: Limits
) -> None:
    """Refuse settings beyond the limits, and those that are the operator's.

    What the ensemble has by itself is always taken.

    Args:
        own: stage → the ensemble's own settings.
        changed: the same with the request's changes.

    Raises:
        InvalidField: A setting is refused; the message names it.
    """
    for stage, after in changed.items():
        before = own[stage]
        for name in OPERATORS:
            if getattr(after, name) != getattr(before, name):
                raise InvalidField(
                    f"`{stage}.{name}` may not be changed by a request; use `ediffi sample`",
                    "sampling",
                )
        if after.steps > limits.steps and after.steps != before.steps:
            raise InvalidField(
                f"`{stage}.steps` is {after.steps:,}; write {limits.steps:,} at most", "sampling"
            )
        scales = [after.guidance.scale, *after.guidance.experts.values()]
        if max(scales) > limits.guidance and after.guidance != before.guidance:
            raise InvalidField(
                f"`{stage}.guidance` is {max(scales):g}; write {limits.guidance:g} at most",
                "sampling",
            )
