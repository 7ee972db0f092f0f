"""A run's output: events, and one progress line per running node.

On a terminal the progress lines are live; elsewhere they are printed every 10 s, later every 60 s.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as Rich
from rich.live import Live
from rich.text import Text

from pipelines.formatting import byte_size, clock, printable, speed

PLAIN_EVERY_S, PLAIN_LATER_S = 10.0, 60.0
LATER_S = 600.0
"""After this time plain lines come less often, so that a log of days stays readable."""


class Console:
    """Prints the states and the progress of nodes."""

    def __init__(self) -> None:
        self.rich = Rich(highlight=False, soft_wrap=True)
        self.started_at = time.monotonic()
        self.running: dict[str, dict[str, Any]] = {}
        self.printed_at = 0.0
        self.live: Live | None = None

    def __enter__(self) -> Console:
        if self.rich.is_terminal:
            self.live = Live(console=self.rich, refresh_per_second=2, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def log(self, text: str) -> None:
        """Print a line, after the time since the run's start."""
        # In one write: else the live lines below could be drawn between its parts.
        line = f"[{clock(time.monotonic() - self.started_at):>5}] {printable(text)}"
        self.rich.print(line, markup=False)
        sys.stdout.flush()

    def state(self, node: str, state: str) -> None:
        """Take notice that a node's state changed; only running nodes have a progress line."""
        if state == "running":
            self.running[node] = {"since": time.monotonic()}
            self.log(f"{node} started")
        elif node in self.running:
            del self.running[node]

    def report(self, node: str, row: dict[str, Any]) -> None:
        """Update a node's progress; ``row`` as of :meth:`pipelines.runs.context.Context.report`."""
        if message := row.get("message"):
            self.log(f"{node} {message}")
        if picture := row.get("picture"):
            self.log(f"{node} drew {picture}")
        if node not in self.running:
            return
        now, track = time.monotonic(), self.running[node]
        if "checkpoint" in row:
            track["checkpoint"] = (row["checkpoint"], now)
        if picture:
            track["pictures"] = picture.rpartition("/")[0]
        if "done" not in row:
            return
        track.setdefault("first", (now, row["done"], row.get("rows", 0)))
        track.update(
            {k: row[k] for k in ("done", "of", "unit", "loss", "rows", "bytes") if k in row}
        )
        track.update(row.get("metrics", {}))
        since, done, rows = track["first"]
        if row["done"] > done:
            seconds = max(now - since, 1e-6)
            track["rate"] = (row["done"] - done) / seconds
            if row.get("rows", 0) > rows:
                track["rows_per_s"] = (row["rows"] - rows) / seconds

    def progress_line(self, node: str, width: int | None = None) -> str:
        """A running node's progress; on two lines if one would exceed ``width`` characters."""
        track = self.running[node]
        if "done" not in track:
            return f"{node:<22} {clock(time.monotonic() - track['since'])}"
        rate = track.get("images_per_s", track.get("rate", 0.0))
        parts = [f"{node:<22}", f"{track['done']:>7,}/{track['of']:,} {track['unit']}"]
        if "loss" in track:
            parts.append(f"loss {track['loss']:.4f}")
        if "bytes" in track:
            parts += [f"{track['rows']:,} rows", byte_size(track["bytes"])]
        if rate:
            parts += [
                speed(track["rows_per_s"], "rows")
                if "rows_per_s" in track
                else speed(rate, track["unit"]),
                f"{clock((track['of'] - track['done']) / rate)} left",
            ]
        kept = []
        if "checkpoint" in track:
            images, then = track["checkpoint"]
            kept.append(f"saved {images:,} ({clock(time.monotonic() - then)} ago)")
        if "pictures" in track:
            kept.append(f"pictures in {track['pictures']}")
        whole = "  ".join(parts + kept)
        if not kept or width is None or len(whole) <= width:
            return whole
        return "  ".join(parts) + "\n" + " " * 24 + "  ".join(kept)

    def refresh(self) -> None:
        """Redraw the live lines, or print plain ones when they are due; called twice a second."""
        if self.live:
            lines = "\n".join(self.progress_line(n, self.rich.width) for n in self.running)
            self.live.update(Text(printable(lines, lines=True), no_wrap=True, overflow="ellipsis"))
            return
        now = time.monotonic()
        if now - self.printed_at > (
            PLAIN_EVERY_S if now - self.started_at < LATER_S else PLAIN_LATER_S
        ):
            self.printed_at = now
            for node in self.running:
                self.log(self.progress_line(node))

    def done(self, node: str, manifest: dict[str, Any]) -> None:
        """Print that a node is done, with its main metrics."""
        metrics = manifest["metrics"]
        parts = []
        if "val_gain" in metrics:
            parts.append(
                f"val loss {metrics['val_loss']:.4f}, parent {metrics['val_loss_parent']:.4f} "
                f"(gain {metrics['val_gain']:+.4f}, 95 % {metrics['val_gain_low']:+.4f} to "
                f"{metrics['val_gain_high']:+.4f})"
            )
        elif "kernel_distance" in metrics:
            parts.append(f"KID {with_interval(metrics, 'kernel_distance', 3)}")
            parts.append(f"val loss {with_interval(metrics, 'val_loss', 4)}")
        elif "val_loss" in metrics:
            parts.append(f"val loss {metrics['val_loss']:.4f}")
        if "rows" in metrics:
            parts.append(f"{metrics['rows']:,} rows")
        if metrics.get("quarantined"):
            reasons = manifest["info"]["quarantined"]
            parts.append("quarantined " + ", ".join(f"{n} ({why})" for why, n in reasons.items()))
        self.log(f"{node} done in {clock(manifest['seconds'])}" + "".join(f"; {p}" for p in parts))

    def failed(self, node: str, error: str) -> None:
        """Print that a node failed, and its error in one line."""
        self.log(f"{node} FAILED: {error}")


def with_interval(metrics: Mapping[str, float], name: str, digits: int) -> str:
    """A metric, half its 95 % confidence interval, and the number of images it is from."""
    half, count = (metrics.get(f"{name}_{of}") for of in ("ci95", "pictures"))
    return (
        f"{metrics[name]:.{digits}f}"
        + (f" ±{half:.{digits}f}" if half is not None else "")
        + (f" ({count:,.0f} pictures)" if count is not None else "")
    )
