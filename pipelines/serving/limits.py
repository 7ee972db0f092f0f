"""Bodies of requests as JSON, within the limits of :mod:`pipelines.models.limits`."""

from __future__ import annotations

from typing import Any

from pipelines.models import limits
from pipelines.models.limits import InvalidField
from pipelines.serving.http_errors import Invalid


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object, in memory in proportion to its bytes.

    Raises:
        Invalid: It is no such object, is nested deeply, or has numbers that are not finite or not
            exact.
    """
    try:
        found = limits.parse_json(body, "the body")
    except InvalidField as error:
        raise Invalid(str(error), error.param) from None
    if not isinstance(found, dict):
        raise Invalid(f"the body is a JSON {type(found).__name__}; send an object, {{…}}")
    return found
