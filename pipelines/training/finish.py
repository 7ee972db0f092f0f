"""The end of training: writes weights, history and samples, and measures the gain."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ediffi_core.checkpoint import Card, to_bytes
from ediffi_core.sharding import full_tensor
from pipelines.spec.training import FINAL_DRAWS
from pipelines.training.build import TrainingSetup


def finish(
    setup: TrainingSetup, *, images: int, history: bytes, files: list[str], skipped: list[int]
) -> dict[str, Any]:
    """Write weights, history and samples, and compare the expert with its parent.

    Args:
        images: number of images seen.
        history: logged metrics as JSON lines.
        files: files written during training, relative to the node's folder.
        skipped: positions in the stream of the batches that were left out.

    Returns:
        ``files``, ``metrics``, ``info`` and ``scratch`` of the node's result.
    """
    store, folder = setup.ctx.store, setup.ctx.folder
    hashes = {
        which: write_weights(setup, which, images, weights)
        for which, weights in (
            ("raw", setup.model.state_dict()),
            ("ema", setup.state.ema.weights),
        )
    }
    with setup.ema_weights() as model:
        _, mine = setup.validation.losses(model, FINAL_DRAWS)
    metrics = {"val_loss": float(mine.mean()), "images": images}
    theirs = setup.parent_losses(FINAL_DRAWS)
    if theirs is not None:
        metrics |= setup.validation.gain_over_parent(theirs, mine)
    drawn, png = setup.draw_samples(images)
    if setup.comm.is_first:
        setup.write_samples(drawn, png)
    if setup.comm.is_first:
        store.write(f"{folder}/history.jsonl", history)
    superseded = setup.checkpoints.superseded(setup.final_state)
    setup.comm.all_gather(None)  # no process exits before everything is written
    state = setup.checkpoints.files(setup.final_state)
    outputs = sorted({*files, drawn, *(f"state/{name}" for name in state)})
    return {
        "files": ["raw.safetensors", "ema.safetensors", "history.jsonl", *outputs],
        "metrics": metrics,
        "info": {
            "weights_sha256": hashes["ema"],
            "raw_sha256": hashes["raw"],
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "skipped": skipped,
        },
        "scratch": [at.removeprefix(f"{folder}/") for at in superseded],
    }


def snapshots(setup: TrainingSetup, images: int) -> dict[str, bytes]:
    """The power-function EMAs for :func:`ediffi_core.ema.reconstruct`, as weights files.

    Returns:
        Name relative to the node's folder → bytes, which are empty in all processes but the first.
    """
    powers = setup.state.powers.weights if setup.state.powers else {}
    return {
        f"snapshots/{images:012d}-{length:g}.safetensors": weights_file(
            setup, images, weights, averaged=True
        )[0]
        for length, weights in powers.items()
    }


def write_weights(setup: TrainingSetup, which: str, images: int, weights: dict[str, Tensor]) -> str:
    """Write the weights alone, unsharded, as inference loads them; → their sha256."""
    data, sha = weights_file(setup, images, weights, averaged=which != "raw")
    if setup.comm.is_first:
        setup.ctx.store.write(f"{setup.ctx.folder}/{which}.safetensors", data)
    return sha


def weights_file(
    setup: TrainingSetup, images: int, weights: dict[str, Tensor], *, averaged: bool
) -> tuple[bytes, str]:
    """A weights file and the weights' sha256, both empty in all processes but the first."""
    full = {name: full_tensor(value.detach()).cpu() for name, value in weights.items()}
    if not setup.comm.is_first:
        return b"", ""
    return to_bytes(full, card(setup, images, averaged=averaged))


def card(setup: TrainingSetup, images: int, *, averaged: bool) -> Card:
    """The header of a weights file: what the expert is and where it comes from."""
    return Card(
        expert=setup.settings["expert"],
        interval=setup.interval,
        noise=setup.validation.noise,
        sigma_data=setup.model.sigma_data,
        network=setup.network,
        images=images,
        averaged=averaged,
        parent=setup.parent.origin(setup.settings["start"]) if setup.parent else None,
    )
