"""Measure where a root's loss is over p(σ), and cut it into equal shares (CBS, arXiv:2606.06477).

The loss is the mean of EDM's weighted loss λ(σ) ‖D(x + σε; e, σ) − x‖² over validation draws from
p(σ), with the averaged weights and text conditioning, as in an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.metrics import validation_losses
from ediffi_core.noise import EVERYTHING, NoiseDistribution
from pipelines.evaluation.job import text_only
from pipelines.evaluation.scores import finite
from pipelines.runs.context import Context, Result
from pipelines.store.reader import Reader
from pipelines.training.branch import Parent
from pipelines.training.validation import BATCH, validation_batch

FILE = "difficulty.json"


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Measure the root's loss in equal shares of p(σ), and write the boundaries of equal loss.

    ``difficulty.json`` has the ``quantiles`` and ``sigma`` at the edges of the shares (the last σ
    is null: infinity), the mean ``loss`` in each, the ``cumulated`` share of the loss at each edge,
    and ``boundaries``, the quantiles that cut the loss into as many equal shares.

    Raises:
        ValueError: A loss is not finite, or the weights are not those of the root's manifest.
    """
    torch.set_num_threads(ctx.cpus)
    device = torch.device("cuda" if ctx.runtime["gpus"] else "cpu")
    root = ctx.manifests["root"]
    noise = NoiseDistribution(**root["settings"]["noise"])
    model = Parent(ctx.store, inputs["root"], root, EVERYTHING).denoiser().to(device)
    reader = Reader(ctx.store, inputs["validation"], settings["resolution"])

    def batches(index: Tensor) -> tuple[Tensor, Conditioning]:
        x, cond = validation_batch(reader, index, settings)
        return x.to(device), text_only(cond).to(device)

    index, shares = torch.arange(settings["draws"]), settings["shares"]
    u = draws.rotated(settings["seed"], "difficulty/sigma", index, len(reader))
    loss = validation_losses(
        model,
        root["settings"]["sigma_data"],
        batches,
        index=index,
        sigma=EVERYTHING.draw(u, noise),
        batch=BATCH,
        seed=settings["seed"],
    ).double()
    if not bool(loss.isfinite().all()):
        raise ValueError(
            f"the loss of {root['name']} is not finite at some noise levels, so it cannot be cut "
            "into equal shares; train the root anew, or set `boundaries: quantiles`"
        )
    which = (u * shares).long()
    means = [float(loss[which == share].mean()) for share in range(shares)]
    cuts = equal_shares(means)
    quantiles = [at / shares for at in range(shares + 1)]
    sigma = [noise.sigma_at(q) for q in quantiles]
    report = {
        "quantiles": quantiles,
        "sigma": [finite(s) for s in sigma],
        "loss": means,
        "cumulated": cumulated(means),
        "boundaries": cuts,
    }
    ctx.store.write_json(f"{ctx.folder}/{FILE}", report)
    half = cuts[len(cuts) // 2]
    return Result(
        files=[FILE],
        metrics={
            "val_loss": float(loss.mean()),
            "half_quantile": half,
            "half_sigma": noise.sigma_at(half),
        },
        info={"boundaries": cuts},
    )


def cumulated(losses: Sequence[float]) -> list[float]:
    """The share of the loss below each edge, from the mean losses in equal shares of p(σ)."""
    sums = list(accumulate(losses, initial=0.0))
    return [s / sums[-1] for s in sums]


def equal_shares(losses: Sequence[float]) -> list[float]:
    """The quantiles that cut the loss into as many equal shares as there are losses.

    Args:
        losses: mean losses, above 0, in n equal shares of p(σ), lowest noise first. Within a share,
            the loss counts as constant.

    Returns:
        n − 1 rising quantiles, rounded to 6 decimals.
    """
    n, edges = len(losses), cumulated(losses)
    found = []
    for cut in range(1, n):
        at, (low, high) = next(
            (i, ends) for i, ends in enumerate(pairwise(edges)) if cut / n < ends[1]
        )
        found.append(round((at + (cut / n - low) / (high - low)) / n, 6))
    return found
