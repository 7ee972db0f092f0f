"""All results of a search in MLflow, whose client returns at most one page of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PAGE = 1000
"""Results a call; a server's limit is 50,000 runs."""


def every(search: Callable[..., Any], *args: Any, page: int = PAGE, **given: Any) -> Iterator[Any]:
    """Every result of a search, page by page.

    Args:
        search: A method of ``MlflowClient`` that takes ``max_results`` and ``page_token``.
        args, given: Its other arguments.
        page: Results a call.
    """
    token = None
    while True:
        found = search(*args, **given, max_results=page, page_token=token)
        yield from found
        if not (token := found.token):
            return
