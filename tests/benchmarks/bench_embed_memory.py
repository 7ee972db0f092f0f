"""What the embedding job holds in memory for some pairs and for four times as many."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

from harness import report

sys.path.insert(0, str(Path(__file__).parents[1] / "kits"))

from embed_kit import PROGRAM, write_encoders, write_source, write_spec
from kit import descendants, driver, title

ROWS, TIMES, SHARD_ROWS = 5000, 4, 250
APART = {name: {"actors": 1} for name in ("decode", "t5", "clip", "write")}


def peak_mb(pid: int) -> float:
    """The most a process ever held, shared memory included; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def peaks(spec: Path, store: Path) -> dict[str, float]:
    """Runs the job; → ``driver`` and each kind of actor → the peak of the largest, in MB."""
    most: dict[str, float] = {}
    with driver(spec, store, store.with_suffix(".log"), PROGRAM) as running:
        while running.process.poll() is None:
            seen = {"driver": peak_mb(running.pid)}
            for pid in descendants(running.pid):
                if found := re.match(r"ray::MapWorker\(MapBatches\((\w+)\)\)", title(pid)):
                    seen[found[1]] = max(peak_mb(pid), seen.get(found[1], 0.0))
            most |= {name: max(mb, most.get(name, 0.0)) for name, mb in seen.items()}
            time.sleep(0.25)
        if running.process.returncode:
            raise RuntimeError(running.text())
    return most


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rows", type=int, default=ROWS)
    options, sys.argv[1:] = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        encoders = write_encoders(root / "encoders")
        for i in range(TIMES * options.rows // SHARD_ROWS):
            few = "few" if i < options.rows // SHARD_ROWS else "more"
            write_source(root / "data" / few / f"{i:04d}.parquet", i, SHARD_ROWS)
        lines = ["| actors | process | peak at 1× | at 4× | ratio |", "|---|---|---|---|---|"]
        for label, pools in (("one for all stages", {}), ("one a stage", APART)):
            found = []
            for name, folder in (("one", "few"), ("four", "")):
                spec = write_spec(
                    root / f"{label}-{name}.yaml", root / "data" / folder, encoders, pools
                )
                found.append(peaks(spec, root / f"{label}-{name}"))
            lines += [
                f"| {label} | {process} | {found[0][process]:.0f} MB | {found[1][process]:.0f} MB "
                f"| {found[1][process] / found[0][process]:.2f} |"
                for process in sorted(found[0])
            ]
    report(
        "Memory of the embedding job",
        [
            f"{options.rows:,} pairs and {TIMES * options.rows:,}, in shards of {SHARD_ROWS}, tiny "
            "encoders, two CPUs; the peak of resident memory of the driver and of the largest "
            "actor of each kind.",
            "",
            *lines,
        ],
    )


if __name__ == "__main__":
    main()
