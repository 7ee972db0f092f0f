"""The spec's ``notify:``: a webhook for the end of a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from pipelines.spec.base import Strict
from pipelines.spec.renamed import Renamed


class Notify(Strict):
    """Notification when a run ends."""

    webhook: SecretStr | None = None
    """URL that receives one POST of JSON: pipeline, run, state, seconds, and the failed nodes with
    their errors. It may hold a token, so it is never printed."""

    events: Annotated[
        list[Literal["done", "failed", "cancelled", "interrupted"]],
        Field(min_length=1),
        Renamed("on"),
    ] = ["done", "failed", "cancelled", "interrupted"]  # noqa: RUF012, pydantic copies it
    """Final states of a run that send a notification."""

    @model_validator(mode="before")
    @classmethod
    def bare_on(cls, given: Any) -> Any:
        """YAML 1.1 reads a key ``on`` without quotes as true."""
        if isinstance(given, dict) and True in given:
            return {"on" if key is True else key: value for key, value in given.items()}
        return given

    @field_validator("webhook")
    @classmethod
    def address(cls, given: SecretStr | None) -> SecretStr | None:
        if given is None:
            return given
        text = given.get_secret_value()
        if not (text.isascii() and text.isprintable()) or set(text) & set(" \\"):
            raise ValueError(
                "`webhook:` has a space, a backslash, a control character or a letter beyond "
                "ASCII; write these as %20, %5C, …"
            )
        try:
            url = urlsplit(text)
            host = url.hostname
            _ = url.port  # raises ValueError if it is invalid
        except ValueError:
            host = None
        if not host or url.scheme not in ("http", "https"):
            raise ValueError("write `webhook:` as https://HOST/PATH")
        if "@" in url.netloc:
            raise ValueError(
                "`webhook:` holds a user or password before its host, which are not sent; write a "
                "token in its path or query, as your chat's server gives it"
            )
        return given
