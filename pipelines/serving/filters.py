"""The operator's own judges of prompts and pictures; see serving.md for how to write them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.models.watch import Pictures
from pipelines.serving.errors import Unwanted
from pipelines.serving.http_errors import FilterFailed
from pipelines.serving.logs import log_error
from pipelines.spec.serving import Filters

Filter = Callable[[Any], str | None]
"""A judge: ``None`` to let pass, or the reason of a refusal, which the caller is told."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The filters of a service, loaded. They are called in threads, several at once."""

    prompt: Sequence[tuple[str, Filter]] = ()
    """Name and function of each; so in ``picture``."""

    picture: Sequence[tuple[str, Filter]] = ()
    log_messages: bool = False
    """Whether the log has the messages of errors, which may quote a prompt."""

    @classmethod
    def load(cls, filters: Filters, *, log_messages: bool = False) -> Judges:
        """Import what the settings name.

        Raises:
            ValueError: There is no such function; the message names the entry point.
        """
        return cls(
            prompt=[(name, _function(name)) for name in filters.prompt],
            picture=[(name, _function(name)) for name in filters.picture],
            log_messages=log_messages,
        )

    def judge_prompt(self, prompt: str) -> None:
        """Ask every filter of prompts.

        Raises:
            Unwanted: One refuses it.
            FilterFailed: One raises an error, or returns what is no reason.
        """
        for name, function in self.prompt:
            self._ask(name, function, prompt)

    def judge_picture(self, pixels: Pictures) -> None:
        """Ask every filter of pictures; errors as of :meth:`judge_prompt`.

        Args:
            pixels: uint8 [H, W, 3]; each filter gets a copy.
        """
        for name, function in self.picture:
            self._ask(name, function, pixels.copy())

    def _ask(self, name: str, function: Filter, what: Any) -> None:
        try:
            reason = function(what)
            if not (reason is None or isinstance(reason, str)):
                raise TypeError(f"a filter returns None or a text, not {type(reason).__name__}")
        except Exception as error:  # whatever it is, nothing may pass unjudged
            log_error(f"filter {name} failed", error, with_message=self.log_messages)
            raise FilterFailed("a filter of the service failed, so nothing is shown") from None
        if reason is not None:
            raise Unwanted(reason or "the service does not show this")


def _function(name: str) -> Filter:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"filter {name!r} is no entry point; write `module:function`")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"filter {name!r} cannot be loaded ({error}); write `module:function` of a module that "
            "Python finds"
        ) from error
    if not callable(found):
        raise ValueError(f"filter {name!r} is a {type(found).__name__}; name a function")
    return found
