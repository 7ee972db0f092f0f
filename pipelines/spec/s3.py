"""A spec's `s3:`."""

from __future__ import annotations

from typing import Self
from urllib.parse import urlsplit

from pydantic import SecretStr, model_validator

from pipelines.spec.base import Strict


class S3(Strict):
    """How ``s3://`` is reached, for the store and for data.

    What is given here comes before the environment's ``AWS_*`` variables, and what is not given is
    theirs. Better leave credentials to the environment, to a profile or to a role of the machine's.
    A cluster's processes get these settings in Ray's runtime environment, which its administrators
    can read.
    """

    endpoint_url: str | None = None
    """Of a server that is not Amazon's: ``http://minio:9000``."""

    region: str | None = None
    key: SecretStr | None = None
    secret: SecretStr | None = None
    profile: str | None = None
    """A section of ``~/.aws/credentials``, in place of ``key`` and ``secret``."""

    @model_validator(mode="after")
    def sound(self) -> Self:
        if (self.key is None) != (self.secret is None):
            raise ValueError("`key:` and `secret:` go together; give both, or neither")
        if self.key and self.profile:
            raise ValueError("give either `profile:` or `key:` and `secret:`")
        if self.endpoint_url is not None:
            url = urlsplit(self.endpoint_url)
            if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
                raise ValueError("write `endpoint_url:` as http://HOST:PORT or https://HOST:PORT")
        return self

    def variables(self) -> dict[str, str]:
        """As environment variables. With the secrets: to be shown to nobody."""
        found = {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,  # else the environment's would come first
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.key and self.key.get_secret_value(),
            "AWS_SECRET_ACCESS_KEY": self.secret and self.secret.get_secret_value(),
            "AWS_PROFILE": self.profile,
        }
        return {name: value for name, value in found.items() if value}
