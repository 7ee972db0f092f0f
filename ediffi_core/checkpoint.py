"""Weights files of an expert: safetensors with a verified description in the header."""

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

_NO_FILE = FileNotFoundError, IsADirectoryError, NotADirectoryError

CARD_SHA256 = "card_sha256"
"""Key of a header's own hash."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Description of a weights file; stored in its header and checked on loading."""

    expert: str
    """Name, such as ``E2_3`` or ``M_C``."""

    interval: Interval
    """Share of p(σ) that the expert was trained on."""

    noise: NoiseDistribution
    sigma_data: float
    network: UNetConfig
    images: int
    """Images that these weights were trained on as this expert."""

    averaged: bool
    """True for EMA weights, False for raw weights."""

    parent: Mapping[str, Any] | None
    """Name, fingerprint, sha256 and kind of the weights it started from; None for a root."""

    weights_sha256: str = ""

    def to_json(self) -> str:
        """JSON with sorted keys, the format's version, and a sha256 of all the rest."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps({**content, CARD_SHA256: _sha256_of(content)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Card:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: It has another format, or does not match its own sha256. Version 0.1.0 wrote
                none, and its cards are read without.
        """
        d = json.loads(text)
        claimed = d.pop(CARD_SHA256, None)
        if claimed is not None and claimed != _sha256_of(d):
            raise ValueError("it does not match its own sha256: the file is damaged")
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


def _sha256_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        t = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_bytes(weights: Mapping[str, Tensor], card: Card) -> tuple[bytes, str]:
    """Serialise weights and card.

    Returns:
        The file's bytes, equal for equal arguments, and the sha256 of the weights.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    sha = weights_sha256(weights)
    full = Card(**{**card.__dict__, "weights_sha256": sha})
    # One metadata key: safetensors writes several in no fixed order.
    return save(weights, metadata={"ediffi": full.to_json()}), sha


def read_card(path: Path | str) -> Card:
    """Read the card of a weights file, without its weights.

    Raises:
        ValueError: The file is missing, damaged or was not written by ediffi.
        OSError: The machine failed, such as for too many open files.
    """
    try:
        with _opened(path) as file:
            return _card(path, file.metadata())
    except (SafetensorError, *_NO_FILE) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error})") from error


def _opened(path: Path | str) -> Any:
    """Open a safetensors file. safetensors alone calls every failure to open a missing file."""
    Path(path).open("rb").close()
    return safe_open(str(path), framework="pt")


def _card(path: Path | str, metadata: Mapping[str, str] | None) -> Card:
    header = (metadata or {}).get("ediffi")
    if header is None:
        raise ValueError(f"{path} is a safetensors file that ediffi did not write")
    try:
        return Card.from_json(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error if type(error) is ValueError else repr(error)
        raise ValueError(
            f"{path} has a header that cannot be read ({why}); delete the file and run again"
        ) from error


def read(path: Path | str) -> tuple[dict[str, Tensor], Card]:
    """Read a weights file.

    Returns:
        The weights on the CPU, and the card.

    Raises:
        ValueError: The file is missing, damaged or was not written by ediffi.
        OSError: The machine failed, such as for too many open files.
    """
    try:
        with _opened(path) as file:
            metadata = file.metadata()
            weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, *_NO_FILE) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error})") from error
    card = _card(path, metadata)
    if (found := weights_sha256(weights)) != card.weights_sha256:
        raise ValueError(
            f"{path} is damaged: its weights hash to {found[:12]}…, its header says "
            f"{card.weights_sha256[:12]}…; delete the file and run again"
        )
    return weights, card


def read_checked(
    path: Path | str,
    *,
    expert: str | None = None,
    interval: Interval | None = None,
    sha256: str | None = None,
) -> tuple[dict[str, Tensor], Card]:
    """Read a weights file and check that it is the expected one.

    Args:
        expert: expected name.
        interval: interval that the expert should serve; it must have been trained on all of it.
        sha256: expected :func:`weights_sha256`.

    Raises:
        ValueError: As :func:`read`, or the file holds something else.
    """
    weights, card = read(path)
    if expert is not None and expert != card.expert:
        raise ValueError(
            f"{path} holds expert {card.expert}, but {expert} was asked for; "
            "name the right checkpoint or train this expert"
        )
    if interval is not None:
        check_interval(path, card, interval)
    if sha256 is not None and sha256 != card.weights_sha256:
        raise ValueError(
            f"{path} holds weights {card.weights_sha256[:12]}…, but {sha256[:12]}… were asked for: "
            "the file was replaced; restore it, or run its pipeline again"
        )
    return weights, card


def check_interval(path: Path | str, card: Card, interval: Interval) -> None:
    """Raise ValueError if the weights of a card were not trained on all of an interval."""
    if not card.interval.holds(interval):
        raise ValueError(
            f"{path} was trained on {card.interval}, but should serve {interval}; "
            "name the right checkpoint or train this expert"
        )


def load_denoiser(
    path: Path | str, *, expert: str | None = None, interval: Interval | None = None
) -> tuple[Denoiser, Card]:
    """Load a denoiser from a weights file: on the CPU, in eval mode, without gradients.

    Args:
        expert, interval: as in :func:`read_checked`.
    """
    weights, card = read_checked(path, expert=expert, interval=interval)
    return build_denoiser(weights, card), card


def build_denoiser(weights: Mapping[str, Tensor], card: Card) -> Denoiser:
    """Build the denoiser that a card describes: in eval mode, without gradients."""
    denoiser = Denoiser.of(card.network, card.sigma_data)
    denoiser.load_state_dict(weights)
    return denoiser.eval().requires_grad_(False)
