"""Writes the ensemble down: a small manifest of experts, intervals, encoders and defaults."""

from __future__ import annotations

from typing import Any

from pipelines.models.champions import MANIFEST
from pipelines.models.text_to_image import load_stages
from pipelines.runs.context import Context, Result
from pipelines.steps.ensemble_weights import weights_of


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    stages = settings["stages"]
    weights = weights_of(ctx, stages, inputs)
    # Loading it proves that it can be loaded: every checkpoint sound, p(σ) covered once.
    load_stages(ctx.store, stages, weights)
    last = ctx.manifests[f"evaluation/{stages[-1]['name']}"]
    manifest = {
        "model": settings["model"],
        "store": ctx.store.root,
        "stages": stages,
        "weights": weights,
        "encoders_folder": inputs.get("encoders"),
        "encoders": ctx.runtime["encoders"],
        "trained_with": last["info"]["encoders"],
        "data": {
            "train": {
                "folder": inputs["data"],
                "fingerprint": ctx.manifests["data"]["fingerprint"],
            },
            "validation": read_by(last, "validation"),
        },
    }
    ctx.store.write_json(f"{ctx.folder}/{MANIFEST}", manifest)
    return Result(files=[MANIFEST], metrics=dict(last["metrics"]))


def read_by(manifest: dict[str, Any], role: str) -> dict[str, str]:
    """The result that a finished node has read."""
    of = manifest["inputs"][role]
    return {"folder": f"nodes/{of['node']}-{of['fingerprint']}", "fingerprint": of["fingerprint"]}
