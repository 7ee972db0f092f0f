"""A metric whose scores are read off pictures by a small classifier that it trains.

Torch is imported when a network is needed: specs import metrics without it.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pipelines.metrics import Metric, Pictures

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 64

Classifier = TypeVar("Classifier", bound="nn.Module")


class ClassifierMetric(Metric, Generic[Classifier]):
    """Holds the classifier, and loads and runs it."""

    weights_file: ClassVar[str]
    """File of the classifier's weights in the metric's folder."""

    def __init__(self, images: int) -> None:
        """
        Args:
            images: training images seen, in batches of 64.
        """
        if type(images) is not int or images < BATCH:
            raise ValueError(f"`images:` must be at least {BATCH}, got {images!r}")
        self.images = images
        self.network: Classifier
        """After :meth:`fit` or :meth:`open`."""

    @abstractmethod
    def new_network(self) -> Classifier:
        """A classifier of pictures [N, 3, 64, 64] in [-1, 1], not trained yet."""

    def save(self, folder: Path) -> None:
        """Write the classifier's weights."""
        from safetensors.torch import save_file

        save_file(self.network.state_dict(), folder / self.weights_file)

    def open(self, folder: Path) -> None:
        """Load the weights that :meth:`save` wrote."""
        from safetensors.torch import load_file

        self.network = self.new_network()
        self.network.load_state_dict(load_file(folder / self.weights_file))
        self.network.eval()

    def outputs(self, pictures: Pictures) -> tuple[Tensor, ...]:
        """The network's outputs for pictures, uint8 [N, R, R, 3]."""
        import torch

        from pipelines.demo.classifiers import as_input, upsampled

        with torch.inference_mode():
            parts = [self.network(upsampled(part)) for part in as_input(pictures).split(256)]
            return tuple(torch.cat(list(of)) for of in zip(*parts))
