"""The spec's ``notify:``: who is told of the end of a run, and how."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipelines.spec.base import Strict
from pipelines.spec.renamed import Renamed

SMTP_PASSWORD = "EDIFFI_SMTP_PASSWORD"
"""Environment variable with the password of ``notify.email.user``."""

ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
"""An e-mail address without a name, as HTML's standard defines it."""


def _address(given: str) -> str:
    if not ADDRESS.fullmatch(given):
        raise ValueError("write an e-mail address as NAME@HOST, without a person's name")
    return given


Address = Annotated[str, AfterValidator(_address)]


class Email(Strict):
    """An e-mail when a run ends, sent by SMTP."""

    to: Annotated[list[Address], Field(min_length=1)]
    """Addresses of the receivers."""

    sender: Address
    """Address in the field From."""

    server: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]+$")]
    """Host of the SMTP server."""

    port: Annotated[int, Field(ge=1, le=65535)] = 587
    """Port of the SMTP server: 587 for `starttls`, 465 for `tls`, often 25 for `none`."""

    encryption: Literal["starttls", "tls", "none"] = "starttls"
    """`none` is for a server that takes mail without a password, such as one on this machine."""

    user: Annotated[str, Field(pattern=r"^[ -~]+$")] | None = None
    """User at the server; the password is read from the environment variable
    `EDIFFI_SMTP_PASSWORD`."""

    @model_validator(mode="after")
    def no_password_in_clear(self) -> Email:
        if self.user and self.encryption == "none":
            raise ValueError(
                "`user:` with `encryption: none` would send the password unencrypted; write "
                "`encryption: starttls` or `tls`, or leave `user:` out"
            )
        return self


class Notify(Strict):
    """Notification when a run ends. Each names the MLflow page of the run."""

    webhook: SecretStr | None = None
    """URL that receives one POST of JSON: pipeline, run, state, seconds, the failed nodes with
    their errors, and the address of the record. It may hold a token, so it is never printed."""

    slack: SecretStr | None = None
    """URL of an incoming webhook of Slack, or of a chat that takes the same, as Mattermost does. It
    holds a token, so it is never printed."""

    email: Email | None = None
    """An e-mail, sent by SMTP."""

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

    @field_validator("webhook", "slack")
    @classmethod
    def address(cls, given: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if given is None:
            return given
        key = f"`{info.field_name}:`"
        text = given.get_secret_value()
        if not (text.isascii() and text.isprintable()) or set(text) & set(" \\"):
            raise ValueError(
                f"{key} has a space, a backslash, a control character or a letter beyond "
                "ASCII; write these as %20, %5C, …"
            )
        try:
            url = urlsplit(text)
            host = url.hostname
            _ = url.port  # raises ValueError if it is invalid
        except ValueError:
            host = None
        if not host or url.scheme not in ("http", "https"):
            raise ValueError(f"write {key} as https://HOST/PATH")
        if "@" in url.netloc:
            raise ValueError(
                f"{key} holds a user or password before its host, which are not sent; write a "
                "token in its path or query, as your chat's server gives it"
            )
        return given
