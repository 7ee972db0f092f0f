"""Write the manifest of a finished ensemble: experts, intervals, encoders and defaults."""

from __future__ import annotations

from typing import Any

from pipelines.models.champions import MANIFEST
from pipelines.models.manifest import node_hashes
from pipelines.models.stages import load_stages
from pipelines.runs.context import Context, Result
from pipelines.steps.ensemble_weights import weights_of


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Check that the ensemble loads, and write its manifest."""
    stages = settings["stages"]
    weights = weights_of(ctx, stages, inputs)
    # Loading checks it: every checkpoint is intact, and the intervals cover p(σ) exactly once.
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
            "validation": input_of(last, "validation"),
        },
    }
    manifest["nodes"] = node_hashes(ctx.store, manifest)
    ctx.store.write_json(f"{ctx.folder}/{MANIFEST}", manifest)
    return Result(files=[MANIFEST], metrics=dict(last["metrics"]))


def input_of(manifest: dict[str, Any], role: str) -> dict[str, str]:
    """Folder and fingerprint of an input of a finished node."""
    of = manifest["inputs"][role]
    return {"folder": f"nodes/{of['node']}-{of['fingerprint']}", "fingerprint": of["fingerprint"]}
