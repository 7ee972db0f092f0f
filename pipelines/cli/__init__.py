"""``ediffi``, the command line: thin verbs over the other rooms. Heavy imports wait until needed.

The verbs by task are in :mod:`pipelines.cli.help`.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from pipelines.cli import (
    averages,
    collecting,
    datasets,
    drawing,
    evaluating,
    exporting,
    jobs,
    models,
    planning,
    running,
    schedules,
    serving,
    start,
    studies,
)
from pipelines.cli.app import app
from pipelines.formatting import printable
from pipelines.spec.renamed import SpecWarning

__all__ = [
    "app",
    "averages",
    "collecting",
    "datasets",
    "drawing",
    "evaluating",
    "exporting",
    "jobs",
    "main",
    "models",
    "planning",
    "running",
    "schedules",
    "serving",
    "start",
    "studies",
]


def one_line(error: BaseException) -> str:
    """An error's message without line breaks and escapes; its type where it has none."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def show_warning(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print a warning about the user's spec or settings as one line; others as Python does.

    A setting without effect is told once, however many batches are drawn.
    """
    from pipelines.spec.sampling import SamplingWarning  # imports pydantic

    if issubclass(category, SamplingWarning):
        if (note := one_line(message)) not in _noted:
            _noted.add(note)
            sys.stderr.write(f"note: {note}\n")
    elif issubclass(category, SpecWarning):
        sys.stderr.write(f"ediffi: warning: {one_line(message)}\n")
    elif category.__name__ != "DecompressionBombWarning":  # of half the size that Pillow refuses
        _python_shows(message, category, *where, **more)


_python_shows = warnings.showwarning
_noted: set[str] = set()


def main() -> None:
    """Run the command line.

    A user's mistake ends in one line on stderr and exit code 2. With EDIFFI_DEBUG set it ends in a
    traceback.
    """
    from pipelines.store.remote import StorageError

    _noted.clear()
    warnings.showwarning = show_warning
    if os.environ.get("EDIFFI_DEBUG"):
        app()
    try:
        app()
    except (ValueError, StorageError) as error:
        sys.stderr.write(f"ediffi: {one_line(error)}\n")
        sys.exit(2)
