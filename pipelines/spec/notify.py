"""The spec's ``notify:``: who is told how a run ended."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from pipelines.spec.base import Strict


class Notify(Strict):
    """Who is told how a run ends, besides whoever reads what it prints."""

    webhook: SecretStr | None = None
    """Gets one POST of JSON: pipeline, run, state, seconds, and the failed nodes with reasons."""

    on: list[Literal["done", "failed", "cancelled", "interrupted"]] = Field(
        ["done", "failed", "cancelled", "interrupted"], min_length=1
    )
    """Which ends it is told of."""

    @field_validator("webhook")
    @classmethod
    def address(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None:
            url = urlsplit(given.get_secret_value())
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError("write `webhook:` as https://HOST/PATH")
        return given
