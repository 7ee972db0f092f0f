"""Decides who sits where in a stage's ensemble: an expert that beat its parent, or an ancestor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.runs.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    seats: dict[str, str] = {}
    refused: dict[str, str] = {}
    for seat, line in settings["seats"].items():
        seats[seat], passed = seated(line, ctx.manifests, settings["rule"])
        refused |= {role: word(ctx.manifests[role]) for role in passed}
    for role, why in refused.items():
        ctx.report(message=f"{role} is refused: {why}")
    kept = sum(role == settings["seats"][seat][0] for seat, role in seats.items())
    return Result(
        files=[],
        metrics={"adopted": kept, "refused": len(refused)},
        info={"seats": seats, "refused": refused},
    )


def seated(line: list[str], manifests: Mapping[str, Any], rule: str) -> tuple[str, list[str]]:
    """Whose seat it is of those in line, and who was passed over."""
    for at, role in enumerate(line[:-1]):
        if rule == "always" or manifests[role]["metrics"].get("val_gain_low", 0.0) > 0:
            return role, line[:at]
    return line[-1], line[:-1]


def word(manifest: Mapping[str, Any]) -> str:
    m = manifest["metrics"]
    gain, low, high = (m[f"val_gain{of}"] for of in ("", "_low", "_high"))
    return f"its gain over its parent is {gain:+.4f} [{low:+.4f}, {high:+.4f}]"
