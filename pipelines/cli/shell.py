"""How the command begins and ends: warnings and errors as one line, exit codes."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any

from pipelines.cli.verbs import app
from pipelines.formatting import printable
from pipelines.spec.renamed import SpecWarning
from pipelines.store.remote import StorageError


def run() -> None:
    """Run the verb of the command line, and exit.

    A user's mistake, and what the system refuses, end in one line on stderr and exit code 2. With
    EDIFFI_DEBUG set they end in a traceback.
    """
    _noted.clear()
    warnings.showwarning = show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # σ, where the locale has no Greek
    if os.environ.get("EDIFFI_DEBUG"):
        app()
    try:
        app()
    except (ValueError, StorageError) as error:
        fail(one_line(error))
    except OSError as error:
        if error.filename is None and (why := _output_refused()):
            fail(f"standard output cannot be written ({why})")
        place = f"{error.filename}: " if error.filename else ""
        fail(f"{one_line(f'{place}{error.strerror or error}')}; EDIFFI_DEBUG=1 shows where")


def fail(line: str) -> None:
    """End the command with a line on stderr and exit code 2."""
    sys.stderr.write(f"ediffi: {line}\n")
    sys.exit(2)


def _output_refused() -> str:
    """Why standard output cannot be written, found by writing an empty line; empty if it can."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def one_line(error: object) -> str:
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
