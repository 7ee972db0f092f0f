"""Lines on a terminal: in colour, to its width, and drawn again and again below others."""

from __future__ import annotations

import sys
from typing import ClassVar

from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.live import Live
from rich.text import Text
from rich.theme import Theme

from pipelines.formatting import folded, printable


class States(RegexHighlighter):
    """Colours of states, which stand in a column or behind a colon."""

    base_style = "state."
    highlights: ClassVar[list[str]] = [
        r"(?m)(^|  |: )(?P<good>done|reused|ok|succeeded)(?=  |$| after| \()",
        r"(?m)(^|  |: )(?P<bad>failed|fault|killed|stopped|cancelled)(?=  |$| after| \()",
        r"(?m)(^|  |: )(?P<busy>running|interrupted|skipped|warning|pending)(?=  |$| after| \()",
    ]


THEME = Theme({"state.good": "green", "state.bad": "red", "state.busy": "yellow"})


class LiveLines:
    """Prints lines that stay and, while the context is open on a terminal, live ones below.

    A terminal gets colours, unless NO_COLOR is set.
    """

    def __init__(self) -> None:
        self.rich = Console(highlighter=States(), theme=THEME, soft_wrap=True, emoji=False)
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

    def print_folded(self, text: str) -> None:
        """Print a text, its lines folded to the terminal's width; its parts must be escaped."""
        text = printable(text, lines=True)
        self.print(folded(text, self.width) if self.width else text)

    def show(self, lines: str) -> None:
        """Draw the live lines again, whose parts must be escaped; nothing without a terminal."""
        if self.live:
            shown = Text(printable(lines, lines=True), no_wrap=True, overflow="ellipsis")
            self.live.update(States()(shown))
