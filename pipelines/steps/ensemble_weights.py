"""Where the weights of an ensemble's seats are, as the adopt nodes have decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.runs.context import Context


def weights_of(
    ctx: Context, stages: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """``stage/seat`` → path, sha256, fingerprint and expert of the weights that work there."""
    found = {}
    for stage in stages:
        name = stage["name"]
        decided = ctx.manifests.get(f"adopt/{name}", {"info": {"seats": {}}})["info"]["seats"]
        for seat in stage["experts"]:
            role = decided.get(seat, f"{name}/{seat}")
            manifest = ctx.manifests[role]
            found[f"{name}/{seat}"] = {
                "path": f"{inputs[role]}/ema.safetensors",
                "sha256": manifest["info"]["weights_sha256"],
                "fingerprint": manifest["fingerprint"],
                "expert": manifest["settings"]["expert"],
            }
    return found
