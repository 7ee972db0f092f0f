"""Choose the expert for each slot of a stage's ensemble: one that beats its parent, or an
ancestor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.runs.context import Context, Result


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Choose an expert for every slot, and report the refused ones."""
    slots: dict[str, str] = {}
    refused: dict[str, str] = {}
    for slot, candidates in settings["seats"].items():
        slots[slot], passed_over = choose_expert(candidates, ctx.manifests, settings["rule"])
        refused |= {role: describe_gain(ctx.manifests[role]) for role in passed_over}
    for role, reason in refused.items():
        ctx.report(message=f"{role} is refused: {reason}")
    kept = sum(role == settings["seats"][slot][0] for slot, role in slots.items())
    return Result(
        files=[],
        metrics={"adopted": kept, "refused": len(refused)},
        info={"seats": slots, "refused": refused},
    )


def choose_expert(
    candidates: list[str], manifests: Mapping[str, Any], rule: str
) -> tuple[str, list[str]]:
    """Choose the first candidate that beats its parent.

    Args:
        candidates: Roles of the slot's own expert, then its ancestors up to the root.
        manifests: Manifest of each role.
        rule: ``always`` adopts the slot's own expert; ``better`` requires a significant gain.

    Returns:
        The chosen role, and the candidates before it, which are refused.
    """
    for at, role in enumerate(candidates[:-1]):
        if rule == "always" or manifests[role]["metrics"].get("val_gain_low", 0.0) > 0:
            return role, candidates[:at]
    return candidates[-1], candidates[:-1]


def describe_gain(manifest: Mapping[str, Any]) -> str:
    """The expert's gain over its parent, with its 95 % confidence interval."""
    m = manifest["metrics"]
    gain, low, high = (m[f"val_gain{of}"] for of in ("", "_low", "_high"))
    return f"its gain over its parent is {gain:+.4f} [{low:+.4f}, {high:+.4f}]"
