"""What a picture shows if another caption takes over while it is drawn (eDiff-I figure 4)."""

from __future__ import annotations

from typing import Any

from ediffi_core.control import Control, Switch
from pipelines.evaluation.probes.model import Found, Model, estimates, flat, joined
from pipelines.metrics import Pictures
from pipelines.spec.probes import PromptSwitchProbe


def switched(model: Model, pairs: int, fraction: float) -> list[Pictures]:
    """Draw a picture for each pair of captions, in batches.

    Picture i has the noise of number i, whatever the fraction.

    Args:
        fraction: share of the steps after which the second caption takes over.
    """
    return [
        model.draw(a, control=Control(switch=Switch(cond=b.cond, fraction=fraction)))
        for a, b in model.pairs(pairs)
    ]


def measure(model: Model, options: PromptSwitchProbe) -> Found:
    """Score the pictures of every fraction by the first and by the second caption.

    Fractions that round to the same step are drawn once. The scores of the whole drawings, of
    fractions 0 and 1, by the other caption are what pictures score by chance.
    """
    pairs = model.pairs(options.captions)
    count = sum(len(a.captions) for a, _ in pairs)
    steps = {fraction: round(fraction * model.stage.steps) for fraction in options.fractions}
    model.to_draw = count * len(set(steps.values()))
    known: dict[int, dict[str, Any]] = {}
    points = []
    metrics: dict[str, float] = {}
    for fraction, step in steps.items():
        if step not in known:
            drawn = list(zip(switched(model, options.captions, fraction), pairs, strict=True))
            first = [model.scores(pictures, a.captions) for pictures, (a, _) in drawn]
            second = [model.scores(pictures, b.captions) for pictures, (_, b) in drawn]
            found = {"first": estimates(joined(first)), "second": estimates(joined(second))}
            known[step] = {"step": step, **found}
        points.append({"fraction": fraction, **known[step]})
        for of in ("first", "second"):
            metrics |= flat(known[step][of], f"{fraction:g}/{of}/")
    data = {"pairs": count, "steps": model.stage.steps, "points": points}
    return Found(data=data, metrics=metrics)
