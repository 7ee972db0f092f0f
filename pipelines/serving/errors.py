"""Refusals that a caller is told, whatever process they are raised in."""

from __future__ import annotations


class Refused(Exception):
    """A request that is answered with a status of its own and a sentence for people."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message, self.retry_after_s = message, retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.message, self.retry_after_s)


def _again(kind: type[Refused], message: str, retry_after_s: float | None) -> Refused:
    return kind(message, retry_after_s=retry_after_s)


class UnknownModel(Refused):
    """There is no such model here."""

    status, code = 404, "model_not_found"


class TooLarge(Refused):
    """The request is larger than the service reads."""

    status, code = 413, "request_too_large"


class Unwanted(Refused):
    """A filter has refused the prompt or the picture."""

    status, code = 400, "content_policy_violation"


class QueueFull(Refused):
    """Too many pictures wait; ``retry_after_s`` says when to come again."""

    status, code = 429, "rate_limit_exceeded"


class NotReady(Refused):
    """No model is loaded yet, or the service is ending."""

    status, code = 503, "not_ready"


class DeadlineExceeded(Refused):
    """The picture was not finished in time."""

    status, code = 504, "deadline_exceeded"


class DrawingFailed(Refused):
    """The model drew nothing that could be shown, such as values that are not finite."""

    status, code = 500, "drawing_failed"
