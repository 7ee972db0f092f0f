"""Merge experts of a stage into one model on all noise levels, by their task vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ediffi_core.checkpoint import Card, to_bytes
from ediffi_core.noise import Interval
from ediffi_core.task_vectors import merged
from pipelines.runs.context import Context, Result
from pipelines.training.branch import Parent

FILE = "ema.safetensors"


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Merge the averaged weights of the experts, and write them as one model's.

    Raises:
        ValueError: Weights are damaged, or an expert has another network, σ_data or p(σ) than the
            root.
    """
    torch.set_num_threads(ctx.cpus)
    interval, weights = Interval(*settings["interval"]), settings["weights"]
    root = Parent(ctx.store, inputs[settings["root"]], ctx.manifests[settings["root"]], interval)
    start, card = root.read("ema")

    def experts() -> Iterator[tuple[float, dict[str, Tensor]]]:
        for done, (name, weight) in enumerate(weights.items()):
            ctx.report(done=done, of=len(weights), unit="experts")
            own = Interval(*ctx.manifests[name]["settings"]["interval"])
            expert = Parent(ctx.store, inputs[name], ctx.manifests[name], own)
            theirs, its_card = expert.read("ema")
            check_alike(card, its_card)
            yield weight, theirs

    found = merged(start, experts())
    own_card = Card(
        expert=settings["expert"],
        interval=interval,
        noise=card.noise,
        sigma_data=card.sigma_data,
        network=card.network,
        images=0,
        averaged=True,
        parent=root.origin("ema"),
    )
    data, sha = to_bytes(found, own_card)
    ctx.store.write(f"{ctx.folder}/{FILE}", data)
    parameters = sum(value.numel() for value in found.values())
    moved = distance(start, found)
    return Result(
        files=[FILE],
        metrics={"distance_from_root": moved},
        info={"weights_sha256": sha, "parameters": parameters},
    )


def check_alike(root: Card, expert: Card) -> None:
    """Raise ValueError if an expert does not go with the root."""
    for what in ("network", "sigma_data", "noise"):
        if getattr(root, what) != getattr(expert, what):
            raise ValueError(
                f"{expert.expert} has another {what} than {root.expert}, so they cannot be merged"
            )


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Euclidean distance of two models' weights."""
    squares = ((b[name].double() - value.double()).square().sum() for name, value in a.items())
    return float(sum(squares, torch.zeros((), dtype=torch.float64)).sqrt())
