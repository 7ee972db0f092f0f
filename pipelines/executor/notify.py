"""Notify a webhook of how a run ended: one POST of JSON. A failure does not affect the run."""

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
RETRIED_STATUSES = {408, 425, 429}


def message(execution: Execution, failed: Mapping[str, str]) -> dict[str, Any]:
    """Body of the POST; ``failed`` maps node ids to errors."""
    return {
        "pipeline": execution.pipeline,
        "run": execution.id,
        "attempt": execution.attempt,
        "state": execution.state,
        "seconds": execution.seconds,
        "failed": dict(failed),
    }


def send(
    notify: Notify,
    execution: Execution,
    failed: Mapping[str, str],
    log: Callable[[str], None],
    *,
    tries: int = TRIES,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Post to the spec's webhook, if it wants to be notified of this state.

    Args:
        notify: the spec's ``notify:``.
        execution: the run that ended.
        failed: node id → error.
        log: receives a line if the webhook cannot be notified.
        tries: how often to try.
        timeout_s: of each try, in seconds.
    """
    if notify.webhook is None or execution.state not in notify.events:
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
            if error.code < 500 and error.code not in RETRIED_STATUSES:
                break
        except (OSError, HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
    # The path and query may hold a secret token.
    log(f"could not notify the webhook at {urlsplit(url).hostname} ({why})")


def post(url: str, body: bytes, timeout_s: float) -> None:
    """POST a JSON body; urllib's errors if it fails."""
    headers = {"Content-Type": "application/json", "User-Agent": "ediffi"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        answer.read()
