"""Writes the ensemble down: a small manifest of experts, intervals, encoders and defaults."""

from __future__ import annotations

from typing import Any

from ediffi_core.noise import Interval
from pipelines.model import MANIFEST, load_ensemble
from pipelines.steps.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    [(stage, experts)] = settings["stages"].items()
    entries = {
        name: {
            "weights": f"{inputs[f'{stage}/{name}']}/ema.safetensors",
            "sha256": ctx.manifests[f"{stage}/{name}"]["info"]["weights_sha256"],
            "fingerprint": ctx.manifests[f"{stage}/{name}"]["fingerprint"],
            "interval": interval,
        }
        for name, interval in experts.items()
    }
    # Loading it proves that it can be loaded: every checkpoint sound, p(σ) covered once.
    load_ensemble(
        ctx.store, {n: (e["weights"], Interval(*e["interval"])) for n, e in entries.items()}
    )
    manifest = {
        "model": settings["model"],
        "stage": stage,
        "store": ctx.store.root,
        "experts": entries,
        "encoders_folder": inputs.get("encoders"),
        "encoders": settings["encoders"],
        "sampling": settings["sampling"],
    }
    ctx.store.write_json(f"{ctx.folder}/{MANIFEST}", manifest)
    metrics = dict(ctx.manifests[f"evaluation/{stage}"]["metrics"])
    return Result(files=[MANIFEST], metrics=metrics, info={"stage": stage})
