"""The end of a training: what is kept of it, and what it is worth beside its parent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ediffi_core.checkpoint import Card, to_bytes
from pipelines.spec.training import FINAL_DRAWS
from pipelines.training.build import Parts
from pipelines.training.checkpoints.manifest import MANIFEST, part_name
from pipelines.training.parallel import whole


def finish(
    parts: Parts, *, images: int, history: bytes, kept: list[str], skipped: list[int]
) -> dict[str, Any]:
    """Writes weights, curve and pictures, and measures the child against its parent.

    Args:
        images: how many were seen.
        history: lines of JSON, one a measurement.
        kept: files that were written on the way, from the node's folder.
        skipped: places in the stream of batches that were left out.

    Returns:
        ``files``, ``metrics`` and ``info`` of the node's result.
    """
    store, folder = parts.ctx.store, parts.ctx.folder
    hashes = {
        which: write_weights(parts, which, images, weights)
        for which, weights in (
            ("raw", parts.model.state_dict()),
            ("ema", parts.state.ema.weights),
        )
    }
    with parts.averaged() as model:
        _, mine = parts.validation.losses(model, FINAL_DRAWS)
    metrics = {"val_loss": float(mine.mean()), "images": images}
    theirs = parts.parents_losses(FINAL_DRAWS)
    if theirs is not None:
        metrics |= parts.validation.against(theirs, mine)
    drawn = parts.draw(images)
    if parts.world.is_first:
        store.write(f"{folder}/history.jsonl", history)
    parts.checkpoints.clear()
    parts.world.everyones(None)  # nobody leaves before all is written
    size = parts.world.size
    state = [MANIFEST, "history.jsonl", *(part_name(rank, size) for rank in range(size))]
    files = sorted({*kept, drawn, *(f"state/{name}" for name in state)})
    return {
        "files": ["raw.safetensors", "ema.safetensors", "history.jsonl", *files],
        "metrics": metrics,
        "info": {
            "weights_sha256": hashes["ema"],
            "raw_sha256": hashes["raw"],
            "parameters": sum(p.numel() for p in parts.model.parameters()),
            "skipped": skipped,
        },
    }


def write_snapshots(parts: Parts, images: int) -> list[str]:
    """Averages of growing length, for :func:`ediffi_core.ema.reconstruct` to mix; → their files."""
    names = []
    for length, weights in parts.state.powers.weights.items() if parts.state.powers else ():
        names.append(f"snapshots/{images:012d}-{length:g}")
        write_weights(parts, names[-1], images, weights)
    return [f"{name}.safetensors" for name in names]


def write_weights(parts: Parts, which: str, images: int, weights: dict[str, Tensor]) -> str:
    """The slim file that inference loads, whatever the weights were split over; → their sha256."""
    full = {name: whole(value.detach()).cpu() for name, value in weights.items()}
    if not parts.world.is_first:
        return ""
    data, sha = to_bytes(full, card(parts, images, averaged=which != "raw"))
    parts.ctx.store.write(f"{parts.ctx.folder}/{which}.safetensors", data)
    return sha


def card(parts: Parts, images: int, *, averaged: bool) -> Card:
    return Card(
        expert=parts.settings["expert"],
        interval=parts.interval,
        noise=parts.validation.noise,
        sigma_data=parts.model.sigma_data,
        network=parts.network,
        images=images,
        averaged=averaged,
        parent=parts.parent.origin(parts.settings["start"]) if parts.parent else None,
    )
