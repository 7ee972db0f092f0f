"""``ediffi``: thin verbs over spec, plan, run and model. Heavy imports wait until needed."""

from __future__ import annotations

import os
import sys

from pipelines.cli import datasets, drawing, jobs, models, planning, running, schedules
from pipelines.cli.app import app

__all__ = [
    "app",
    "datasets",
    "drawing",
    "jobs",
    "main",
    "models",
    "planning",
    "running",
    "schedules",
]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """The command: a user's mistake is one line and exit code 2, never a traceback."""
    from pipelines.store.remote import StorageError

    if os.environ.get("EDIFFI_DEBUG"):
        app()
    try:
        app()
    except (ValueError, StorageError) as error:
        sys.stderr.write(f"ediffi: {one_line(error)}\n")
        sys.exit(2)
