"""Compare the gradients of a root's loss between noise levels, on held-out pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.checkpoint import build_denoiser
from ediffi_core.gradient_similarity import Gradients, Similarity, by_distance
from ediffi_core.noise import EVERYTHING, Interval, NoiseDistribution
from ediffi_core.precond import Denoiser, denoising_loss
from pipelines.evaluation.job import text_only
from pipelines.evaluation.scores import finite
from pipelines.runs.context import Context, Result
from pipelines.store.reader import Reader
from pipelines.training.branch import Parent
from pipelines.training.validation import validation_batch

FILE = "gradients.json"


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Compute the mean gradient of the loss in each share of p(σ), and the cosines between them.

    All shares are measured on the same pictures, each with σ and ε of its own. In float32, with the
    root's averaged weights. Two gradients per share are held in memory.

    Raises:
        ValueError: Weights are damaged, or there are fewer than two validation pictures.
    """
    torch.set_num_threads(ctx.cpus)
    device = "cuda" if ctx.runtime["gpus"] else "cpu"
    data = Reader(ctx.store, inputs["validation"], settings["resolution"])
    pictures = min(settings["pictures"], len(data)) // 2 * 2
    if not pictures:
        raise ValueError(f"gradients need 2 validation pictures, there are {len(data)}")
    root = Parent(ctx.store, inputs["root"], ctx.manifests["root"], EVERYTHING)
    model = build_denoiser(*root.read("ema")).to(device).requires_grad_(True)
    shares = intervals(settings["bins"])
    halves: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for at in range(len(shares)):
        for half in (0, 1):
            index = torch.arange(half, pictures, 2) + at * pictures
            found = mean_gradient(model, data, index, pictures, settings, shares[at], ctx.runtime)
            halves[half].append(found)
        ctx.report(done=at + 1, of=len(shares), unit="noise levels")
    sums = Gradients(len(shares))
    for parts in zip(*halves[0], *halves[1], strict=True):
        first, second = parts[: len(shares)], parts[len(shares) :]
        sums.add(torch.stack(first), torch.stack(second))
    similarity = sums.similarity()
    content = described(similarity, shares, NoiseDistribution(**settings["noise"]), pictures)
    ctx.store.write_json(f"{ctx.folder}/{FILE}", content)
    return Result(files=[FILE], metrics={"pictures": pictures, **metrics_of(similarity)})


def intervals(count: int) -> list[Interval]:
    """Equal shares of p(σ), from low to high noise."""
    return [Interval(i / count, (i + 1) / count) for i in range(count)]


def mean_gradient(
    model: Denoiser,
    data: Reader,
    index: Tensor,
    pictures: int,
    settings: Mapping[str, Any],
    interval: Interval,
    runtime: Mapping[str, Any],
) -> list[Tensor]:
    """Mean gradient of the denoising loss with σ ~ p(σ | interval): of each parameter, flattened.

    Args:
        index: numbers of the draws. Draw i is of picture ``i % pictures``. [n]
        settings: of the node.
        runtime: of the node; ``batch`` draws are computed at once.
    """
    device = next(model.parameters()).device
    noise = NoiseDistribution(**settings["noise"])
    model.zero_grad(set_to_none=True)
    for part in index.split(runtime["batch"]):
        x, cond = validation_batch(data, part % pictures, settings)
        u = draws.rotated(settings["seed"], "gradients/sigma", part, pictures)
        eps = draws.normal(settings["seed"], "gradients/eps", part, tuple(x.shape[1:]))
        loss = denoising_loss(
            model,
            settings["sigma_data"],
            x.to(device),
            interval.draw(u, noise),
            eps.to(device),
            text_only(cond).to(device),
        )
        (loss.sum() / len(index)).backward()
    # A parameter that the loss does not depend on has no gradient.
    return [
        (p.new_zeros(p.numel()) if p.grad is None else p.grad.detach().flatten())
        for p in model.parameters()
    ]


def described(
    similarity: Similarity, shares: list[Interval], noise: NoiseDistribution, pictures: int
) -> dict[str, Any]:
    """The content of :data:`FILE`; None stands for an infinite σ, and for a missing value."""
    return {
        "pictures": pictures,
        "quantiles": [[i.q_lo, i.q_hi] for i in shares],
        "sigma": [[finite(edge) for edge in i.bounds(noise)] for i in shares],
        "cosine": rows(similarity.cosine),
        "norm": rows(similarity.norm),
        "halves": rows(similarity.halves),
        "corrected": rows(similarity.corrected),
    }


def metrics_of(similarity: Similarity) -> dict[str, float]:
    """Mean cosine between shares 1, 2, … apart, as measured and corrected for sampling noise."""
    both = {"cosine": similarity.cosine, "corrected": similarity.corrected}
    return {
        f"{name}/distance_{d}": value
        for name, one in both.items()
        for d, value in enumerate(by_distance(one), 1)
        if math.isfinite(value)
    }


def rows(values: Tensor) -> Any:
    """A tensor as nested lists, with None for what is not finite."""
    if values.ndim > 1:
        return [rows(row) for row in values]
    return [finite(value) for value in values.tolist()]
