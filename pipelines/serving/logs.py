"""The service's log. It has no text of a request unless that is asked for."""

from __future__ import annotations

import logging
import traceback

log = logging.getLogger("ediffi.serving")


def log_error(what: str, error: Exception, *, with_message: bool = False) -> None:
    """Log an error and where it was raised.

    Args:
        with_message: whether the log has the error's message, which may quote the request.
    """
    message = f": {error!r}" if with_message else ""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s (%s%s)\n%s", what, type(error).__name__, message, where)
