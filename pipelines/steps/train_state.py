"""A training node's checkpoint: everything that resuming needs, in one safetensors file.

One file, so that it is whole or absent; its header carries the sha256 of all that is restored. No
pickle.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ediffi_core.checkpoint import weights_sha256
from ediffi_core.ema import EMA
from pipelines.store.artifacts import Store, sha256

FOLDER = "checkpoints"


def path(folder: str, images: int) -> str:
    return f"{folder}/{FOLDER}/{images:012d}.safetensors"


def newest_first(store: Store, folder: str) -> list[str]:
    return [
        f"{folder}/{FOLDER}/{f}" for f in sorted(store.files(f"{folder}/{FOLDER}"), reverse=True)
    ]


def keep_newest(store: Store, folder: str, count: int) -> None:
    for old in newest_first(store, folder)[count:]:
        store.remove(old)


def digest(tensors: dict[str, Tensor], images: Any, history: Any) -> str:
    """Of the tensors, and of the clock and the curve beside them."""
    return sha256(
        f"{weights_sha256(tensors)} {json.dumps([images, history], sort_keys=True)}".encode()
    )


def save(
    store: Store,
    to: str,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    images: int,
    history: list[dict[str, Any]],
) -> None:
    tensors: dict[str, Tensor] = {f"raw/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema/{k}": v for k, v in ema.weights.items()}
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": v for k, v in slots.items()}
    tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
    header = {"images": images, "history": history, "sha256": digest(tensors, images, history)}
    store.write(to, serialise(tensors, metadata={"ediffi": json.dumps(header, sort_keys=True)}))


def load(
    store: Store, at: str, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Restores all three; → images seen and the history. ValueError if the file is not sound."""
    data = store.read(at)
    if data is None:
        raise ValueError(f"{at} is not there")
    try:
        tensors = parse(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["ediffi"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    if digest(tensors, header.get("images"), header.get("history")) != header.get("sha256"):
        raise ValueError("its sha256 does not match")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("raw/"))
    for name, value in part("ema/").items():
        ema.weights[name].copy_(value)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimizer/").items():
        number, slot = key.split("/")
        slots.setdefault(int(number), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return header["images"], header["history"]
