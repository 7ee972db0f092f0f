"""Locate the weights for each slot of an ensemble, following the decisions of adopt nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.runs.context import Context


def weights_of(
    ctx: Context, stages: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Locate the weights of every slot of some stages.

    Args:
        ctx: Context of the node, with the manifests of its inputs.
        stages: Stages of the cascade; ``experts`` names the slots of each. ``routing``, if there is
            one, names the expert that serves each slot, on whatever noise it was trained.
        inputs: Role → folder of the node's inputs.

    Returns:
        ``stage/slot`` → path, sha256, fingerprint and expert of the weights.
    """
    return located(ctx.manifests, stages, inputs)


def located(
    manifests: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """As :func:`weights_of`, outside a step.

    Args:
        manifests: Role → manifest of the input.
    """
    weights = {}
    for stage in stages:
        name = stage["name"]
        adopted = manifests.get(f"adopt/{name}", {"info": {"seats": {}}})["info"]["seats"]
        routing = stage.get("routing", {})
        for slot in stage["experts"]:
            role = adopted.get(slot, f"{name}/{routing.get(slot, slot)}")
            manifest = manifests[role]
            weights[f"{name}/{slot}"] = {
                "path": f"{inputs[role]}/ema.safetensors",
                "sha256": manifest["info"]["weights_sha256"],
                "fingerprint": manifest["fingerprint"],
                "expert": manifest["settings"]["expert"],
                **({"any_interval": True} if routing else {}),
            }
    return weights
