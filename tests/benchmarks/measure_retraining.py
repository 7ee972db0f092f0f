"""A retraining on a tenth more scenes, and one that its rule refuses: what is done and decided.

    python tests/benchmarks/measure_retraining.py DEMO_STORE [--record]

reads the demo's scenes and tiny encoders from a finished demo's store.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from harness import report

from pipelines.demo.make import write_parquet

MORE = 400  # of 4,000
EDIFFI = Path(sys.executable).with_name("ediffi")
BASE = {
    "resolution": 16,
    "sampling": {"guidance": 2.0, "steps": 20, "solver": "deis3"},
    "network": {"preset": "demo"},
    "training": {
        "batch": 16,
        "learning_rate": 1.0e-3,
        "warmup_images": 500,
        "ema_halflife_images": 500,
    },
    "cadence": {"checkpoint_images": 800},
    "experts": {"E0_0": {"images": 3200}, "E1_1": {"images": 1600}, "E1_0": {"images": 1600}},
    "ensemble": ["E1_1", "E1_0"],
}


class Own:
    """A user's folder of scenes, a spec that reads it, and what the command did."""

    def __init__(self, demo: Path, root: Path) -> None:
        self.root, self.store, self.scenes = root, root / "store", root / "scenes"
        [train] = demo.glob("nodes/data/train-*")
        [held_out] = demo.glob("nodes/data/validation-*")
        [encoders] = demo.glob("nodes/encoders/tiny-*")
        for found, to in ((train, self.scenes), (held_out, root / "held-out")):
            to.mkdir(parents=True)
            for file in found.rglob("*.parquet"):
                shutil.copy2(file, to)
        self.raw: dict[str, Any] = {
            "name": "own-scenes",
            "data": {
                "train": {"path": str(self.scenes)},
                "validation": {"path": str(root / "held-out")},
            },
            "encoders": {role: str(encoders / role) for role in ("t5", "clip")},
            "evaluate": {"captions": 64},
            "stages": {"base": BASE},
        }

    def add(self, number: int) -> None:
        """A file of scenes that nobody has seen."""
        [made] = write_parquet(
            self.root / f"more-{number}",
            split="train",
            count=MORE,
            shards=1,
            seed=1000 + number,
            quiet=True,
        )
        shutil.copy2(made, self.scenes / f"more-{number}.parquet")

    def command(self, verb: str) -> str:
        spec = self.root / "own.yaml"
        spec.write_text(yaml.safe_dump(self.raw))
        ask = [EDIFFI, verb, spec, "--storage", self.store]
        end = subprocess.run(ask, capture_output=True, text=True)
        if end.returncode:
            raise RuntimeError(end.stdout + end.stderr)
        return end.stdout

    def champion(self) -> str:
        book = json.loads((self.store / "registry/own-scenes.json").read_text())
        return str(book["champion"]["fingerprint"][:8])


def lines_with(said: str, *words: str) -> list[str]:
    return [
        line.split("] ", 1)[-1].strip()
        for line in said.splitlines()
        if any(w in line for w in words)
    ]


def main() -> None:
    demo = Path(sys.argv.pop(1)).absolute()
    with tempfile.TemporaryDirectory() as scratch:
        own = Own(demo, Path(scratch))
        told = ["Trained on 8 files of 500 scenes:", ""]
        told += [f"    {line}" for line in lines_with(own.command("run"), "is champion")]
        told += [f"    ediffi retrain: {own.command('retrain').strip()}", ""]
        for number, margin in ((1, 0.0), (2, 0.5)):
            own.add(number)
            own.raw["promotion"] = {"metric": "val_loss", "margin": margin}
            told += [f"A file of {MORE} more, `promotion.margin: {margin}`:", ""]
            told += [f"    {line}" for line in lines_with(own.command("plan"), "shards to embed")]
            said = own.command("retrain")
            told += [
                f"    {line}"
                for line in lines_with(
                    said, "is refused", "is champion", "stays candidate", "embed/train done"
                )
            ]
            told += [f"    champion now: {own.champion()}", ""]
        report("A retraining", told)


if __name__ == "__main__":
    main()
