"""Files of weights: read without running what they contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def weights_path(name: str, path: str) -> Path:
    """The file of weights of some features; ValueError if there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"`evaluate.features.{name}.weights`: there is no file {path}")
    return file


def read_state_dict(name: str, path: str) -> dict[str, Tensor]:
    """Read a state dict from a file in PyTorch's format, or in safetensors.

    Raises:
        ValueError: There is no file, or it is no state dict.
    """
    file = weights_path(name, path)
    try:
        found: Any
        if file.suffix == ".safetensors":
            found = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise _unreadable(name, path, str(error)) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]  # as timm's and Lightning's checkpoints have it
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise _unreadable(name, path, f"it holds {type(found).__name__}, not tensors by name")
    return dict(found)


def another_network(name: str, path: str, error: Exception) -> ValueError:
    """The error for weights that a network refuses to load."""
    return ValueError(
        f"`evaluate.features.{name}.weights`: {path} is of another network "
        f"({' '.join(str(error).split())[:200]})"
    )


def _unreadable(name: str, path: str, why: str) -> ValueError:
    return ValueError(
        f"`evaluate.features.{name}.weights`: {path} is no file of weights "
        f"({' '.join(why.split())[:200]}); write a state dict in PyTorch's format or safetensors"
    )
