"""The spec's ``s3:``: how S3 or a compatible server is reached."""

from __future__ import annotations

from typing import Self
from urllib.parse import urlsplit

from pydantic import SecretStr, model_validator

from pipelines.spec.base import Strict


class S3(Strict):
    """Connection to S3 or a compatible server, for ``s3://`` paths of the store and the data.

    Settings here override the environment's ``AWS_*`` variables. Prefer to keep credentials in the
    environment, in a profile or in the machine's role: on a cluster these settings travel in Ray's
    runtime environment, which its administrators can read.
    """

    endpoint_url: str | None = None
    """URL of a server other than Amazon's, such as ``http://minio:9000``."""

    region: str | None = None
    """AWS region, such as ``eu-central-1``."""

    key: SecretStr | None = None
    """Access key ID. Needs ``secret``."""

    secret: SecretStr | None = None
    """Secret access key. Needs ``key``."""

    profile: str | None = None
    """Profile in ``~/.aws/credentials``, in place of ``key`` and ``secret``."""

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
        """Return the settings as environment variables, secrets included: do not print them."""
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
