"""A run's output: its events, and how far it is.

On a terminal each running node has live lines; a log file gets one line a minute for them all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipelines.formatting import byte_size, clock, fitted, printable, speed
from pipelines.reports.live import LiveLines

SUMMARY_EVERY_S = 60.0
"""How often a log file gets a line on the run as a whole."""

INDENT = 4


class Console:
    """Prints the states and the progress of nodes."""

    def __init__(self) -> None:
        self.lines = LiveLines()
        self.started_at = self.summed_up_at = time.monotonic()
        self.running: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Console:
        self.lines.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.__exit__()

    def log(self, text: str) -> None:
        """Print a line, after the time since the run's start."""
        self.lines.print(f"[{clock(time.monotonic() - self.started_at):>5}] {printable(text)}")

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
        now, track = time.monotonic(), self.running.get(node, {})
        picture = row.get("picture")
        if picture and (self.lines.width or "pictures" not in track):  # in a log only the first
            self.log(f"{node} drew {picture}")
        if node not in self.running:
            return
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
        """A running node's progress, on several lines if one would exceed ``width`` characters."""
        track = self.running[node]
        if "done" not in track:
            parts = [f"{node:<22}", clock(time.monotonic() - track["since"])]
            return fitted(parts, width, INDENT)
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
        if "checkpoint" in track:
            images, then = track["checkpoint"]
            parts.append(f"saved {images:,} ({clock(time.monotonic() - then)} ago)")
        if "pictures" in track:
            parts.append(f"pictures in {track['pictures']}")
        return fitted(parts, width, INDENT)

    def refresh(self, summary: str) -> None:
        """Draw the live lines again, or print the summary if it is due; called twice a second.

        Args:
            summary: the run in one line, from :func:`pipelines.reports.status.summary`.
        """
        nodes = [self.progress_line(node, self.lines.width) for node in self.running]
        self.lines.show("\n".join([summary, *nodes]))  # a low terminal cuts the end off
        now = time.monotonic()
        if self.lines.width is None and now - self.summed_up_at >= SUMMARY_EVERY_S:
            self.summed_up_at = now
            self.log(summary)

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
