"""What every benchmark shares: rounds in turn, medians, a line with commit and date."""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"


def in_turn(rounds: int, **ways: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each way; every round runs all of them, so that load falls on all alike."""
    for way in ways.values():
        way()  # the first run pays for caches and allocations
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(title: str, lines: list[str]) -> None:
    """Prints the result; with ``--record`` it is also appended to RESULTS.md."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    git = ["git", "-C", str(HERE)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    at = f"{commit.stdout.strip()}{' with changes' if dirty.stdout.strip() else ''}"
    stamp = f"{datetime.now(UTC):%Y-%m-%d}, commit {at}, {machine()}"
    text = "\n".join([f"## {title}", "", stamp, "", *lines, ""])
    print(text)
    if parser.parse_args().record:
        with RESULTS.open("a") as file:
            file.write("\n" + text)


def machine() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{device}, {platform.machine()}, torch {torch.__version__}"
