"""Checkpoints of an expert: one safetensors file that says what it is, and proves it when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNetConfig

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a file of weights is; stored in its header, checked when it is loaded."""

    expert: str
    """E2_3, M_C, …"""

    interval: Interval
    noise: NoiseDistribution
    sigma_data: float
    network: UNetConfig
    images: int
    """How many images these weights were trained on as this expert."""

    averaged: bool
    """True for the EMA, False for the raw weights."""

    parent: Mapping[str, Any] | None
    """Name, fingerprint, weights' sha256 and raw or ema of the expert it started from."""

    weights_sha256: str = ""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Card:
        d = json.loads(text)
        if (found := d.pop("format")) != FORMAT:
            raise ValueError(f"checkpoint format {found} is not {FORMAT}, which this version reads")
        return Card(
            **{
                **d,
                "interval": Interval(**d["interval"]),
                "noise": NoiseDistribution(**d["noise"]),
                "network": UNetConfig.from_dict(d["network"]),
            }
        )


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        t = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_bytes(weights: Mapping[str, Tensor], card: Card) -> tuple[bytes, str]:
    """The file's bytes (the same for the same arguments) and the weights' sha256."""
    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    sha = weights_sha256(weights)
    full = Card(**{**card.__dict__, "weights_sha256": sha})
    # One metadata key: safetensors writes several in no fixed order.
    return save(weights, metadata={"ediffi": full.to_json()}), sha


def read(path: Path | str) -> tuple[dict[str, Tensor], Card]:
    """Weights and card; ValueError if the file is torn, foreign or does not match its sha256."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get("ediffi")
            weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is no readable checkpoint ({error})") from error
    if header is None:
        raise ValueError(f"{path} is a safetensors file, but none that ediffi wrote")
    try:
        card = Card.from_json(header)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a header that cannot be read ({error!r})") from error
    if (found := weights_sha256(weights)) != card.weights_sha256:
        raise ValueError(
            f"{path} is damaged: its weights hash to {found[:12]}…, its header says "
            f"{card.weights_sha256[:12]}…; delete its node and run the pipeline again"
        )
    return weights, card


def read_as(
    path: Path | str, *, expert: str | None = None, interval: Interval | None = None
) -> tuple[dict[str, Tensor], Card]:
    """Reads a checkpoint that the caller takes for something; ValueError if it is something else.

    Args:
        expert: whom the caller takes it for.
        interval: where it shall work: all of it, or a part of what it was trained on.
    """
    weights, card = read(path)
    if expert is not None and expert != card.expert:
        raise ValueError(
            f"{path} holds expert {card.expert}, but {expert} was asked for; "
            "name the right checkpoint or train this expert"
        )
    if interval is not None and not card.interval.holds(interval):
        raise ValueError(
            f"{path} was trained on {card.interval}, and is to work on {interval}; "
            "name the right checkpoint or train this expert"
        )
    return weights, card


def load_denoiser(
    path: Path | str, *, expert: str | None = None, interval: Interval | None = None
) -> tuple[Denoiser, Card]:
    """Builds the network a checkpoint describes and fills it; on CPU, in eval mode.

    Args:
        expert, interval: as :func:`read_as` checks them.
    """
    weights, card = read_as(path, expert=expert, interval=interval)
    return filled(weights, card), card


def filled(weights: Mapping[str, Tensor], card: Card) -> Denoiser:
    """The denoiser that a card describes with these weights; in eval mode, without gradients."""
    denoiser = Denoiser.of(card.network, card.sigma_data)
    denoiser.load_state_dict(weights)
    return denoiser.eval().requires_grad_(False)
