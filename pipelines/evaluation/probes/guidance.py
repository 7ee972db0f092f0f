"""The quality–alignment curve of a model over its guidance scale (eDiff-I figure 7)."""

from __future__ import annotations

from pipelines.evaluation.probes.model import Found, Model, estimates, flat
from pipelines.spec.probes import GuidanceProbe


def measure(model: Model, options: GuidanceProbe) -> Found:
    """Draw the same captions from the same noise with every scale, and measure the pictures."""
    count = min(options.captions, len(model.source))
    model.to_draw = count * len(options.scales)
    points = []
    metrics: dict[str, float] = {}
    for scale in options.scales:
        seen = model.see(count, stage=model.with_guidance(scale))
        found = estimates(seen.measures())
        points.append({"scale": scale, "measures": found})
        metrics |= flat(found, f"{scale:g}/")
    return Found(data={"pictures": count, "points": points}, metrics=metrics)
