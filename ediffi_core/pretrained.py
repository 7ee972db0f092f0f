"""Loads the cascade of a folder that ``ediffi export`` wrote, with torch and safetensors alone.

::

    FOLDER/cascade/config.json                  stages: experts with their intervals, sampling
    FOLDER/cascade/STAGE/SLOT/config.json       the card of the weights: network, noise, sha256
    FOLDER/cascade/STAGE/SLOT/diffusion_pytorch_model.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ediffi_core.cascade import PRECISIONS, CascadeStage
from ediffi_core.checkpoint import Card, read_checked
from ediffi_core.loading import RESIDENCIES, Residency, Source, build_ensemble
from ediffi_core.noise import Interval
from ediffi_core.residency import Weights
from ediffi_core.stage_settings import with_settings

FORMAT = 1
"""Version of the folder's layout."""

CASCADE = "cascade"
"""Subfolder of the denoisers."""

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Names of a component's settings and weights, as in other folders for diffusers."""


def load_cascade(
    folder: Path | str,
    device: torch.device | str = "cpu",
    *,
    residency: Residency | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[CascadeStage]:
    """Load the stages of an exported model, for :func:`ediffi_core.cascade.sample`.

    Every file of weights is read and compared with its sha256, one at a time.

    Args:
        folder: the exported folder, or its subfolder ``cascade``.
        device: where the networks run.
        residency: where the experts' weights are; by default as chosen at the export.
        dtype: type of the weights in memory, in which the networks compute. By default float32,
            whatever type the files have.

    Returns:
        The stages from the lowest resolution up, with the model's own sampling settings.

    Raises:
        ValueError: The folder is not an exported model, or is of a newer version; a file is
            missing, damaged or does not fit its ``config.json``; or a network does not fit its
            ensemble.
    """
    root = cascade_folder(folder)
    config = read_config(root)
    where = residency or config["residency"]
    if where not in RESIDENCIES:
        raise ValueError(f"residency {where!r} is unknown; choose one of {', '.join(RESIDENCIES)}")
    return [_stage(root, entry, device, where, dtype) for entry in config["stages"]]


def cascade_folder(folder: Path | str) -> Path:
    """The subfolder of the denoisers, of an exported folder or of itself."""
    root = Path(folder)
    return root / CASCADE if (root / CASCADE).is_dir() else root


def read_config(root: Path) -> dict[str, Any]:
    """Read the ``config.json`` of an exported component; ValueError if it is not one."""
    try:
        config: dict[str, Any] = json.loads((root / CONFIG).read_text(encoding="utf-8"))
        found = config["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{root} is not of an exported model: its {CONFIG} cannot be read ({error!r}); "
            "`ediffi export` writes such folders"
        ) from error
    if found != FORMAT:
        raise ValueError(f"{root} has format {found}, this version reads {FORMAT}; update ediffi")
    return config


def expert_config(card: Card) -> dict[str, Any]:
    """What the ``config.json`` of an expert holds: the card of its weights."""
    return {"_class_name": "Denoiser", "format": FORMAT, "card": json.loads(card.to_json())}


def precision_of(dtype: torch.dtype) -> str:
    """The sampling setting ``precision`` for weights of a type; ValueError for another type."""
    for name, kind in PRECISIONS.items():
        if dtype == (kind or torch.float32):
            return name
    raise ValueError(f"{dtype} is not a type for networks; choose one of {', '.join(PRECISIONS)}")


def _stage(
    root: Path,
    entry: Mapping[str, Any],
    device: torch.device | str,
    residency: Residency,
    dtype: torch.dtype,
) -> CascadeStage:
    settings = dict(entry["sampling"])
    if dtype != torch.float32:
        settings["precision"] = precision_of(dtype)
    sources = {}
    for name, slot in entry["experts"].items():
        interval = Interval(*slot["interval"])
        read = partial(_read, root / slot["folder"], slot["expert"], interval)
        sources[name] = Source(slot["folder"], interval, read)
    ensemble = build_ensemble(sources, residency, device, dtype)
    plain = CascadeStage(name=entry["name"], denoiser=ensemble, resolution=entry["resolution"])
    return with_settings(plain, settings)


def _read(folder: Path, expert: str, interval: Interval) -> tuple[Weights, Card]:
    """An expert's weights and card, compared with its ``config.json``."""
    config = read_config(folder)
    weights, card = read_checked(folder / WEIGHTS, expert=expert, interval=interval)
    if config != expert_config(card):
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {folder / CONFIG} describes; export the "
            "model again"
        )
    return weights, card
