"""The spec's ``notify:``: a webhook for the end of a run."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from pipelines.spec.base import Strict


class Notify(Strict):
    """Notification when a run ends."""

    webhook: SecretStr | None = None
    """URL that receives one POST of JSON: pipeline, run, state, seconds, and the failed nodes with
    their errors. It may hold a token, so it is never printed."""

    on: list[Literal["done", "failed", "cancelled", "interrupted"]] = Field(
        ["done", "failed", "cancelled", "interrupted"], min_length=1
    )
    """Final states of a run that send a notification."""

    @field_validator("webhook")
    @classmethod
    def address(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None:
            url = urlsplit(given.get_secret_value())
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError("write `webhook:` as https://HOST/PATH")
        return given
