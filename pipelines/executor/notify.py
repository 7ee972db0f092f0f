"""Notify people of how a run ended: by a webhook, in a chat, by e-mail.

A failure does not affect the run. A webhook is one POST of JSON. Its answer's status alone counts:
the body is not read, and redirects are not followed, since a POST that is redirected becomes a GET
without the message, to an address that nobody chose.
"""

from __future__ import annotations

import json
import queue
import smtplib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from pipelines.executor.mail import send_mail
from pipelines.formatting import clock, printable
from pipelines.lineage.address import Runs
from pipelines.spec.notify import Notify

if TYPE_CHECKING:
    from pipelines.runs.execution import Execution

TRIES, FIRST_WAIT_S, TIMEOUT_S = 3, 1.0, 10.0
TOTAL_S = 25.0
"""How long the end of a run waits for the notifications, all tries together."""

RETRIED_STATUSES = {408, 425, 429}
LISTED, ERROR_CHARACTERS = 10, 300
"""How many failed nodes a message to people lists, and how much of each error."""

Deliver = Callable[[float], None]
"""Sends a notification; takes how long to wait for a server that sends nothing, in seconds."""


def record_address(execution: Execution) -> str:
    """The MLflow page of the run; the address of MLflow if it is no server, or has no run yet."""
    runs = Runs.from_tracking(execution.tracking)
    return (runs and runs.address("")) or str(execution.tracking.get("uri", ""))


def message(execution: Execution, failed: Mapping[str, str]) -> dict[str, Any]:
    """Body of the webhook's POST; ``failed`` maps node ids to errors."""
    return {
        "pipeline": execution.pipeline,
        "run": execution.id,
        "attempt": execution.attempt,
        "state": execution.state,
        "seconds": execution.seconds,
        "failed": dict(failed),
        "record": record_address(execution),
    }


def headline(execution: Execution) -> str:
    """What happened, in one line: ``demo is done after 1:24:00``."""
    verb = "failed" if execution.state == "failed" else f"is {execution.state}"
    return f"{execution.pipeline} {verb} after {clock(execution.seconds)}"


def details(execution: Execution, failed: Mapping[str, str]) -> list[str]:
    """The run and its failed nodes, a line each; ``failed`` as of :func:`message`."""
    lines = [f"run {execution.id}, attempt {execution.attempt}"]
    for node, error in list(failed.items())[:LISTED]:
        short = error if len(error) <= ERROR_CHARACTERS else error[:ERROR_CHARACTERS] + "…"
        lines.append(printable(f"{node}: {short}"))
    if len(failed) > LISTED:
        lines.append(f"{len(failed) - LISTED} more nodes failed")
    return lines


def slack_message(execution: Execution, failed: Mapping[str, str]) -> dict[str, str]:
    """Body of the POST to Slack, in its markup; ``failed`` as of :func:`message`."""

    def plain(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    lines = [f"*{plain(headline(execution))}*", *map(plain, details(execution, failed))]
    record = record_address(execution)
    is_page = record.startswith(("http://", "https://"))
    lines.append(f"<{plain(record)}|record in MLflow>" if is_page else f"record: {plain(record)}")
    return {"text": "\n".join(lines)}


def deliveries(
    notify: Notify, execution: Execution, failed: Mapping[str, str]
) -> dict[str, Deliver]:
    """All notifications that the spec wants: name for the log → what sends it.

    The name has a host at most: an address's path and query may hold a secret token.
    """
    found: dict[str, Deliver] = {}

    def add_post(what: str, address: SecretStr, content: Mapping[str, Any]) -> None:
        url = address.get_secret_value()
        name = f"{what} at {urlsplit(url).hostname}"
        found[name] = partial(post, url, json.dumps(content).encode())

    if notify.webhook:
        add_post("the webhook", notify.webhook, message(execution, failed))
    if notify.slack:
        add_post("the chat", notify.slack, slack_message(execution, failed))
    if email := notify.email:
        record = f"Record: {record_address(execution)}"
        body = "\n".join([*details(execution, failed), "", record, ""])
        name = f"{', '.join(email.to)} through {email.server}"
        found[name] = partial(send_mail, email, headline(execution), body)
    return found


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
    """Send all notifications at the same time, if the spec wants any of this state.

    Args:
        notify: the spec's ``notify:``.
        execution: the run that ended.
        failed: node id → error.
        log: receives a line for each that cannot be notified.
        tries: how often to try.
        timeout_s: how long a try waits for a server that sends nothing, in seconds.
        total_s: how long all tries may take, whatever the servers send, in seconds.
    """
    if execution.state not in notify.events:
        return
    deadline = time.monotonic() + total_s
    outcomes: dict[str, queue.SimpleQueue[str]] = {}
    for name, deliver in deliveries(notify, execution, failed).items():
        outcomes[name] = queue.SimpleQueue()
        # A thread, because no timeout of a socket bounds a name's lookup or a server that sends a
        # byte every few seconds. It ends with the process.
        threading.Thread(
            target=_try,
            args=(deliver, tries, timeout_s, outcomes[name]),
            name="notify",
            daemon=True,
        ).start()
    for name, outcome in outcomes.items():
        try:
            why = outcome.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            why = f"no answer within {total_s:g} s"
        if why:
            log(f"could not notify {name} ({why})")


def _try(deliver: Deliver, tries: int, timeout_s: float, outcome: queue.SimpleQueue[str]) -> None:
    """Deliver, again if the server is busy; puts why it failed, or an empty text."""
    why = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            deliver(timeout_s)
            why = ""
            break
        except (OSError, HTTPException, ValueError) as error:
            why, is_final = reason(error)
            if is_final:
                break
    outcome.put(why)


def reason(error: Exception) -> tuple[str, bool]:
    """Why a delivery failed, and whether another try would fail as well."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        why = f"HTTP {error.code}"
        if 300 <= error.code < 400:
            return f"{why}, a redirect, which is not followed; write the final address", True
        return why, error.code < 500 and error.code not in RETRIED_STATUSES
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        return f"SMTP {error.smtp_code} {' '.join(text.split())}", error.smtp_code >= 500
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        refused = [f"{to}: SMTP {code}" for to, (code, _) in error.recipients.items()]
        return ", ".join(sorted(refused)), True  # the others have it already
    why = str(getattr(error, "reason", "") or error) or type(error).__name__
    # A ValueError is a missing password, or a certificate that is not valid.
    return why, isinstance(error, ValueError | smtplib.SMTPNotSupportedError)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def post(url: str, body: bytes, timeout_s: float) -> None:
    """POST a JSON body; urllib's errors if it fails, or if the server redirects."""
    headers = {"Content-Type": "application/json", "User-Agent": "ediffi"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_s).close()
