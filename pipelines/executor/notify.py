"""Notify a webhook of how a run ended: one POST of JSON. A failure does not affect the run.

The answer's status alone counts: its body is not read, and redirects are not followed, since a POST
that is redirected becomes a GET without the message, to an address that nobody chose.
"""

from __future__ import annotations

import json
import queue
import threading
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
TOTAL_S = 25.0
"""How long the end of a run waits for the webhook, all tries together."""

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
    total_s: float = TOTAL_S,
) -> None:
    """Post to the spec's webhook, if it wants to be notified of this state.

    Args:
        notify: the spec's ``notify:``.
        execution: the run that ended.
        failed: node id → error.
        log: receives a line if the webhook cannot be notified.
        tries: how often to try.
        timeout_s: how long a try waits for a server that sends nothing, in seconds.
        total_s: how long all tries may take, whatever the server sends, in seconds.
    """
    if notify.webhook is None or execution.state not in notify.events:
        return
    url = notify.webhook.get_secret_value()
    body = json.dumps(message(execution, failed)).encode()
    outcome: queue.SimpleQueue[str] = queue.SimpleQueue()
    # A thread, because no timeout of a socket bounds a name's lookup or a server that sends a byte
    # every few seconds. It ends with the process.
    threading.Thread(
        target=lambda: outcome.put(_try(url, body, tries, timeout_s)), name="notify", daemon=True
    ).start()
    try:
        why = outcome.get(timeout=total_s)
    except queue.Empty:
        why = f"no answer within {total_s:g} s"
    if why:
        # The path and query may hold a secret token.
        log(f"could not notify the webhook at {urlsplit(url).hostname} ({why})")


def _try(url: str, body: bytes, tries: int, timeout_s: float) -> str:
    """Post, again if the server is busy; why it failed, or nothing."""
    why = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            post(url, body, timeout_s)
            return ""
        except urllib.error.HTTPError as error:
            error.close()
            why = f"HTTP {error.code}"
            if 300 <= error.code < 400:
                return f"{why}, a redirect, which is not followed; write the final address"
            if error.code < 500 and error.code not in RETRIED_STATUSES:
                return why
        except (OSError, HTTPException, ValueError) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
    return why


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def post(url: str, body: bytes, timeout_s: float) -> None:
    """POST a JSON body; urllib's errors if it fails, or if the server redirects."""
    headers = {"Content-Type": "application/json", "User-Agent": "ediffi"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s).close()
