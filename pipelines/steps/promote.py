"""Writes the ensemble down: a small manifest of experts, intervals, encoders and defaults."""

from __future__ import annotations

from typing import Any

from pipelines.model import MANIFEST, load_stages
from pipelines.steps.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    stages = settings["stages"]
    weights = {
        role: {
            "path": f"{inputs[role]}/ema.safetensors",
            "sha256": ctx.manifests[role]["info"]["weights_sha256"],
            "fingerprint": ctx.manifests[role]["fingerprint"],
        }
        for role in (f"{s['name']}/{e}" for s in stages for e in s["experts"])
    }
    # Loading it proves that it can be loaded: every checkpoint sound, p(σ) covered once.
    load_stages(ctx.store, stages, lambda stage, expert: weights[f"{stage}/{expert}"]["path"])
    manifest = {
        "model": settings["model"],
        "store": ctx.store.root,
        "stages": stages,
        "weights": weights,
        "encoders_folder": inputs.get("encoders"),
        "encoders": ctx.runtime["encoders"],
    }
    ctx.store.write_json(f"{ctx.folder}/{MANIFEST}", manifest)
    last = stages[-1]["name"]
    return Result(files=[MANIFEST], metrics=dict(ctx.manifests[f"evaluation/{last}"]["metrics"]))
