"""Decides who sits where in a stage's ensemble: an expert that beat its parent, or an ancestor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.runs.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    seats: dict[str, str] = {}
    refused: dict[str, str] = {}
    for slot, candidates in settings["seats"].items():
        seats[slot], passed = choose_expert(candidates, ctx.manifests, settings["rule"])
        refused |= {role: describe_gain(ctx.manifests[role]) for role in passed}
    for role, reason in refused.items():
        ctx.report(message=f"{role} is refused: {reason}")
    kept = sum(role == settings["seats"][slot][0] for slot, role in seats.items())
    return Result(
        files=[],
        metrics={"adopted": kept, "refused": len(refused)},
        info={"seats": seats, "refused": refused},
    )


def choose_expert(
    candidates: list[str], manifests: Mapping[str, Any], rule: str
) -> tuple[str, list[str]]:
    """Whose seat it is of those in line, and who was passed over."""
    for at, role in enumerate(candidates[:-1]):
        if rule == "always" or manifests[role]["metrics"].get("val_gain_low", 0.0) > 0:
            return role, candidates[:at]
    return candidates[-1], candidates[:-1]


def describe_gain(manifest: Mapping[str, Any]) -> str:
    m = manifest["metrics"]
    gain, low, high = (m[f"val_gain{of}"] for of in ("", "_low", "_high"))
    return f"its gain over its parent is {gain:+.4f} [{low:+.4f}, {high:+.4f}]"
