"""Stop a retraining whose data has drifted too far from the champion's."""

from __future__ import annotations

from typing import Any

from pipelines.runs.context import Context, Result

MEASURES = {
    "caption_lengths": ("length/", "lengths of captions in {}, Kolmogorov–Smirnov distance"),
    "embeddings": ("mmd/", "embeddings {}, MMD²"),
    "quarantined": ("quarantined", "share of quarantined rows, increase"),
}
"""Setting → begin of the names that it limits, and what they are."""


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Compare what the node ``drift`` measured with the limits.

    Raises:
        ValueError: The 95 % interval of a measure lies above its limit.
    """
    drifted = ctx.manifests["drift"]["info"]["drifted"]
    beyond, checked = list[str](), 0
    for setting, (begin, what) in MEASURES.items():
        limit = settings["limits"][setting]
        if limit is None:
            continue
        for name, of in drifted.items():
            if not name.startswith(begin):
                continue
            checked += 1
            if of["low"] > limit:
                told = what.format(name.removeprefix(begin))
                beyond.append(
                    f"{told}: {of['value']:.3g} [{of['low']:.3g}, {of['high']:.3g}], above "
                    f"`retraining.drift.{setting}: {limit:g}`"
                )
    if beyond:
        raise ValueError(
            f"the data has drifted from the champion's: {'; '.join(beyond)}. Look at it with "
            "`ediffi data stats`; to train on it nevertheless, raise the limit"
        )
    return Result(files=[], metrics={"checked": float(checked)})
