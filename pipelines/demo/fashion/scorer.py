"""The metric of Fashion-MNIST: does an image show the class that its caption names?

A small convolutional network is trained on the published training pictures, which include those of
the generators.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.demo.classifier_metric import BATCH, ClassifierMetric
from pipelines.demo.fashion.captions import parse
from pipelines.demo.fashion.files import read_split
from pipelines.demo.fashion.make import SIDE, as_rgb
from pipelines.metrics import Pictures, Progress, Values

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.demo.fashion.network import Network

CHECKED = 2000
"""Number of published test pictures to measure its own accuracy on."""


class FashionMnist(ClassifierMetric["Network"]):
    """Classes of Fashion-MNIST; see :meth:`score`."""

    version = 1

    weights_file = "classifier.safetensors"

    def __init__(self, images: int = 48_000) -> None:
        """
        Args:
            images: training images seen, in batches of 64.
        """
        super().__init__(images)

    def new_network(self) -> Network:
        """The classifier, not trained yet."""
        from pipelines.demo.fashion.network import Network

        return Network()

    def fit(
        self, folder: Path, *, resolutions: list[int], seed: int, progress: Progress
    ) -> dict[str, float]:
        """Train the classifier for images of these resolutions.

        Returns:
            ``classes_RESOLUTION``: accuracy on published test pictures.

        Raises:
            ValueError: A resolution does not divide 32, or the data set cannot be read.
        """
        import torch

        if wrong := [r for r in resolutions if SIDE % r]:
            raise ValueError(
                f"the pictures of Fashion-MNIST are {SIDE}×{SIDE}: resolutions must divide {SIDE}, "
                f"not {wrong[0]}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self.new_network()
            self._train(resolutions, seed, progress)
        self.save(folder)
        pictures, classes = (part[:CHECKED] for part in read_split("validation"))
        return {
            f"classes_{side}": float((self.read(_reduced(pictures, side)) == classes).mean())
            for side in resolutions
        }

    def _train(self, resolutions: list[int], seed: int, progress: Progress) -> None:
        import torch
        from torch.nn import functional as F

        from pipelines.demo.classifiers import as_input, coarse_and_grainy, train

        pictures, classes = read_split("train")
        targets = torch.from_numpy(classes.astype(np.int64))
        random = torch.Generator().manual_seed(seed)

        def loss_of(step: int) -> Tensor:
            rows = torch.randint(len(pictures), (BATCH,), generator=random)
            by = torch.randint(-1, 2, (2,), generator=random).tolist()
            x = torch.roll(as_input(as_rgb(pictures[rows.numpy()])), by, (2, 3))
            x = coarse_and_grainy(x, resolutions[step % len(resolutions)], SIDE, random)
            return F.cross_entropy(self.network(x)[0], targets[rows])

        steps = max(2, self.images // BATCH)
        train(self.network, loss_of, steps=steps, batch=BATCH, progress=progress)

    def read(self, pictures: Pictures) -> NDArray[np.int64]:
        """[N] classes, from 0 to 9, that images, uint8 [N, R, R, 3], show."""
        found: NDArray[np.int64] = self.outputs(pictures)[0].argmax(dim=1).numpy()
        return found

    def features(self, pictures: Pictures) -> NDArray[np.float32]:
        """[N, 128]: the network's last features, averaged over the image, at unit length.

        Their lengths differ so much between pictures that a few long ones would decide a kernel
        distance.
        """
        from torch.nn import functional as F

        out: NDArray[np.float32] = F.normalize(self.outputs(pictures)[1]).numpy()
        return out

    def score(self, pictures: Pictures, captions: list[str]) -> dict[str, Values]:
        """Score images against their captions.

        * ``classes``: whether the image shows the class that the caption names.

        Raises:
            ValueError: A caption names no class, or several.
        """
        asked = np.array([parse(c) for c in captions])
        return {"classes": (self.read(pictures) == asked).astype(np.float64)}


def _reduced(pictures: NDArray[np.uint8], side: int) -> Pictures:
    """Published pictures, uint8 [N, 28, 28], at a resolution: uint8 [N, side, side, 3]."""
    from torch.nn import functional as F

    from pipelines.demo.classifiers import as_input, as_pictures

    return as_pictures(F.avg_pool2d(as_input(as_rgb(pictures)), SIDE // side))
