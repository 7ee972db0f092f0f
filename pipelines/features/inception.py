"""InceptionV3 as torch-fidelity has it, so that FID and KID are those that papers report."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from pipelines.features.extractor import Extractor
from pipelines.features.weights import another_network, read_state_dict

LAYER = "2048"


class InceptionFeatures(Extractor):
    """Features of InceptionV3, with TensorFlow 1's resizing to 299 × 299 inside the network."""

    def __init__(
        self, name: str, weights: str, *, layer: str | None = None, device: str = "cpu"
    ) -> None:
        """
        Args:
            weights: file in torch-fidelity's format, as its ``feature_extractor_weights_path``.
            layer: ``64``, ``192``, ``768`` or ``2048``: the width of the features.

        Raises:
            ValueError: torch-fidelity is not installed, or the file is not its InceptionV3.
        """
        super().__init__(name, device=device)
        kind = _inception(name)
        # torch-fidelity unpickles whatever is in the file: let it read a copy of tensors alone.
        checked = io.BytesIO()
        torch.save(read_state_dict(name, weights), checked)
        checked.seek(0)
        try:
            network = kind(name, [layer or LAYER], checked)
        except RuntimeError as error:
            raise another_network(name, weights, error) from error
        self.network = network.to(device)

    def _batch(self, pictures: Tensor) -> Tensor:
        found: Tensor
        (found,) = self.network(pictures.permute(0, 3, 1, 2).to(self.device))
        return found


def _inception(name: str) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`evaluate.features.{name}`: kind inception needs the package torch-fidelity, and "
            f"{error.name} is not installed; install torch-fidelity"
        ) from error
    return FeatureExtractorInceptionV3
