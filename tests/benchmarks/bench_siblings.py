"""Two siblings of a tree at the same time, against one after the other: the same pipeline twice.

Both begin with everything done but the two experts and what follows from them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from harness import in_turn, report

IMAGES, ROUNDS = 6400, 2
EDIFFI = Path(sys.executable).with_name("ediffi")
SMOKE = Path(__file__).parents[2] / "pipelines/specs/smoke.yaml"


def spec(to: Path, cpus: int) -> Path:
    raw = yaml.safe_load(SMOKE.read_text())
    raw["cpus"] = cpus
    for name in ("E1_1", "E1_0"):
        raw["stages"]["base"]["experts"][name]["images"] = IMAGES
    raw["stages"]["base"]["cadence"] |= {"checkpoint_images": IMAGES, "validate_images": IMAGES}
    raw["encoders"]["clip_images"] = 256
    to.write_text(yaml.safe_dump(raw))
    return to


def run(file: Path, store: Path) -> None:
    end = subprocess.run([EDIFFI, "run", file, "--storage", store], capture_output=True, text=True)
    if end.returncode:
        raise RuntimeError(end.stdout + end.stderr)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        ready = root / "ready"
        run(SMOKE, ready)  # all that both have in common
        specs = {cpus: spec(root / f"{cpus}.yaml", cpus) for cpus in (1, 2)}

        def once(cpus: int) -> None:
            store = root / f"store-{cpus}-{time.monotonic_ns()}"
            shutil.copytree(ready, store)
            run(specs[cpus], store)
            shutil.rmtree(store)

        s = in_turn(ROUNDS, one=lambda: once(1), two=lambda: once(2))
        report(
            "Siblings side by side",
            [
                f"Two experts of {IMAGES:,} images each, their evaluation and the promotion, "
                f"medians of {ROUNDS} rounds in turn.",
                "",
                f"One after the other (`cpus: 1`) {s['one']:.0f} s, at the same time (`cpus: 2`) "
                f"{s['two']:.0f} s: {s['one'] / s['two']:.2f} times as fast.",
            ],
        )


if __name__ == "__main__":
    main()
