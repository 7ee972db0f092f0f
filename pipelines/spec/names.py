"""Names of pipelines, which are those of their models too."""

from __future__ import annotations

import re

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*$"
"""Pattern of a pipeline's name."""

_NAME = re.compile(NAME_PATTERN[1:-1])


def is_name(text: str) -> bool:
    """Whether a pipeline may have this name."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str) -> str:
    """The name, which becomes part of paths in the store.

    Args:
        text: A name as somebody gave it.
        what: What it names, for the error.

    Raises:
        ValueError: No pipeline has such a name.
    """
    if not is_name(text):
        raise ValueError(
            f"{text!r:.80} is no {what}; write lower-case letters, digits and hyphens, as in the "
            "spec's `name:`"
        )
    return text
