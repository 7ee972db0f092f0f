"""Tells a webhook how a run ended: one POST of JSON, which never decides how the run ends."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.spec.notify import Notify

if TYPE_CHECKING:
    from pipelines.runs.execution import Execution

TRIES, FIRST_WAIT_S, TIMEOUT_S = 3, 1.0, 10.0
AGAIN = {408, 425, 429}


def message(execution: Execution, failed: Mapping[str, str]) -> dict[str, Any]:
    return {
        "pipeline": execution.pipeline,
        "run": execution.id,
        "attempt": execution.attempt,
        "state": execution.state,
        "seconds": execution.seconds,
        "failed": dict(failed),
    }


def tell(
    notify: Notify,
    execution: Execution,
    failed: Mapping[str, str],
    say: Callable[[str], None],
    *,
    tries: int = TRIES,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Posts it if the spec wants to hear of such an end; says if it could not."""
    if notify.webhook is None or execution.state not in notify.on:
        return
    url = notify.webhook.get_secret_value()
    body = json.dumps(message(execution, failed)).encode()
    why = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            post(url, body, timeout_s)
            return
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code}"
            if error.code < 500 and error.code not in AGAIN:
                break
        except (OSError, HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
    # Its path and query are as good as a password.
    say(f"the webhook at {urlsplit(url).hostname} was not told ({why})")


def post(url: str, body: bytes, timeout_s: float) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "ediffi"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        answer.read()
