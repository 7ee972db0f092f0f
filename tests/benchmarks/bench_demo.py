"""The demo from an empty store: seconds, peak memory, what it measures; then once more, reused."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from harness import report

from pipelines.reports.tree import evaluation_table

ROOT = Path(__file__).parents[2]
EDIFFI = [str(Path(sys.executable).with_name("ediffi"))]


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable; this benchmark needs Linux")


class Peak:
    """The most memory the machine gave away while the block ran, over what it had before."""

    def __enter__(self) -> Peak:
        self.before = self.least = available_bytes()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.5):
            self.least = min(self.least, available_bytes())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.gigabytes = (self.before - self.least) / 1e9


def main() -> None:
    with tempfile.TemporaryDirectory() as store:
        where = ["pipelines/specs/demo.yaml", "--storage", store]
        seconds = []
        with Peak() as peak:
            for _ in range(2):
                start = time.monotonic()
                subprocess.run([*EDIFFI, "run", *where], cwd=ROOT, check=True)
                seconds.append(time.monotonic() - start)
        tree = subprocess.run(
            [*EDIFFI, "tree", "--json", "--storage", store], capture_output=True, check=True
        )
    table = evaluation_table(json.loads(tree.stdout)["stages"]["base"]["evaluations"])
    report(
        "The demo",
        [
            f"From an empty store {seconds[0]:.0f} s, again {seconds[1]:.0f} s with every node "
            f"reused; peak memory {peak.gigabytes:.1f} GB.",
            "",
            "| " + " | ".join(table[0]) + " |",
            "|" + "---|" * len(table[0]),
            *("| " + " | ".join(row) + " |" for row in table[1:]),
        ],
    )


if __name__ == "__main__":
    main()
