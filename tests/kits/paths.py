"""Where the project's own files lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "pipelines/specs"
SMOKE, DEMO = SPECS / "smoke.yaml", SPECS / "demo.yaml"
COCO30K = SPECS / "coco30k.yaml"
"""A benchmark's protocol, not a pipeline."""
