"""Features of CLIP: its embeddings of pictures, of unit length."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ediffi_core.encoders import CLIP
from pipelines.features.extractor import Extractor

PRETRAINED = "openai"


class CLIPFeatures(Extractor):
    """Embeddings of an OpenCLIP model, with the preprocessing of its configuration."""

    def __init__(
        self, name: str, model: str, *, pretrained: str | None = None, device: str = "cpu"
    ) -> None:
        """
        Args:
            model: OpenCLIP's name of a model, or a folder.
            pretrained: OpenCLIP's tag of the weights.

        Raises:
            ValueError: The model cannot be loaded.
        """
        super().__init__(name, device=device)
        try:
            self.clip = CLIP(model, pretrained=pretrained or PRETRAINED, device=device)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"`evaluate.features.{name}`: CLIP {model!r} cannot be loaded "
                f"({' '.join(str(error).split())[:300]}); set `model:` to a name that can be "
                "downloaded, or to a folder"
            ) from error
        self.network = self.clip.model

    def _batch(self, pictures: Tensor) -> Tensor:
        return self.clip.image([Image.fromarray(picture) for picture in pictures.numpy()])
