"""Lines on a terminal that are drawn again and again, below others that stay."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.formatting import printable


class LiveLines:
    """Prints lines that stay and, while the context is open on a terminal, live ones below."""

    def __init__(self) -> None:
        self.rich = Console(highlight=False, soft_wrap=True, emoji=False)
        self.live: Live | None = None

    def __enter__(self) -> LiveLines:
        if self.rich.is_terminal:
            self.live = Live(console=self.rich, refresh_per_second=2, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    @property
    def width(self) -> int | None:
        """Characters of a line on the terminal; None elsewhere, such as in a log file."""
        return self.rich.width if self.rich.is_terminal else None

    def print(self, line: str) -> None:
        """Print a line that stays; breaks in it are kept, so its parts must be escaped."""
        # In one write: else the live lines below could be drawn between its parts.
        self.rich.print(printable(line, lines=True), markup=False)
        sys.stdout.flush()

    def show(self, lines: str) -> None:
        """Draw the live lines again, whose parts must be escaped; nothing without a terminal."""
        if self.live:
            shown = Text(printable(lines, lines=True), no_wrap=True, overflow="ellipsis")
            self.live.update(shown)
