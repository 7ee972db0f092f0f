"""The interface of a network whose features describe pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ediffi_core.checkpoint import weights_sha256
from pipelines.metrics import Pictures

BATCH = 64
"""Pictures in a forward pass."""


class Extractor(ABC):
    """A frozen network from pictures to features, with a name that results are called by."""

    network: nn.Module

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        self.name, self.device = name, device

    @cached_property
    def sha256(self) -> str:
        """sha256 of the weights."""
        return weights_sha256(self.network.state_dict())

    @cached_property
    def dim(self) -> int:
        """Width of a feature vector, found by a forward pass of a black picture."""
        return int(self.features(np.zeros((1, 32, 32, 3), np.uint8)).shape[1])

    @torch.inference_mode()
    def features(self, pictures: Pictures) -> Tensor:
        """Features of pictures of any size.

        Args:
            pictures: uint8 [N, R, R, 3].

        Returns:
            [N, dim] float32, on the CPU.
        """
        if pictures.dtype != "uint8" or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise ValueError(
                f"features {self.name} are of pictures [N, R, R, 3] of uint8, got "
                f"{[*pictures.shape]} of {pictures.dtype}"
            )
        parts = torch.from_numpy(pictures).split(BATCH)
        return torch.cat([self._batch(part).float().cpu() for part in parts])

    @abstractmethod
    def _batch(self, pictures: Tensor) -> Tensor:
        """Features [N, dim] of a batch of pictures [N, R, R, 3] uint8 on the CPU."""
